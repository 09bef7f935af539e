"""What a stopped preparation leaves for the next one: the collected text, and the tokens so far.

Text of many gigabytes takes hours, and a job on a cluster has a time limit. A preparation therefore
saves its state now and then in its folder, whose name has the hash of what it reads. It holds a
lock on the folder, which the operating system releases when the process ends, so only one process
continues there. Another machine may not see that lock, so only the same machine continues.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np

from scalelab.corpus.shards import Mark, Shard
from scalelab.corpus.spool import Spool

SAVE_S = 30.0
"""Seconds of work between two saved states; a shorter preparation saves nothing."""
TEXT, COLLECTED, WRITTEN, LOCK = "text", "documents.npz", "written.json", "lock"
_ARRAYS = ("high", "low", "starts", "lengths")
_COUNTS = tuple(each.name for each in fields(Spool) if each.name not in ("text", *_ARRAYS))


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """How far the training tokens are written.

    Attributes
    ----------
    kind : str
        How the text is split: ``documents`` or ``stretch``.
    document, n_bytes : int
        The training document that comes next, and how many bytes of it are written.
    mark : Mark
        The shards until there.
    """

    kind: str
    document: int
    n_bytes: int
    mark: Mark


@dataclass(slots=True)
class Unfinished:
    """The folder in which one process prepares a source, and what is saved there.

    Attributes
    ----------
    folder : Path
    saves : bool
        Whether to save states: the files did not change within the last clock tick, so that the
        same listing has the same text.
    """

    folder: Path
    saves: bool
    _saved_s: float = field(default_factory=time.monotonic)

    @property
    def is_due(self) -> bool:
        """Whether to save a state now."""
        return self.saves and time.monotonic() - self._saved_s >= SAVE_S

    @property
    def has_state(self) -> bool:
        """Whether another process could continue."""
        return any((self.folder / name).exists() for name in (COLLECTED, WRITTEN))

    def documents(self) -> Spool | None:
        """Return the collected documents, or None if they are not complete."""
        try:
            with np.load(self.folder / COLLECTED) as found:
                arrays = {name: found[name] for name in _ARRAYS}
                counts = dict(zip(_COUNTS, found["counts"].tolist(), strict=True))
                n_text_bytes = int(found["n_text_bytes"])
            if (self.folder / TEXT).stat().st_size != n_text_bytes:
                return None
            text = np.asarray(np.memmap(self.folder / TEXT, dtype=np.uint8, mode="r"))
        except (OSError, ValueError, KeyError):
            return None
        return Spool(text=text, **arrays, **counts)

    def save_documents(self, spool: Spool) -> None:
        """Save the collected documents."""
        with (self.folder / TEXT).open("rb") as text:
            os.fsync(text.fileno())
        with self._replacing(COLLECTED) as out:
            np.savez(
                out,
                counts=np.array([getattr(spool, name) for name in _COUNTS]),
                n_text_bytes=len(spool.text),
                **{name: getattr(spool, name) for name in _ARRAYS},
            )

    def written(self) -> Written | None:
        """Return how far the training tokens are written, or None if nothing is saved."""
        try:
            found = json.loads((self.folder / WRITTEN).read_text(encoding="utf-8"))
            mark = found.pop("mark")
            shards = tuple(Shard(**each) for each in mark.pop("shards"))
            return Written(**found, mark=Mark(**mark, shards=shards))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save_written(self, written: Written) -> None:
        """Save how far the training tokens are written."""
        with self._replacing(WRITTEN) as out:
            out.write(json.dumps(asdict(written)).encode())

    def forget_written(self) -> None:
        """Forget the training tokens: the text is split in another way."""
        (self.folder / WRITTEN).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _replacing(self, name: str) -> Iterator[BinaryIO]:
        """Yield a file that replaces the one of this name when it is whole and on disk."""
        partial = self.folder / f"{name}.partial"
        with partial.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        partial.replace(self.folder / name)
        self._saved_s = time.monotonic()


@contextlib.contextmanager
def unfinished(data: Path, listing: str, *, saves: bool) -> Iterator[Unfinished]:
    """Yield the folder of a preparation: one that was stopped, with its states, or a new one.

    It is removed when the block ends. Ctrl-C leaves what another process can continue.

    Parameters
    ----------
    data : Path
        Folder of prepared data.
    listing : str
        Hash of the source and its files.
    saves : bool
        Whether to continue and to save; see `Unfinished`.
    """
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    prefix = f".preparing-{listing}-{host}-"
    with contextlib.ExitStack() as locks:
        left = sorted(data.glob(f"{prefix}*")) if saves else []
        folder = next((each for each in left if _is_free(each, locks)), None)
        if folder is None:
            folder = data / f"{prefix}{secrets.token_hex(4)}"
            folder.mkdir()
            _is_free(folder, locks, mode="a")
        work = Unfinished(folder=folder, saves=saves)
        try:
            yield work
        except KeyboardInterrupt:
            if not work.has_state:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _is_free(folder: Path, locks: contextlib.ExitStack, mode: str = "r+") -> bool:
    """Return whether no process works in a folder that can be continued; then lock it."""
    if mode == "r+" and not Unfinished(folder=folder, saves=False).has_state:
        return False
    try:
        file = (folder / LOCK).open(mode)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks: then nobody continues there
        file.close()
        return False
    locks.enter_context(file)
    return os.fstat(file.fileno()).st_nlink > 0
