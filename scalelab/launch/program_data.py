"""The prepared tokens that a program gets where it declares no data of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scalelab.corpus.dataset import open_dataset
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
