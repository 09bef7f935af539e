"""Offline folders of Weights & Biases: ``offline-run-*/run-*.wandb``.

Layout: the log framing of LevelDB (blocks of 32 KiB; header of 7 bytes: checksum, length, type)
after a file header of 7 bytes ``:W&B`` 0xBEE1 version, with one protobuf message a record
(``wandb/proto/wandb_internal.proto``): run = 17, history = 2, summary = 3, config = 5, metric = 12,
exit = 18. https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scalelab.logs.files import open_log, unreadable
from scalelab.logs.protobuf import Fields, fields, integer, messages, text
from scalelab.logs.types import RawRun
from scalelab.logs.values import as_number, as_step, flatten, load_json

_BLOCK = 32_768
_HEADER = struct.Struct("<IHB")
_IDENT = b":W&B\xe1\xbe"
_MOST_RECORD = 256 << 20
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
AXES = ("iter", "global_step", "trainer/global_step", "train/global_step", "step", "train/step")
"""Columns that count optimizer steps, where a run logs its own; W&B's ``_step`` counts calls."""


class WandbOffline:
    """Weights & Biases, offline."""

    name = "wandb"
    title = "W&B offline folder (run-*.wandb)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """Return whether the file starts with W&B's header."""
        return head.startswith(_IDENT)

    def read(self, path: Path) -> Iterator[RawRun]:
        """Yield the run."""
        run = RawRun(reader=self.name, path=path.parent, name=path.stem, status="running")
        run.order = (path.parent.name, path.name)
        rows: list[tuple[int, dict[str, float]]] = []
        axis = ""
        count = 0
        try:
            for record in _records(path):
                count += 1
                found = fields(record)
                for history in messages(found, 2):
                    _add_history(run, history, rows)
                    if len(rows) >= _BLOCK:
                        _flush(run, rows, axis)
                axis = axis or next((text(m, 4) for m in messages(found, 12) if text(m, 4)), "")
                for summary in messages(found, 3):
                    run.summary |= _numbers(_items(summary, 1))
                for about in messages(found, 17):
                    _add_about(run, about)
                for config in messages(found, 5):
                    run.config |= flatten(_items(config, 1))
                for end in messages(found, 18):
                    run.status = "finished" if not integer(end, 1) else "crashed"
        except (ValueError, struct.error) as error:
            run.notes.append(f"the log is damaged after record {count:,} ({error})")
        _flush(run, rows, axis)
        for name in [name for name in run.summary if name.startswith("_")]:
            del run.summary[name]
        if not run.history.series and not run.summary and not run.config:
            raise unreadable(path, "it holds no run")
        yield run


def _records(path: Path) -> Iterator[bytes]:
    """Yield the records; a cut record at the end is left out."""
    with open_log(path) as stream:
        block = stream.read(_BLOCK)
        at, parts = 7, b""
        while True:
            if at + _HEADER.size > len(block):
                block, at = stream.read(_BLOCK), 0
                if len(block) < _HEADER.size:
                    return
            _, size, kind = _HEADER.unpack_from(block, at)
            data = block[at + _HEADER.size : at + _HEADER.size + size]
            if len(data) < size or kind not in (_FULL, _FIRST, _MIDDLE, _LAST):
                return
            at += _HEADER.size + size
            parts = data if kind in (_FULL, _FIRST) else parts + data
            if len(parts) > _MOST_RECORD:
                raise ValueError("a record is too long")
            if kind in (_FULL, _LAST):
                yield parts
                parts = b""


def _items(message: Fields, number: int) -> dict[str, Any]:
    """Return key and value of the items of a message."""
    found = {}
    for item in messages(message, number):
        nested = [
            part.decode("utf-8", "replace") for part in item.get(2, ()) if isinstance(part, bytes)
        ]
        name = "/".join(nested) if nested else text(item, 1)
        found[name] = load_json(text(item, 16))
    return found


def _numbers(items: dict[str, Any]) -> dict[str, float]:
    return {name: number for name, v in items.items() if (number := as_number(v)) is not None}


def _add_history(run: RawRun, history: Fields, rows: list[tuple[int, dict[str, float]]]) -> None:
    values = _numbers(_items(history, 1))
    steps = [integer(step, 1) for step in messages(history, 2)]
    own = as_step(values.pop("_step", None))
    step = own if own is not None else next((s for s in steps if s is not None), len(rows))
    rows.append((max(step or 0, 0), {k: v for k, v in values.items() if not k.startswith("_")}))


def _flush(run: RawRun, rows: list[tuple[int, dict[str, float]]], axis: str) -> None:
    """Add the rows by the run's own step axis, where every row of losses has one."""
    names = {name for _, values in rows for name in values}
    known = ([axis] if axis else []) + list(AXES)
    column = next((name for name in known if name in names), "")
    for step, values in rows:
        at = as_step(values.get(column)) if column else step
        if at is not None:
            run.history.add_row(at, values, skip=(column,))
    rows.clear()


def _add_about(run: RawRun, about: Fields) -> None:
    run.key = text(about, 1)
    run.name = text(about, 8) or run.key or run.name
    for config in messages(about, 4):
        run.config |= flatten(_items(config, 1))
    for summary in messages(about, 5):
        run.summary |= _numbers(_items(summary, 1))
