"""Open an SQLite file of another program for reading only."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from scalelab.errors import DataError
from scalelab.logs.files import open_log, unreadable

MAGIC = b"SQLite format 3\0"
_GZIP = b"\x1f\x8b"
_PART = 1 << 20


@contextmanager
def open_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database, packed with gzip or not; nothing is written beside it.

    Raises
    ------
    DataError
        If it is not a readable database.
    """
    with tempfile.TemporaryDirectory(prefix="scalelab-") as folder:
        place = path
        with path.open("rb") as stream:
            is_packed = stream.read(2) == _GZIP
        if is_packed:
            place = Path(folder) / "log.db"
            try:
                with open_log(path) as packed, place.open("wb") as whole:
                    while part := packed.read(_PART):
                        whole.write(part)
            except (OSError, EOFError, ValueError) as error:
                raise unreadable(path, str(error)) from None
        elif not path.with_name(path.name + "-wal").exists():
            place = path
        else:
            # Rows that the program has not yet moved into the file are in the log beside it.
            place = Path(folder) / "log.db"
            for ending in ("", "-wal"):
                shutil.copyfile(path.with_name(path.name + ending), f"{place}{ending}")
        immutable = "&immutable=1" if place == path else ""
        try:
            with closing(
                sqlite3.connect(f"file:{quote(str(place.resolve()))}?mode=ro{immutable}", uri=True)
            ) as connection:
                connection.execute("PRAGMA trusted_schema = OFF")
                connection.text_factory = lambda data: data.decode("utf-8", "replace")
                yield connection
        except (sqlite3.Error, OverflowError) as error:
            raise unreadable(path, str(error)) from None


def tables_of(path: Path) -> set[str]:
    """Return the names of the tables of a database; empty if it cannot be read."""
    try:
        with open_database(path) as connection:
            found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return {str(name) for (name,) in found}
    except (DataError, OSError):
        return set()
