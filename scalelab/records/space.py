"""What takes space in a results folder, and what could go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scalelab.errors import DataError
from scalelab.records.files import list_entries, list_folders
from scalelab.records.parts import (
    FOLDERS,
    OUT_FOLDER,
    RUN,
    SCRATCH,
    SWEEP,
    Part,
    checkpoint_folders,
    disk_bytes,
)
from scalelab.records.removal import (
    RemoveOptions,
    finished_checkpoints,
    plan_removal,
    superseded_attempts,
    sweep_members,
)
from scalelab.records.run_dir import RunDir
from scalelab.records.sweep_dir import Results
from scalelab.units import plural

FREEING = (
    ("checkpoints", "checkpoints of finished runs", RemoveOptions(checkpoints=True)),
    (
        "superseded",
        "attempts of finished runs that the result is not from",
        RemoveOptions(superseded=True),
    ),
    ("outputs", "files of users' programs in finished runs", RemoveOptions(outputs=True)),
    ("unused-data", "datasets that no run uses", RemoveOptions(unused_data=True)),
    ("orphans", "runs that no sweep has", RemoveOptions(orphans=True)),
    (
        "caches",
        "trunk states and leftovers of interrupted commands",
        RemoveOptions(caches=True),
    ),
)
"""Options of `scalelab remove`, and what each removes."""

_KINDS = {
    "data": "datasets",
    "imports": "imports",
    "sweeps": "plans and jobs",
    "forecasts": "forecasts",
    "notes": "notes",
    "trunks": "trunk states",
    "source": "source code of runs",
    "scalelab.duckdb": "tables",
    ".scalelab-live.duckdb": "tables",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Removable:
    """Something that could go.

    Attributes
    ----------
    what : str
    n_bytes : int
        Space on the disk that becomes free.
    command : str
        The command that frees it.
    """

    what: str
    n_bytes: int
    command: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskUsage:
    """Use of the disk by a results folder.

    Attributes
    ----------
    n_bytes : int
        All of it, as ``du`` counts it.
    kinds : Mapping[str, int]
        Bytes by kind, the largest first; they add up to all of it.
    removable : tuple of Removable
        What could go, the largest first. A file may be in several.
    problems : tuple of str
        Why something is missing above.
    """

    n_bytes: int
    kinds: Mapping[str, int]
    removable: tuple[Removable, ...]
    problems: tuple[str, ...]


def disk_usage(results: Path) -> DiskUsage:
    """Measure a results folder.

    Raises
    ------
    DataError
        If a plan cannot be read.
    """
    folder = Results(results)
    kinds: dict[str, int] = {}
    for entry in list_entries(results):
        kind = "leftovers" if entry.name.startswith(SCRATCH) else _KINDS.get(entry.name, "other")
        if entry.name == FOLDERS[RUN]:
            kind = "curves and records"
        kinds[kind] = kinds.get(kind, 0) + disk_bytes(entry)
    sizes = {}
    for run_id in list_folders(str(results / FOLDERS[RUN])):
        run = folder.run(run_id)
        sizes[run_id] = disk_bytes(run.path)
        for kind, n_bytes in _run_kinds(run).items():
            kinds[kind] = kinds.get(kind, 0) + n_bytes
            kinds["curves and records"] -= n_bytes
    kinds["other"] = kinds.get("other", 0) + disk_bytes(results) - sum(kinds.values())
    removable, problems = [], []
    for option, what, options in FREEING:
        try:
            plan = plan_removal(results, options)
        except DataError as error:
            problems.append(f"{what}: {error.given}")
            continue
        count = len(plan.parts) + len(plan.folders)
        if count:
            command = f"scalelab remove --{option}"
            removable.append(Removable(what=what, n_bytes=plan.n_bytes, command=command))
    removable += _sweeps(folder, sizes)
    return DiskUsage(
        n_bytes=sum(kinds.values()),
        kinds=dict(sorted(((k, n) for k, n in kinds.items() if n), key=lambda item: -item[1])),
        removable=tuple(sorted(removable, key=lambda line: -line.n_bytes)),
        problems=tuple(problems),
    )


def _run_kinds(run: RunDir) -> dict[str, int]:
    """Return the bytes of a run that are not its curves and records, by kind."""
    superseded = superseded_attempts(run)
    done = finished_checkpoints(run)
    gone = {attempt.path for attempt in superseded}
    is_finished = bool(done)
    checkpoints = done or [p for a in run.attempts() for p in checkpoint_folders(a.path)]
    kept = [path for path in checkpoints if path.parent not in gone]
    which = "finished" if is_finished else "unfinished"
    places = [run.path, *(attempt.path for attempt in run.attempts())]
    outputs = [place / OUT_FOLDER for place in places if place not in gone]
    return {
        "files of users' programs": sum(disk_bytes(p) for p in outputs if p.is_dir()),
        f"checkpoints of {which} runs": sum(map(disk_bytes, kept)),
        "superseded attempts": sum(map(disk_bytes, gone)),
    }


def _sweeps(results: Results, sizes: Mapping[str, int]) -> list[Removable]:
    members = sweep_members(results)
    count: dict[str, int] = {}
    for run_ids in members.values():
        for run_id in run_ids:
            count[run_id] = count.get(run_id, 0) + 1
    found = []
    for name, run_ids in members.items():
        own = [run_id for run_id in run_ids if count[run_id] == 1]
        n_bytes = disk_bytes(Part(SWEEP, name).path(results.path))
        n_bytes += sum(sizes.get(run_id, 0) for run_id in own)
        shared = len(run_ids) - len(own)
        more = f"; {plural(shared, 'run')} of other sweeps stay" if shared else ""
        what = f"sweep {name}, {plural(len(own), 'run')}{more}"
        found.append(Removable(what=what, n_bytes=n_bytes, command=f"scalelab remove {name}"))
    return found
