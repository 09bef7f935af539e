"""Remove parts of a results folder, or what their finished runs no longer need.

`plan_removal` looks and changes nothing. `apply_removal` moves everything into a hidden folder
first, so a reader sees a part whole or not at all. Runs go before the sweeps that name them: after
a removal that was killed, the same command removes the rest.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scalelab.corpus.build import LEFTOVER_AGE_S
from scalelab.errors import DataError, UsageError, did_you_mean
from scalelab.records.files import list_entries, list_folders, read_json, write_atomically
from scalelab.records.merge import scratch_folder
from scalelab.records.parts import (
    DATASET,
    FOLDERS,
    IMPORT,
    OUT_FOLDER,
    RUN,
    SCRATCH,
    SWEEP,
    Part,
    checkpoint_folders,
    data_of,
    disk_bytes,
    list_parts,
)
from scalelab.records.run_dir import Attempt, RunDir
from scalelab.records.states import FINAL
from scalelab.records.sweep_dir import Results
from scalelab.units import plural

MIN_PREFIX = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoveOptions:
    """What to remove.

    Attributes
    ----------
    names : tuple of str
        Sweeps, imports, and runs (run_id or its first characters). With ``checkpoints``,
        ``superseded`` or ``outputs``, only those of these names' runs are removed; without names,
        of all runs.
    checkpoints : bool
        Whether to remove the checkpoints of finished runs.
    superseded : bool
        Whether to remove the attempts of finished runs that the result does not come from.
    outputs : bool
        Whether to remove what users' programs of finished runs wrote beside curve and record.
    unused_data : bool
        Whether to remove datasets that no run uses.
    orphans : bool
        Whether to remove runs that no sweep has.
    caches : bool
        Whether to remove trunk states, and what killed commands left behind.
    """

    names: tuple[str, ...] = ()
    checkpoints: bool = False
    superseded: bool = False
    outputs: bool = False
    unused_data: bool = False
    orphans: bool = False
    caches: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class RemovalPlan:
    """What a removal takes away.

    Attributes
    ----------
    parts : tuple of Part
        Parts that are removed whole.
    folders : tuple of Path
        Checkpoints, attempts and caches that are removed.
    shared : Mapping[str, tuple of str]
        Runs that stay, and the other sweeps that have them.
    shortened : Mapping[str, tuple of str]
        Sweeps whose plans lose the runs that are named.
    run_ids : tuple of str
        Runs of which anything is removed.
    n_bytes : int
        Space on the disk that becomes free.
    """

    parts: tuple[Part, ...] = ()
    folders: tuple[Path, ...] = ()
    shared: dict[str, tuple[str, ...]] = field(default_factory=dict)
    shortened: dict[str, tuple[str, ...]] = field(default_factory=dict)
    run_ids: tuple[str, ...] = ()
    n_bytes: int = 0

    @property
    def sweeps(self) -> tuple[str, ...]:
        """Sweeps that are removed or lose runs."""
        return (*(part.name for part in self.parts if part.kind == SWEEP), *self.shortened)


def plan_removal(results: Path, options: RemoveOptions) -> RemovalPlan:
    """Return what a removal would take away.

    Raises
    ------
    UsageError
        If nothing is named, or a name is unknown or ambiguous.
    DataError
        If a plan cannot be read: its runs may be shared.
    """
    is_narrow = options.checkpoints or options.superseded or options.outputs
    is_global = options.unused_data or options.orphans or options.caches
    if options.names and is_global:
        raise UsageError(
            "names with an option that is about the whole results folder",
            "names alone, or with --checkpoints, --superseded or --outputs",
            "Run two commands.",
        )
    if not (options.names or is_narrow or is_global):
        raise UsageError(
            "no sweep, run or option",
            "what to remove",
            "See what takes space with `scalelab doctor --disk`.",
        )
    folder = Results(results)
    members = sweep_members(folder)
    parts: list[Part] = []
    folders: list[Path] = []
    shared: dict[str, tuple[str, ...]] = {}
    shortened: dict[str, tuple[str, ...]] = {}
    named = [_find(results, name, members) for name in dict.fromkeys(options.names)]
    touched: list[str] = []
    if is_narrow:
        touched = [run_id for part in named for run_id in _runs_of(part, members)]
        if not options.names:
            touched = list_folders(str(results / FOLDERS[RUN]))
        found = {run_id: list(_parts_of_run(folder.run(run_id), options)) for run_id in touched}
        touched = [run_id for run_id, paths in found.items() if paths]
        folders += [path for paths in found.values() for path in paths]
    elif named:
        parts, shared, shortened = _named_parts(named, members)
    if options.orphans:
        parts += [Part(RUN, run_id) for run_id in orphans(folder, members)]
    if options.unused_data:
        parts += [Part(DATASET, name) for name in unused_datasets(folder)]
    if options.caches:
        folders += caches(results)
    paths = [*(part.path(results) for part in parts), *folders]
    return RemovalPlan(
        parts=tuple(parts),
        folders=tuple(folders),
        shared=shared,
        shortened=shortened,
        run_ids=(*(part.name for part in parts if part.kind == RUN), *touched),
        n_bytes=sum(map(disk_bytes, paths)),
    )


def apply_removal(results: Path, plan: RemovalPlan) -> None:
    """Remove what a plan says.

    Raises
    ------
    DataError
        If the folder cannot be written.
    """
    with scratch_folder(results) as scratch:
        for index, part in enumerate(part for part in plan.parts if part.kind == RUN):
            _move(part.path(results), scratch / f"run{index}")
        for name, run_ids in plan.shortened.items():
            _shorten(results, name, run_ids)
        rest = [part.path(results) for part in plan.parts if part.kind != RUN]
        for index, path in enumerate((*rest, *plan.folders)):
            _move(path, scratch / f"part{index}")


def sweep_members(results: Results) -> dict[str, tuple[str, ...]]:
    """Return the runs of each sweep.

    Raises
    ------
    DataError
        If a plan cannot be read.
    """
    names = sorted(path.parent.name for path in (results.path / "sweeps").glob("*/plan.json"))
    return {name: results.load_plan(name).run_ids for name in names}


def orphans(results: Results, members: dict[str, tuple[str, ...]]) -> list[str]:
    """Return the runs that no sweep has."""
    planned = {run_id for run_ids in members.values() for run_id in run_ids}
    return [name for name in list_folders(str(results.path / "runs")) if name not in planned]


def unused_datasets(results: Results) -> list[str]:
    """Return the datasets that no run uses.

    Raises
    ------
    DataError
        If the spec of a run cannot be read.
    """
    used: set[str] = set()
    for run_id in list_folders(str(results.path / "runs")):
        spec = read_json(results.run(run_id).path / "spec.json")
        if spec is None:
            raise DataError(
                f"run {run_id} without a readable spec.json, which may use any dataset",
                "runs that can be read",
                f"Remove it with `scalelab remove {run_id}`, or run the sweep's command again.",
            )
        used.update(data_of(spec))
    datasets = [part.name for part in list_parts(results.path) if part.kind == DATASET]
    return [name for name in datasets if name not in used]


def caches(results: Path) -> list[Path]:
    """Return the folders of trunk states and of what killed commands left behind."""
    old_s = time.time() - LEFTOVER_AGE_S
    left = [
        entry
        for entry in list_entries(results / FOLDERS[DATASET])
        if entry.name.startswith(".preparing-") and entry.stat().st_mtime < old_s
    ]
    left += [entry for entry in list_entries(results) if entry.name.startswith(SCRATCH)]
    trunks = Results(results).trunks
    return sorted([*left, trunks] if trunks.exists() else left)


def superseded_attempts(run: RunDir) -> list[Attempt]:
    """Return the attempts of a finished run from which its result does not come."""
    accepted = run.accepted()
    if accepted is None or accepted.read_record() is None:
        return []
    attempts = {attempt.number: attempt for attempt in run.attempts()}
    number: int | None = accepted.number
    while number in attempts:
        note = attempts.pop(number).read_note()
        source = note.get("resumed_from")
        number = source.get("attempt") if isinstance(source, dict) else None
    return list(attempts.values())


def finished_checkpoints(run: RunDir) -> list[Path]:
    """Return the folders of the checkpoints of a finished run; of another one, none."""
    if run.status() not in FINAL:
        return []
    return [path for attempt in run.attempts() for path in checkpoint_folders(attempt.path)]


def finished_outputs(run: RunDir) -> list[Path]:
    """Return the folders of what a user's program wrote in a finished run; of another one, none."""
    if run.status() not in FINAL:
        return []
    places = [run.path, *(attempt.path for attempt in run.attempts())]
    return [path for place in places if (path := place / OUT_FOLDER).is_dir()]


def _parts_of_run(run: RunDir, options: RemoveOptions) -> Iterator[Path]:
    gone = [attempt.path for attempt in superseded_attempts(run)] if options.superseded else []
    yield from gone
    if options.checkpoints:
        yield from (path for path in finished_checkpoints(run) if path.parent not in gone)
    if options.outputs:
        yield from (path for path in finished_outputs(run) if path.parent not in gone)


def _named_parts(
    named: Sequence[Part], members: dict[str, tuple[str, ...]]
) -> tuple[list[Part], dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Return the parts to remove, the shared runs with their sweeps, and the shortened plans."""
    removed = {part.name for part in named if part.kind == SWEEP}
    holders: dict[str, list[str]] = {}
    for name, members_of in members.items():
        if name not in removed:
            for run_id in members_of:
                holders.setdefault(run_id, []).append(name)
    shared: dict[str, tuple[str, ...]] = {}
    shortened: dict[str, list[str]] = {}
    gone: dict[str, None] = {}
    for part in named:
        for run_id in _runs_of(part, members):
            others = holders.get(run_id, [])
            if len(others) > (part.kind == RUN):
                shared[run_id] = tuple(others)
                continue
            gone[run_id] = None
            for name in others:
                shortened.setdefault(name, []).append(run_id)
    parts = [Part(RUN, run_id) for run_id in gone]
    parts += [part for part in dict.fromkeys(named) if part.kind != RUN]
    shared = {run_id: names for run_id, names in shared.items() if run_id not in gone}
    return parts, shared, {name: tuple(found) for name, found in shortened.items()}


def _runs_of(part: Part, members: dict[str, tuple[str, ...]]) -> Sequence[str]:
    return [part.name] if part.kind == RUN else members.get(part.name, ())


def _find(results: Path, name: str, members: dict[str, tuple[str, ...]]) -> Part:
    if name in members:
        return Part(SWEEP, name)
    imports = list_folders(str(results / FOLDERS[IMPORT]))
    if name in imports:
        return Part(IMPORT, name)
    run_ids = list_folders(str(results / FOLDERS[RUN]))
    found = [run_id for run_id in run_ids if run_id.startswith(name)]
    if name in found or (len(found) == 1 and len(name) >= MIN_PREFIX):
        return Part(RUN, name if name in found else found[0])
    known = [*members, *imports]
    matches = f", which matches {plural(len(found), 'run')}" if found else ""
    raise UsageError(
        f"{name!r}{matches or f', which is no sweep, import or run in {results}'}",
        f"one of {', '.join(known)}, or a run ID or its first {MIN_PREFIX} or more characters"
        if known
        else f"a run ID or its first {MIN_PREFIX} or more characters",
        did_you_mean(name, known) + "List sweeps with `scalelab doctor --disk`.",
    )


def _move(path: Path, target: Path) -> None:
    """Move a folder or link away; a part that is gone already is fine."""
    with contextlib.suppress(FileNotFoundError):
        path.rename(target)
        if target.is_symlink():
            target.unlink()


def _shorten(results: Path, name: str, run_ids: Sequence[str]) -> None:
    path = Part(SWEEP, name).path(results) / "plan.json"
    plan = json.loads(path.read_text(encoding="utf-8"))
    plan["rows"] = [row for row in plan["rows"] if row["run_id"] not in run_ids]
    write_atomically(path, json.dumps(plan, indent=1), durable=True)
