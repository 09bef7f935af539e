"""Train runs with a user's program, or with the built-in trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec, QualifyRequest


def attempt_runs(
    run_paths: Sequence[Path],
    dataset: Path | None,
    execution: ExecutionSpec,
    *,
    host_note: Mapping[str, Any] | None = None,
    should_stop: Callable[[], str | None] | None = None,
    trunks: Path | None = None,
    qualify: QualifyRequest | None = None,
) -> tuple[str, ...]:
    """Make one attempt at each of some runs and return how each ended.

    Parameters are those of `scalelab.train.worker.run_batched`. Runs of a program are trained one
    after the other, and never import torch; their ``dataset`` may be None.
    """
    if RunDir(run_paths[0]).read_spec().program is not None:
        from scalelab.launch.programs.run import run_program

        return tuple(
            run_program(
                path,
                execution,
                dataset=dataset,
                host_note=host_note or {},
                should_stop=should_stop,
            )
            for path in run_paths
        )

    from scalelab.train.worker import run_batched

    assert dataset is not None, "the built-in trainer needs a dataset"
    return run_batched(
        run_paths,
        dataset,
        execution,
        host_note=host_note,
        should_stop=should_stop,
        trunks=trunks,
        qualify=qualify,
    )
