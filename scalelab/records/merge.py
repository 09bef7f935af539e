"""Merge another results folder into this one: runs, plans, imports, forecasts and datasets.

`plan_merge` compares the folders and writes nothing. `apply_merge` copies each part into a hidden
folder and puts it in place by a rename. A merge that is killed leaves whole parts; the same merge
again adds what is missing. The other folder is only read.

Caches (trunk states, qualification), databases and the SLURM jobs of the other folder stay there.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scalelab.errors import DataError, ScalelabError, UsageError, unwritable
from scalelab.records.files import fsync, fsync_tree, list_entries
from scalelab.records.merge_named import NamedParts
from scalelab.records.merge_run import CLAIMS, Conflict, merge_run
from scalelab.records.notes import renamed_note
from scalelab.records.parts import (
    DATASET,
    FOLDERS,
    NOTE,
    RUN,
    SCRATCH,
    SOURCE,
    Part,
    Progress,
    Write,
    copy,
    list_parts,
    odd_entries,
)
from scalelab.records.run_dir import RunDir
from scalelab.units import plural

OURS, THEIRS = "ours", "theirs"
_WRITES_IN_A_BATCH = 500
_BATCH_BYTES = 1 << 30
_SHOWN = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class MergePlan:
    """What a merge would write.

    Attributes
    ----------
    new, changed : tuple of Part
        Parts that this folder does not have, and parts that get more.
    n_same : int
        Parts that need nothing.
    conflicts : tuple of Conflict
        Contradictions that nobody has decided.
    left_out : tuple of str
        What is not merged, and why.
    n_bytes : int
        Bytes to copy.
    writes : tuple of Write
        In the order of writing.
    """

    new: tuple[Part, ...]
    changed: tuple[Part, ...]
    n_same: int
    conflicts: tuple[Conflict, ...]
    left_out: tuple[str, ...]
    n_bytes: int
    writes: tuple[Write, ...]

    def refuse_conflicts(self) -> None:
        """Raise DataError if there are conflicts."""
        if not self.conflicts:
            return
        lines = [f"{each.part.label}: {each.what}" for each in self.conflicts[:_SHOWN]]
        if len(self.conflicts) > _SHOWN:
            lines.append(f"and {len(self.conflicts) - _SHOWN} more")
        is_named = any(each.part.kind != RUN for each in self.conflicts)
        rename = "--rename NAME=NEW brings the other one in under a new name. " * is_named
        raise DataError(
            f"{plural(len(self.conflicts), 'conflict')}; nothing was merged:\n  "
            + "\n  ".join(lines),
            "folders that agree, or a decision",
            f"{rename}--conflicts ours keeps this folder's state, --conflicts theirs takes the "
            "other's. See all with --dry-run --json.",
        )


def plan_merge(
    ours: Path,
    theirs: Path,
    *,
    prefer: str | None = None,
    renames: Mapping[str, str] | None = None,
    open_there: Mapping[str, str] | None = None,
    is_archive: bool = False,
) -> MergePlan:
    """Compare two results folders.

    Parameters
    ----------
    ours, theirs : Path
        The folder that gets the parts, and the other one.
    prefer : {"ours", "theirs"}, optional
        Whose state counts where they contradict; default: nobody's, which is a conflict.
    renames : Mapping[str, str], optional
        New names of their sweeps, imports and forecasts.
    open_there : Mapping[str, str], optional
        Token of the attempt that runs there now, by run_id; it is left out.
    is_archive : bool
        Whether theirs is an unpacked archive: SLURM jobs of new sweeps come along, and the folder
        may be in ours.

    Raises
    ------
    UsageError
        If a name to change does not exist, or is not valid.
    DataError
        If a folder is not a results folder, or one is inside the other.
    """
    if not is_archive:
        _check_folders(ours, theirs)
    named = NamedParts(ours, theirs, prefer=prefer, renames=renames or {}, with_jobs=is_archive)
    new: list[Part] = []
    changed: list[Part] = []
    writes: list[Write] = []
    conflicts: list[Conflict] = []
    left_out = [
        f"{entry.name}: not a part of a results folder that is merged"
        for entry in sorted(list_entries(theirs))
        if not entry.name.startswith(".") and entry.name not in _known_entries()
    ]
    n_same = 0
    for part in list_parts(theirs):
        target = part.path(ours)
        found: Sequence[Write] = ()
        issues: Sequence[Conflict] = ()
        is_new = not target.exists()
        if part.kind in (DATASET, SOURCE):
            found = [Write(target=target, source=part.path(theirs))] if is_new else []
        elif part.kind == NOTE:
            renamed = renamed_note(part.path(theirs), renames or {})
            found = (
                [Write(target=target, source=part.path(theirs), texts=renamed)] if is_new else []
            )
        elif part.kind == RUN:
            try:
                found, issues = _merge_run(ours, theirs, part.name, prefer, open_there or {})
            except (ScalelabError, OSError) as error:
                given = error.given if isinstance(error, ScalelabError) else str(error)
                left_out.append(f"{part.label}: {given}")
                continue
            if part.name in (open_there or {}):
                left_out.append(f"{part.label}: its newest attempt runs there; merge again later")
        else:
            try:
                part, found, issues = named.merge(part)
            except ScalelabError as error:
                left_out.append(f"{part.label}: {error.given}")
                continue
            is_new = not part.path(ours).exists()
        writes += found
        for write in found:
            if write.source is not None and (odd := odd_entries(write.source)):
                left_out.append(f"{part.label}: {odd[0]} is no file{_more(odd)}")
        if prefer is None or part.kind != RUN:
            conflicts += issues
        if found:
            (new if is_new else changed).append(part)
        n_same += not found and not issues
    return MergePlan(
        new=tuple(new),
        changed=tuple(changed),
        n_same=n_same,
        conflicts=tuple(conflicts),
        left_out=tuple(left_out),
        n_bytes=sum(write.n_bytes() for write in writes),
        writes=tuple(writes),
    )


def apply_merge(ours: Path, plan: MergePlan, *, progress: Progress | None = None) -> None:
    """Copy the parts of a plan without conflicts.

    Raises
    ------
    DataError
        If there are conflicts, a target exists now, or the folder cannot be written.
    """
    plan.refuse_conflicts()
    done = 0

    def wrote(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress is not None:
            progress("merging", done, plan.n_bytes)

    with scratch_folder(ours) as scratch:
        _write_all(plan.writes, scratch, wrote, moves=False)


def place_archive(plan: MergePlan, scratch: Path) -> None:
    """Move the parts of a plan without conflicts out of an unpacked archive.

    ``scratch`` is an empty folder in the results folder.

    Raises
    ------
    DataError
        As for `apply_merge`.
    """
    plan.refuse_conflicts()
    _write_all(plan.writes, scratch, lambda n_bytes: None, moves=True)


def _write_all(
    writes: Sequence[Write], scratch: Path, wrote: Callable[[int], None], *, moves: bool
) -> None:
    for number, batch in enumerate(_batches(writes)):
        staged = [scratch / f"{number}-{index}" for index in range(len(batch))]
        for write, place in zip(batch, staged, strict=True):
            copy(write, place, moves=moves, wrote=wrote)
        fsync_tree(scratch)
        for write, place in zip(batch, staged, strict=True):
            _put(write, place)
        for parent in {write.target.parent for write in batch}:
            fsync(parent)


@contextlib.contextmanager
def scratch_folder(results: Path) -> Iterator[Path]:
    """Yield an empty hidden folder in a results folder, and remove it and those of killed commands.

    The caller holds the lock of the results folder.

    Raises
    ------
    DataError
        If the results folder cannot be written.
    """
    for entry in list_entries(results):
        if entry.name.startswith(SCRATCH):
            shutil.rmtree(entry, ignore_errors=True)
    scratch = results / f"{SCRATCH}{secrets.token_hex(4)}"
    try:
        scratch.mkdir(parents=True)
        yield scratch
    except OSError as error:
        raise unwritable(results, "the parts", error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _put(write: Write, staged: Path) -> None:
    write.target.parent.mkdir(parents=True, exist_ok=True)
    if write.target.exists():
        if not write.replaces:
            raise DataError(
                f"{write.target}, which another process has just written",
                "a results folder that nothing else changes",
                "Run the same command again: it continues.",
            )
        if write.target.is_dir():
            aside = staged.with_name(f"{staged.name}.old")
            write.target.rename(aside)
    staged.rename(write.target)


def _batches(writes: Sequence[Write]) -> Iterator[list[Write]]:
    batch: list[Write] = []
    n_bytes = 0
    for write in writes:
        batch.append(write)
        n_bytes += write.n_bytes()
        if len(batch) >= _WRITES_IN_A_BATCH or n_bytes >= _BATCH_BYTES:
            yield batch
            batch, n_bytes = [], 0
    if batch:
        yield batch


def _merge_run(
    ours: Path, theirs: Path, run_id: str, prefer: str | None, open_there: Mapping[str, str]
) -> tuple[Sequence[Write], Sequence[Conflict]]:
    here, there = RunDir(ours / FOLDERS[RUN] / run_id), RunDir(theirs / FOLDERS[RUN] / run_id)
    there.read_spec()
    token = open_there.get(run_id)
    skipped: Collection[str] = () if token is None else (token,)
    if here.path.exists():
        if here.has_spec():
            here.read_spec()
        found = merge_run(here, there, prefers_theirs=prefer == THEIRS, skipped=frozenset(skipped))
        return found.writes, found.conflicts
    accepted = there.accepted()
    if accepted is not None and accepted.read_record() is None:
        raise DataError(
            "its accepted attempt has no valid record.json there", "a whole result", "Train it."
        )
    skips = {
        name
        for attempt in there.attempts()
        if attempt.token in skipped
        for name in (f"attempts/{attempt.path.name}", f"{CLAIMS}/{attempt.number}")
    }
    return [Write(target=here.path, source=there.path, skips=frozenset(skips))], []


def _more(names: Sequence[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""


def _known_entries() -> set[str]:
    caches = ("trunks", "qualification", "scalelab.duckdb", "tensorboard", "wandb")
    return {*FOLDERS.values(), *caches}


def _check_folders(ours: Path, theirs: Path) -> None:
    one, other = ours.resolve(), theirs.resolve()
    if not theirs.is_dir():
        raise UsageError(
            f"{theirs}, which is not a folder",
            "the results folder to bring in",
            "Name it, for example: scalelab merge /mnt/cluster/results",
        )
    if one == other or one.is_relative_to(other) or other.is_relative_to(one):
        raise UsageError(
            f"{theirs}, which is or shares the results folder {ours}",
            "two separate results folders",
            "Name the folder to bring in, and this one with --results.",
        )
    if not any((theirs / name).is_dir() for name in FOLDERS.values()):
        raise DataError(
            f"{theirs}, which has no {', '.join(list(FOLDERS.values())[:-1])} or "
            f"{list(FOLDERS.values())[-1]}",
            "a results folder that scalelab wrote",
            "Name the folder that contains runs/ and sweeps/.",
        )
