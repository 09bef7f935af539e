"""The collector's database, its lock, and the snapshot that it publishes for readers.

DuckDB allows either one writing process or several readers. So only the collector opens the live
file; readers get a copy, the snapshot, which is replaced by rename. Both can be deleted: the next
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

from scalelab.errors import FIRST_SWEEP, DataError
from scalelab.records.files import fsync
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
    """Return the path of the published tables."""
    return results / SNAPSHOT_FILE


def open_snapshot(results: Path) -> duckdb.DuckDBPyConnection:
    """Return a read-only connection to the published tables.

    A collector may run at the same time; the connection keeps the snapshot that it opened. The file
    is attached to a private database, because DuckDB shares one instance of a path within a
    process, which could be an older file of that name.

    Raises
    ------
    DataError
        If nothing was collected, or another version of scalelab published the file.
    """
    import duckdb

    path = snapshot_path(results)
    if not path.exists():
        has_runs = next((results / "runs").glob("*"), None) is not None
        raise DataError(
            f"results folder {results}, which has no {path.name if has_runs else 'runs'}",
            "a results folder with collected runs",
            f"Run `scalelab collect --results {results}`, or name another folder with --results."
            if has_runs
            else f"Launch a sweep: {FIRST_SWEEP}. Or fit a table: `scalelab fit --from runs.csv`.",
        )
    connection = duckdb.connect()
    try:
        quoted = str(path).replace("'", "''")
        connection.execute(f"ATTACH '{quoted}' AS results (READ_ONLY); USE results;")
        found = connection.execute("SELECT schema FROM collector.store").fetchall()
    except duckdb.Error as error:
        connection.close()
        raise DataError(
            f"{path}, which cannot be opened ({str(error).splitlines()[0]})",
            "the snapshot that `scalelab collect` publishes",
            "Delete it and run `scalelab collect`, which rebuilds it from the run folders.",
        ) from None
    if found != [(SCHEMA_VERSION,)]:
        connection.close()
        raise DataError(
            f"{path} with schema {found[0][0] if found else 'unknown'}",
            f"schema {SCHEMA_VERSION}, which this version of scalelab reads",
            "Run `scalelab collect` with this version.",
        )
    return connection


def live_folder(results: Path) -> Path:
    """Return the folder of the collector's database and lock.

    This is the results folder, or a folder inside ``SCALELAB_LIVE_DIR`` if that is set.
    """
    parent = os.environ.get(LIVE_DIR_VARIABLE)
    if not parent:
        return results
    folder = Path(parent) / hashlib.sha256(str(results.resolve()).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """Return the type of the network file system of ``path``, None for a local one.

    ``mounts`` has the format of ``/proc/self/mounts``, the default.
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
    """Hold the collector's lock of a live folder; it is released when the process ends.

    Waits up to ``wait_s`` seconds for another collector.

    Raises
    ------
    DataError
        If another collector holds the lock, or the folder cannot be written or locked.
    """
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise DataError(
            f"{folder}, which cannot be written ({error.strerror})",
            "a results folder that you may write to",
            f"Make it writable: chmod u+w {folder}",
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
            # flock, unlike lockf, also excludes another thread of this process.
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(LOCK_POLL_S)
                continue
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
            raise DataError(
                f"{folder}, which another collector is using ({holder or 'just started'})",
                "one collector at a time",
                f"Wait until it ends, or stop it. You can read {SNAPSHOT_FILE} meanwhile.",
            ) from None
        except OSError as error:
            raise DataError(
                f"{folder}, whose file system cannot lock files ({error.strerror})",
                "a file system with locks",
                "Set a folder on a local disk, for example: export "
                f"{LIVE_DIR_VARIABLE}=/tmp/scalelab",
            ) from None


def open_live(folder: Path) -> tuple[duckdb.DuckDBPyConnection, str | None]:
    """Return a connection to the live database, created if there is none to update.

    Returns
    -------
    connection
    str or None
        Why an earlier database was discarded; None if it was not.

    Raises
    ------
    DataError
        If another program has the file open, or a newer scalelab wrote it.
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
                    "a file that only the collector opens",
                    f"Close that program and use {SNAPSHOT_FILE} there instead.",
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
                    "Upgrade scalelab, or delete the file so that this version rebuilds it.",
                )
            discarded = "incomplete" if version is None else f"of schema {version}"
        for stale in (path, path.with_name(path.name + ".wal")):
            stale.unlink(missing_ok=True)
    connection = duckdb.connect(str(path))
    connection.execute(f"BEGIN; {create_statements()} COMMIT;")
    return connection, discarded


def forget_live(results: Path) -> None:
    """Delete the live database, so that the next collection reads all files again."""
    folder = live_folder(results)
    with collector_lock(folder, wait_s=10.0):
        for name in (LIVE_FILE, f"{LIVE_FILE}.wal"):
            (folder / name).unlink(missing_ok=True)


def _schema_version(connection: duckdb.DuckDBPyConnection) -> int | None:
    import duckdb

    try:
        rows = connection.execute("SELECT schema FROM collector.store").fetchall()
    except duckdb.Error:
        return None
    return int(rows[0][0]) if rows else None


def is_published(connection: duckdb.DuckDBPyConnection, results: Path) -> bool:
    """Return whether the snapshot has the content of the live database."""
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

    Closing writes everything into the file. The copy is synced before it is renamed.
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
    fsync(results)
