"""The protobuf wire format, as far as run logs need it.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct

Fields = dict[int, list["int | bytes"]]


def fields(data: bytes) -> Fields:
    """Return the values of a message by field number: whole numbers, or bytes.

    Raises
    ------
    ValueError
        If the bytes are not a message.
    """
    found: Fields = {}
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        value: int | bytes
        if wire == 0:
            value, at = _varint(data, at)
        else:
            if wire == 2:
                size, at = _varint(data, at)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise ValueError(f"wire type {wire}")
            if at + size > end:
                raise ValueError("a field is longer than its message")
            value, at = data[at : at + size], at + size
        found.setdefault(number, []).append(value)
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if at >= len(data):
            raise ValueError("a number is cut")
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a number is longer than 10 bytes")


def messages(found: Fields, number: int) -> list[Fields]:
    """Return the messages in a field."""
    return [fields(value) for value in found.get(number, ()) if isinstance(value, bytes)]


def text(found: Fields, number: int) -> str:
    """Return the last text in a field; empty if there is none."""
    value = found.get(number, [b""])[-1]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def integer(found: Fields, number: int) -> int | None:
    """Return the last signed whole number in a field, None if there is none."""
    value = found.get(number, [None])[-1]
    if not isinstance(value, int):
        return None
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def floating(found: Fields, number: int) -> float | None:
    """Return the last float or double in a field, None if there is none."""
    value = found.get(number, [None])[-1]
    if not isinstance(value, bytes) or len(value) not in (4, 8):
        return None
    return float(struct.unpack("<f" if len(value) == 4 else "<d", value)[0])
