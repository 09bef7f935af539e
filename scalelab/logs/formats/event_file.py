"""Event files of TensorBoard: ``events.out.tfevents.*``.

Layout: TFRecord framing (length of 8 bytes, checksum of 4, data, checksum of 4) of Event messages
(``tensorboard/compat/proto/event.proto``, ``summary.proto``): step = 2, summary = 5,
value = 1, tag = 1, simple_value = 2, tensor = 8, metadata = 9. Other
summaries (histograms, images) are passed over.

Event files of one folder are one run. Folders named by a date and time, as torchtitan names them,
are restarts of one run; ``train`` and ``validation`` below a folder are parts of it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalelab.logs.files import open_log, unreadable
from scalelab.logs.history import History
from scalelab.logs.protobuf import Fields, fields, floating, integer, messages, text
from scalelab.logs.types import RawRun
from scalelab.logs.values import Scalar

_RESTART = re.compile(r"\d{8}[-_]\d{4,6}")
_HPARAMS = re.compile(r"\d{9,}\.\d+")
_PARTS = {"train", "training", "val", "valid", "validation", "eval", "test"}
_WRITTEN = re.compile(r"tfevents\.(\d+)")
_MOST_RECORD = 256 << 20
_CHUNK = 4 << 20
_SCALAR = re.compile(rb"\x09.{8}(?:\x10([\x80-\xff]{0,9}[\x00-\x7f]))?\x2a.\x0a.\x0a(.)", re.DOTALL)
_FLOAT, _DOUBLE = struct.Struct("<f"), struct.Struct("<d")
_LENGTH = struct.Struct("<Q")
_FRAME = 16
"""Bytes of a record beside its data: length and checksum before it, checksum behind it."""
_SHORTEST, _LONGEST = 22, 128
"""Sizes of events of one scalar whose inner lengths take one byte each."""


class TensorBoard:
    """TensorBoard."""

    name = "tensorboard"
    title = "TensorBoard (event files)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """Return whether it is an event file."""
        return "tfevents" in path.name and (b"brain.Event:" in head[:64] or not head)

    def read(self, path: Path) -> Iterator[RawRun]:
        """Yield the run."""
        home, prefix = path.parent, ""
        while True:
            if home.name.lower() in _PARTS:
                home, prefix = home.parent, f"{home.name}/{prefix}"
            elif _HPARAMS.fullmatch(home.name):
                home = home.parent
            else:
                break
        attempt = home.name if _RESTART.fullmatch(home.name) else ""
        home = home.parent if attempt else home
        run = RawRun(reader=self.name, path=home, name=home.name or path.parent.name, key=str(home))
        written = _WRITTEN.search(path.name)
        run.order = (attempt, float(written[1][:18]) if written else 0.0, path.name)
        try:
            for data, starts, sizes in _chunks(path):
                _add_chunk(run, data, starts, sizes, prefix)
        except ValueError as error:
            if not run.history.series and not run.config:
                raise unreadable(path, str(error)) from None
            run.notes.append(f"{path.name} is damaged ({error}); what precedes is read")
        yield run


def _chunks(path: Path) -> Iterator[tuple[bytes, list[int], list[int]]]:
    """Yield parts of the file with the offsets and sizes of their records.

    A cut record at the end is left out.
    """
    with open_log(path) as stream:
        data, at, wanted = b"", 0, _CHUNK
        while part := stream.read(wanted):
            data, at, wanted = data[at:] + part, 0, _CHUNK
            starts: list[int] = []
            sizes: list[int] = []
            end = len(data)
            while at + _LENGTH.size <= end:
                (size,) = _LENGTH.unpack_from(data, at)
                if size > _MOST_RECORD:
                    yield data, starts, sizes
                    raise ValueError(f"a record of {size:,} bytes")
                if at + size + _FRAME > end:
                    wanted = max(_CHUNK, at + size + _FRAME - end)
                    break
                starts.append(at + _FRAME - 4)
                sizes.append(size)
                at += size + _FRAME
            yield data, starts, sizes


def _add_chunk(run: RawRun, data: bytes, starts: list[int], sizes: list[int], prefix: str) -> None:
    """Add the scalars of a part: records of the usual layout all at once, the others one by one."""
    at, size = np.array(starts, dtype=np.int64), np.array(sizes, dtype=np.int64)
    is_read = np.zeros(len(at), dtype=bool)
    codes = np.frombuffer(data, dtype=np.uint8)
    for one in np.unique(size[(size > _SHORTEST) & (size < _LONGEST)]).tolist():
        rows = np.flatnonzero(size == one)
        events = codes[at[rows][:, None] + np.arange(one)]
        n_step = np.argmax(events[:, 10:20] < 128, axis=1) + 1
        for n in np.unique(n_step).tolist():
            tag = 10 + n + 6
            if tag + 5 >= one:
                continue
            frame = np.array([0x2A, one - tag + 4, 0x0A, one - tag + 2, 0x0A, one - tag - 5])
            ok = (n_step == n) & (events[:, 0] == 0x09) & (events[:, 9] == 0x10)
            ok &= (events[:, tag - 6 : tag] == frame).all(axis=1) & (events[:, one - 5] == 0x15)
            if ok.any():
                _add_alike(run.history, events[ok], n, tag, prefix)
                is_read[rows[ok]] = True
    for i in np.flatnonzero(~is_read).tolist():
        _add_event(run, data[starts[i] : starts[i] + sizes[i]], prefix)


def _add_alike(
    history: History, events: NDArray[np.uint8], n_step: int, tag: int, prefix: str
) -> None:
    """Add events of one layout: ``tag`` is where the tag begins, 5 bytes of the value end it."""
    shifts = 7 * np.arange(n_step, dtype=np.int64)
    steps = ((events[:, 10 : 10 + n_step] & 127).astype(np.int64) << shifts).sum(axis=1)
    values = np.ascontiguousarray(events[:, -4:]).view("<f4").ravel().astype(np.float64)
    names = np.ascontiguousarray(events[:, tag:-5]).view(f"S{events.shape[1] - tag - 5}").ravel()
    known = (steps >= 0) & (steps < 1 << 62)
    for name in np.unique(names):
        own = known & (names == name)
        history.add_many(prefix + bytes(name).decode("utf-8", "replace"), steps[own], values[own])


def _add_event(run: RawRun, record: bytes, prefix: str) -> None:
    """Add what a record of any layout holds."""
    event = fields(record)
    step = integer(event, 2) or 0
    if step < 0:
        return
    for summary in messages(event, 5):
        for value in messages(summary, 1):
            tag = text(value, 1)
            if tag.startswith("_hparams_/"):
                run.config |= _hparams(value)
            else:
                _add_scalar(run.history, step, prefix + tag, value)


def _add_scalar(history: History, step: int, tag: str, value: Fields) -> None:
    number = floating(value, 2)
    if number is None:
        for tensor in messages(value, 8):
            number = _tensor_scalar(tensor)
    if number is not None:
        history.add(step, tag, number)


def _tensor_scalar(tensor: Fields) -> float | None:
    """Return a tensor of one float (dtype 1) or double (dtype 2)."""
    kind = {1: _FLOAT, 2: _DOUBLE}.get(integer(tensor, 1) or 0)
    if kind is None:
        return None
    for number in (4, 5 if kind is _FLOAT else 6):
        data = tensor.get(number, [b""])[-1]
        if isinstance(data, bytes) and len(data) == kind.size:
            return float(kind.unpack(data)[0])
    return None


def _hparams(value: Fields) -> dict[str, Scalar]:
    """Return the hyperparameters of ``add_hparams``: ``plugins/hparams/plugin_data.proto``."""
    found: dict[str, Scalar] = {}
    for metadata in messages(value, 9):
        for plugin in messages(metadata, 1):
            for content in messages(plugin, 2):
                for session in messages(content, 3):
                    for entry in messages(session, 1):
                        for stated in messages(entry, 2):
                            number = floating(stated, 2)
                            truth = integer(stated, 4)
                            found[text(entry, 1)] = (
                                number if number is not None
                                else bool(truth) if truth is not None else text(stated, 3)
                            )  # fmt: skip
    return found
