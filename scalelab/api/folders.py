"""The verbs about whole results folders: `merge`, `remove`, `archive`, `restore`, `disk_usage`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.api.data import DEFAULT_RESULTS
from scalelab.errors import UsageError

if TYPE_CHECKING:
    from scalelab.records.merge import MergePlan
    from scalelab.records.parts import Progress


def merge(
    folder: str | Path,
    *,
    results: str | Path = DEFAULT_RESULTS,
    conflicts: str | None = None,
    rename: Mapping[str, str] | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> MergePlan:
    """Bring another results folder into this one.

    Runs with the same run_id become one run. Run the same merge again after one that was killed.

    Parameters
    ----------
    folder : str or Path
        The other results folder; it is only read.
    conflicts : {"ours", "theirs"}, optional
        Whose state counts where the folders contradict; default: a conflict is an error.
    rename : Mapping[str, str], optional
        New names of its sweeps, imports and forecasts.
    dry_run : bool
        Whether to only say what would be merged; conflicts are then no error.
    progress : callable, optional
        Receives what is done, and how many bytes of how many.

    Raises
    ------
    UsageError
        If an option is not valid, or a run that would change is training.
    DataError
        If the folders contradict, or one cannot be read or written.
    """
    from scalelab.launch.active import nothing_runs, open_attempt
    from scalelab.launch.lock import folders_lock
    from scalelab.records.merge import OURS, THEIRS, apply_merge, plan_merge
    from scalelab.records.parts import RUN, SWEEP, list_parts
    from scalelab.records.sweep_dir import Results
    from scalelab.store.collect import collect

    here, there = Results(Path(results)), Results(Path(folder))
    if conflicts not in (None, OURS, THEIRS):
        raise UsageError(f"conflicts {conflicts!r}", "ours or theirs", "Try --conflicts ours.")
    open_there = {
        part.name: attempt.token
        for part in list_parts(there.path)
        if part.kind == RUN and (attempt := open_attempt(there, part.name)) is not None
    }

    def compare() -> MergePlan:
        return plan_merge(
            here.path,
            there.path,
            prefer=conflicts,
            renames=rename,
            open_there=open_there,
        )

    if dry_run:
        return compare()
    with folders_lock(here.path):
        plan = compare()
        plan.refuse_conflicts()
        changed = {kind: [p.name for p in plan.changed if p.kind == kind] for kind in (RUN, SWEEP)}
        with nothing_runs(here, changed[SWEEP], changed[RUN]):
            apply_merge(here.path, plan, progress=progress)
    collect(here.path)
    return plan
