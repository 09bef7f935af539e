"""The collector's own database: one writer under a lock, and the snapshot that it publishes.

DuckDB admits one writing process and no reader beside it, so the live file belongs to the collector
alone, and readers get a copy that replaces the earlier one by rename. Both can be deleted: the next
collection builds them again from the files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.errors import DataError
from scalelab.store.schema import SCHEMA_VERSION, create_statements

if TYPE_CHECKING:
    import duckdb

SNAPSHOT_FILE = "scalelab.duckdb"
LIVE_FILE = ".scalelab-live.duckdb"
LOCK_FILE = ".scalelab-collect.lock"
LOCK_POLL_S = 0.05
LIVE_DIR_VARIABLE = "SCALELAB_LIVE_DIR"
NETWORK_FILE_SYSTEMS = {
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "gpfs",
    "lustre", "nfs", "nfs4", "panfs", "pvfs2", "smb3", "smbfs", "wekafs",
}  # fmt: skip

_MOUNTS = Path("/proc/self/mounts")
_COPY_BYTES = 1 << 30


def snapshot_path(results: Path) -> Path:
    """Return where readers find the published tables."""
    return results / SNAPSHOT_FILE


def live_folder(results: Path) -> Path:
    """Return where the collector keeps its own database and lock.

    The results folder itself, or one of its own below ``SCALELAB_LIVE_DIR``.
    """
    parent = os.environ.get(LIVE_DIR_VARIABLE)
    if not parent:
        return results
    folder = Path(parent) / hashlib.sha256(str(results.resolve()).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """Return the kind of network file system that ``path`` lies on, None for a local one.

    Parameters
    ----------
    path : Path
    mounts : str, optional
        Text in the format of ``/proc/self/mounts``, which is read by default.
    """
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text()
        except OSError:
            return None
    resolved, kind, longest = str(path.resolve()), "", -1
    for line in mounts.splitlines():
        words = line.split()
        if len(words) < 3:
            continue
        point = words[1].replace("\\040", " ")
        is_above = resolved == point or resolved.startswith(point.rstrip("/") + "/")
        if is_above and len(point) >= longest:
            kind, longest = words[2], len(point)
    return kind if kind in NETWORK_FILE_SYSTEMS else None


@contextlib.contextmanager
def collector_lock(folder: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of the one collector in a live folder; it ends with the process at latest.

    Parameters
    ----------
    folder : Path
        The live folder.
    wait_s : float
        How long to wait for another collector, seconds.

    Raises
    ------
    DataError
        When another collector holds it, the folder cannot be written, or it knows no locks.
    """
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise DataError(
            f"{folder}, in which no file can be written ({error.strerror})",
            "a results folder of your own, or one that you may write to",
            f"Mend its permissions, or open {SNAPSHOT_FILE} as it was published last.",
        ) from None
    try:
        _lock(descriptor, folder, time.monotonic() + wait_s)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, deadline: float) -> None:
    while True:
        try:
            # flock, not lockf: it also keeps two threads of one process apart.
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(LOCK_POLL_S)
                continue
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
            raise DataError(
                f"{folder}, which another collector is working on ({holder or 'just started'})",
                "one collector at a time",
                "Wait for it, or stop it; readers may open the snapshot meanwhile.",
            ) from None
        except OSError as error:
            raise DataError(
                f"{folder}, whose file system gives no lock ({error.strerror})",
                "a file system with locks",
                f"Set {LIVE_DIR_VARIABLE} to a folder on a local disk.",
            ) from None


def open_live(folder: Path) -> tuple[duckdb.DuckDBPyConnection, str | None]:
    """Return a connection to the live database, made anew where there is none to go on with.

    Returns
    -------
    connection
    str or None
        Why an earlier database was discarded, if one was.

    Raises
    ------
    DataError
        When another program has the file open, or a newer scalelab wrote it.
    """
    import duckdb

    path = folder / LIVE_FILE
    discarded = None
    if path.exists():
        try:
            connection = duckdb.connect(str(path))
        except duckdb.Error as error:
            if "lock" in str(error).lower():
                raise DataError(
                    f"{path}, which another program has open",
                    "the collector alone to open it",
                    f"Close that program; read {SNAPSHOT_FILE} instead.",
                ) from None
            discarded = f"damaged ({str(error).splitlines()[0]})"
        else:
            version = _schema_version(connection)
            if version == SCHEMA_VERSION:
                return connection, None
            connection.close()
            if version is not None and version > SCHEMA_VERSION:
                raise DataError(
                    f"{path}, written by a newer scalelab (schema {version})",
                    f"schema {SCHEMA_VERSION} or older",
                    "Upgrade scalelab, or delete the file to build it anew with this version.",
                )
            discarded = "not whole" if version is None else f"of schema {version}"
        for stale in (path, path.with_name(path.name + ".wal")):
            stale.unlink(missing_ok=True)
    connection = duckdb.connect(str(path))
    connection.execute(f"BEGIN; {create_statements()} COMMIT;")
    return connection, discarded


def _schema_version(connection: duckdb.DuckDBPyConnection) -> int | None:
    import duckdb

    try:
        rows = connection.execute("SELECT schema FROM collector.store").fetchall()
    except duckdb.Error:
        return None
    return int(rows[0][0]) if rows else None


def is_published(connection: duckdb.DuckDBPyConnection, results: Path) -> bool:
    """Say whether the snapshot holds what the live database holds."""
    import duckdb

    path = str(snapshot_path(results)).replace("'", "''")
    try:
        connection.execute(f"ATTACH '{path}' AS published (READ_ONLY)")
    except duckdb.Error:
        return False
    try:
        query = "SELECT schema, generation FROM {}collector.store"
        return (
            connection.execute(query.format("published.")).fetchall()
            == connection.execute(query.format("")).fetchall()
        )
    except duckdb.Error:
        return False
    finally:
        connection.execute("DETACH published")


def publish(folder: Path, results: Path) -> None:
    """Replace the snapshot by a copy of the live database, which must be closed.

    Closing has written everything into the one file; the copy is synced before it takes the name.
    """
    partial = results / f".scalelab-publish-{os.uname().nodename}.duckdb"
    try:
        with (folder / LIVE_FILE).open("rb") as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target, _COPY_BYTES)
            target.flush()
            os.fsync(target.fileno())
        partial.replace(snapshot_path(results))
    finally:
        partial.unlink(missing_ok=True)
    descriptor = os.open(results, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
