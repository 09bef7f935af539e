"""The verbs about whole results folders: `merge`, `remove`, `archive`, `restore`, `disk_usage`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.api.data import DEFAULT_RESULTS
from scalelab.errors import DataError, UsageError

if TYPE_CHECKING:
    from scalelab.records.archive import ArchiveReport
    from scalelab.records.merge import MergePlan
    from scalelab.records.parts import Progress
    from scalelab.records.removal import RemovalPlan
    from scalelab.records.space import DiskUsage


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
    from scalelab.records.merge import THEIRS, apply_merge, plan_merge
    from scalelab.records.parts import RUN, SWEEP, list_parts
    from scalelab.records.sweep_dir import Results
    from scalelab.store.collect import collect
    from scalelab.store.live import forget_live

    here, there = Results(Path(results)), Results(Path(folder))
    _check_choice(conflicts)
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
    if conflicts == THEIRS:
        # A replaced curve may look like a longer one: the tables are built again.
        forget_live(here.path)
    collect(here.path)
    return plan


def remove(
    *names: str,
    results: str | Path = DEFAULT_RESULTS,
    checkpoints: bool = False,
    superseded: bool = False,
    outputs: bool = False,
    unused_data: bool = False,
    orphans: bool = False,
    caches: bool = False,
    dry_run: bool = False,
) -> RemovalPlan:
    """Remove sweeps, imports and runs, or what finished runs no longer need. Nothing is asked.

    Runs that other sweeps have stay.

    Parameters
    ----------
    names : str
        Sweeps, imports and runs. With ``checkpoints``, ``superseded`` or ``outputs``, only those
        of their runs are removed; without names, of all runs.
    checkpoints : bool
        Remove the checkpoints of finished runs.
    superseded : bool
        Remove the attempts of finished runs from which the result does not come.
    outputs : bool
        Remove what users' programs of finished runs wrote beside curve and record.
    unused_data : bool
        Remove datasets that no run uses.
    orphans : bool
        Remove runs that no sweep has.
    caches : bool
        Remove trunk states, and what killed commands left behind.
    dry_run : bool
        Whether to only say what would be removed.

    Raises
    ------
    UsageError
        If a name is unknown, or a run is training.
    DataError
        If a plan cannot be read, or the folder cannot be written.
    """
    from scalelab.launch.active import nothing_runs
    from scalelab.launch.lock import folders_lock
    from scalelab.records.files import list_folders
    from scalelab.records.removal import RemoveOptions, apply_removal, plan_removal
    from scalelab.records.sweep_dir import Results
    from scalelab.store.collect import collect

    folder = existing(results)
    options = RemoveOptions(
        names=names,
        checkpoints=checkpoints,
        superseded=superseded,
        outputs=outputs,
        unused_data=unused_data,
        orphans=orphans,
        caches=caches,
    )
    if dry_run:
        return plan_removal(folder, options)
    with folders_lock(folder):
        plan = plan_removal(folder, options)
        # A run that trains may start from a trunk state, or be about to name a dataset.
        is_general = caches or unused_data
        run_ids = list_folders(str(folder / "runs")) if is_general else plan.run_ids
        with nothing_runs(Results(folder), plan.sweeps, run_ids):
            apply_removal(folder, plan)
    collect(folder)
    return plan


def existing(results: str | Path) -> Path:
    """Return the path of a results folder that exists.

    Raises
    ------
    DataError
        If it does not.
    """
    folder = Path(results)
    if not folder.is_dir():
        raise DataError(
            f"results folder {folder}, which does not exist",
            "a results folder",
            "Name it with --results.",
        )
    return folder


def archive(
    name: str,
    file: str | Path,
    *,
    results: str | Path = DEFAULT_RESULTS,
    with_data: bool = True,
    with_checkpoints: bool = True,
    progress: Progress | None = None,
) -> ArchiveReport:
    """Write a sweep with its runs and dataset, or an import, to one file. Nothing is removed.

    Parameters
    ----------
    name : str
        The sweep or import.
    file : str or Path
        A new file that ends in ``.tar.gz`` or ``.tar.zst``.
    with_data : bool
        Whether the file holds the dataset of the sweep.
    with_checkpoints : bool
        Whether it holds checkpoints.
    progress : callable, optional
        Receives what is done, and how many bytes of how many.

    Raises
    ------
    UsageError
        If the name is unknown, a run is training, or the file exists.
    DataError
        If something cannot be read or written.
    """
    from scalelab.launch.active import nothing_runs
    from scalelab.records.archive import parts_of, write_archive
    from scalelab.records.parts import RUN, SWEEP
    from scalelab.records.sweep_dir import Results

    folder = existing(results)
    parts = parts_of(folder, name)
    sweeps = [part.name for part in parts if part.kind == SWEEP]
    run_ids = [part.name for part in parts if part.kind == RUN]
    with nothing_runs(Results(folder), sweeps, run_ids):
        return write_archive(
            folder,
            name,
            Path(file),
            with_data=with_data,
            with_checkpoints=with_checkpoints,
            progress=progress,
        )


def restore(
    file: str | Path,
    *,
    results: str | Path = DEFAULT_RESULTS,
    conflicts: str | None = None,
    rename: Mapping[str, str] | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> MergePlan:
    """Bring the content of an archive in. The whole archive is checked first.

    Parameters
    ----------
    file : str or Path
        A file of `archive`.
    conflicts, rename, dry_run, progress
        As in `merge`.

    Raises
    ------
    UsageError
        If an option is not valid, or a run that would change is training.
    DataError
        If the archive is damaged or not safe, it contradicts the folder, or the folder cannot be
        written.
    """
    from scalelab.launch.active import nothing_runs
    from scalelab.launch.lock import folders_lock
    from scalelab.records.merge import THEIRS, place_archive, plan_merge, scratch_folder
    from scalelab.records.parts import RUN, SWEEP
    from scalelab.records.sweep_dir import Results
    from scalelab.records.unpack import unpack
    from scalelab.store.collect import collect
    from scalelab.store.live import forget_live

    _check_choice(conflicts)
    here = Results(Path(results))
    with folders_lock(here.path), scratch_folder(here.path) as scratch:
        unpacked, staged = scratch / "archive", scratch / "staged"
        unpacked.mkdir()
        staged.mkdir()
        unpack(Path(file), unpacked, progress=progress)
        plan = plan_merge(here.path, unpacked, prefer=conflicts, renames=rename, is_archive=True)
        if dry_run:
            return plan
        plan.refuse_conflicts()
        changed = {kind: [p.name for p in plan.changed if p.kind == kind] for kind in (RUN, SWEEP)}
        with nothing_runs(here, changed[SWEEP], changed[RUN]):
            place_archive(plan, staged)
    if conflicts == THEIRS:
        forget_live(here.path)
    collect(here.path)
    return plan


def _check_choice(conflicts: str | None) -> None:
    from scalelab.records.merge import OURS, THEIRS

    if conflicts not in (None, OURS, THEIRS):
        raise UsageError(f"conflicts {conflicts!r}", "ours or theirs", "Try --conflicts ours.")


def disk_usage(results: str | Path = DEFAULT_RESULTS) -> DiskUsage:
    """Return what takes space in a results folder, and what could go with which command.

    Raises
    ------
    DataError
        If the folder does not exist, or a plan cannot be read.
    """
    from scalelab.records.space import disk_usage as measure

    return measure(existing(results))
