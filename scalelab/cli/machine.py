"""Checks of ``scalelab doctor`` on this machine: results folder, disk, clock, cores, memory.

Each function returns one or more `Check` and does not raise. The only change on disk is a probe
file in the results folder, which is removed again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

OK, MISSING, PROBLEM = "ok", "missing", "problem"

NETWORK_FILESYSTEMS = frozenset(
    (
        *("9p", "afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "orangefs"),
        *("panfs", "smb3", "wekafs", "fuse.ceph", "fuse.glusterfs", "fuse.juicefs", "fuse.sshfs"),
    )
)
LOW_DISK_BYTES = 2 << 30
LOW_MEMORY_BYTES = 2 << 30
LARGEST_CLOCK_SKEW_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line of ``scalelab doctor``.

    Attributes
    ----------
    name : str
        What was checked.
    status : str
        ``ok``, ``missing`` (optional) or ``problem``.
    found : str
        What was found.
    needed_for : str
        Commands or features that need it.
    do : str
        How to fix it; may be empty.
    is_base : bool
        Whether planning, importing and fitting need it.
    """

    name: str
    status: str
    found: str
    needed_for: str
    do: str = ""
    is_base: bool = False


def check_results(results: Path) -> list[Check]:
    """Check the results folder: write access, file system, free space and clock."""
    use = "every command that writes results"
    folder = _nearest_folder(results)
    try:
        skew_s, lacking = _try_out(folder)
    except OSError as error:
        return [
            Check(
                name="results folder",
                status=PROBLEM,
                found=f"{folder} cannot be written ({error.strerror})",
                needed_for=use,
                do=f"Make it writable: chmod u+w {folder}. Or name another folder with --results.",
                is_base=True,
            )
        ]
    kind = filesystem_of(folder)
    where = f"{results.absolute()}{'' if folder == results else ' (does not exist yet)'} on {kind}"
    is_remote = kind in NETWORK_FILESYSTEMS
    if lacking:
        status, found = PROBLEM, f"{where}, which lacks {' and '.join(lacking)}"
        do = "Name a folder on a POSIX file system, for example --results /data/results."
    else:
        status, found = OK, f"{where}, {'a network' if is_remote else 'a local'} file system"
        do = "Run `collect` on one machine at a time. All machines must mount it." * is_remote
    is_skewed = abs(skew_s) > LARGEST_CLOCK_SKEW_S
    return [
        Check(
            name="results folder", status=status, found=found, needed_for=use, do=do, is_base=True
        ),
        _disk_check(folder),
        Check(
            name="clock",
            status=PROBLEM if is_skewed else OK,
            found=f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}, "
            f"{abs(skew_s):.1f} s from the results folder's",
            needed_for="detecting runs that have died",
            do="Synchronize the clocks of this machine and the file server (NTP)." * is_skewed,
        ),
    ]


def _disk_check(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    is_low = free < LOW_DISK_BYTES
    return Check(
        name="disk",
        status=PROBLEM if is_low else OK,
        found=f"{free / 2**30:.1f} GiB free",
        needed_for="checkpoints and tokens",
        do="Free disk space, or choose a folder on another disk with --results." if is_low else "",
        is_base=True,
    )


def check_memory() -> list[Check]:
    """Check the CPU cores that this process may use, and the free memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free = free_memory_bytes()
    is_low = free is not None and free < LOW_MEMORY_BYTES
    return [
        Check(
            name="cores",
            status=OK,
            found=f"{cores} of {os.cpu_count()} usable",
            needed_for="training: one worker per core",
        ),
        Check(
            name="memory",
            status=PROBLEM if is_low else OK,
            found="unknown" if free is None else f"{free / 2**30:.1f} GiB free",
            needed_for="training",
            do="Close other programs, or use fewer workers." if is_low else "",
        ),
    ]


def free_memory_bytes() -> int | None:
    """Return the memory available without swapping, within the limit of the cgroup."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        table = dict(line.split(":", 1) for line in lines)
        free = int(table["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        free = min(free, limit - used)
    return free


def filesystem_of(folder: Path) -> str:
    """Return the file system type of a folder, such as ext4 or nfs4."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "an unknown file system"
    return filesystem_in(mounts, folder.resolve())


def filesystem_in(mounts: Sequence[str], folder: Path) -> str:
    """Return the type of the closest mount above ``folder``, from ``mountinfo`` (see proc(5)).

    Of several mounts at one place, the last one is visible.
    """
    best, kind = -1, "an unknown file system"
    for line in mounts:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        if folder.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind


def _nearest_folder(path: Path) -> Path:
    return next((p for p in (path, *path.absolute().parents) if p.is_dir()), Path("/"))


def _try_out(folder: Path) -> tuple[float, list[str]]:
    """Write a probe file; return the clock skew (s) and the features that the file system lacks."""
    probe = folder / f".scalelab-doctor-{secrets.token_hex(8)}"
    linked, renamed = probe.with_suffix(".linked"), probe.with_suffix(".renamed")
    lacking: list[str] = []
    try:
        with probe.open("x") as file:
            before = time.time()
            file.write("probe")
            file.flush()
            os.fsync(file.fileno())
            between = (before + time.time()) / 2
            skew_s = probe.stat().st_mtime - between
            with _noting(lacking, "file locks"):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with _noting(lacking, "hard links"):
            os.link(probe, linked)
        with _noting(lacking, "renaming"):
            probe.replace(renamed)
    finally:
        for path in (probe, linked, renamed):
            path.unlink(missing_ok=True)
    return skew_s, lacking


@contextlib.contextmanager
def _noting(lacking: list[str], what: str) -> Iterator[None]:
    try:
        yield
    except OSError:
        lacking.append(what)
