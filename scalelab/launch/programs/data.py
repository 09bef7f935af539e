"""Where an attempt of a program executes, and the prepared tokens that it may get."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from scalelab.corpus.dataset import open_dataset
from scalelab.launch.programs.launcher import devices_of
from scalelab.launch.programs.output import reported_path
from scalelab.records.run_dir import Attempt
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.program_render import Place
from scalelab.sweep.run_spec import RunSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedData:
    """Token files for a program that declares no data of its own.

    Attributes
    ----------
    train_data, eval_data : str
        Paths; empty without prepared data.
    unique_tokens : int
        Distinct training tokens that the run sees; 0 if not known.
    """

    train_data: str = ""
    eval_data: str = ""
    unique_tokens: int = 0


def prepared_data(dataset: Path | None, spec: RunSpec) -> PreparedData:
    """Return the files of prepared tokens; several shards are their folder.

    Raises
    ------
    DataError
        If the folder is damaged.
    """
    if dataset is None or not dataset.is_dir():
        return PreparedData()
    found = open_dataset(dataset)
    train, evaluation = (
        str(dataset / shards[0].name if len(shards) == 1 else dataset)
        for shards in (found.manifest.train, found.manifest.evaluation)
    )
    return PreparedData(
        train_data=train,
        eval_data=evaluation,
        unique_tokens=found.unique_tokens(spec.n_tokens, spec.seq_len),
    )


def place_of(
    attempt: Attempt, out_dir: Path, execution: ExecutionSpec, data: PreparedData, sweep: str
) -> Place:
    """Return the place of an attempt that starts without a checkpoint."""
    devices = devices_of(execution.n_devices)
    return Place(
        run_id=attempt.run.run_id,
        sweep=sweep,
        out_dir=str(out_dir),
        metrics=str(reported_path(attempt)),
        run_json=str(attempt.run.path / "spec.json"),
        python=sys.executable,
        n_devices=devices.n_devices,
        n_nodes=devices.n_nodes,
        gpus_per_node=devices.per_node,
        micro_batch_seqs=execution.micro_batch_seqs,
        train_data=data.train_data,
        eval_data=data.eval_data,
    )
