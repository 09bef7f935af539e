"""The text of a row by the name of its field; ``meta.text`` enters a nested field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scalelab.corpus.rejects import Reject, shown

_MISSING = object()
MOST_NAMED = 20
MOST_DEPTH = 4
_KINDS = {bool: "true or false", int: "a number", float: "a number", dict: "an object"}


def find_value(row: Any, name: str) -> Any:
    """Return the value of a field, or `_MISSING`; a list gives the values of its members.

    A key that has the whole name goes before a nested one.
    """
    if isinstance(row, list):
        values = [value for member in row if (value := find_value(member, name)) is not _MISSING]
        return values if values else _MISSING
    if not isinstance(row, Mapping):
        return _MISSING
    if name in row:
        return row[name]
    for at, character in enumerate(name):
        if character == "." and name[:at] in row:
            found = find_value(row[name[:at]], name[at + 1 :])
            if found is not _MISSING:
                return found
    return _MISSING


def is_missing(row: Any, name: str) -> bool:
    """Return whether a row has no such field."""
    return find_value(row, name) is _MISSING


def document_of(row: Any, name: str, place: str, content: bytes) -> bytes | Reject:
    """Return the text of a row as UTF-8, or why it has none; a list of texts becomes lines."""

    def reject(reason: str) -> Reject:
        return Reject(place=place, reason=reason, start=shown(content), has_field=True)

    if not isinstance(row, (str, Mapping)):
        reason = f"is {_kind(row)}, not an object"
        return Reject(place=place, reason=reason, start=shown(content))
    value = row if isinstance(row, str) else find_value(row, name)
    if isinstance(row, Mapping) and value is _MISSING:
        return Reject(
            place=place,
            reason=f"has no field {name!r}",
            start=shown(content),
            missing="field",
            has=_fields_of(row),
        )
    texts = list(_texts(value))
    if not all(isinstance(text, str) for text in texts):
        wrong = next(text for text in texts if not isinstance(text, str))
        return reject(f"has {_kind(wrong)} as {name!r}")
    try:
        document = "\n".join(texts).encode("utf-8")
    except UnicodeEncodeError:
        return reject("has half of a surrogate pair")
    return reject(NUL) if b"\0" in document else document


NUL = "contains the character U+0000, which marks the end of documents"


def _fields_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the fields of a row with text, the longest text first; all fields if none has text."""
    found: dict[str, int] = {}

    def visit(value: Any, path: str, depth: int) -> None:
        if isinstance(value, str):
            found[path] = found.get(path, 0) + len(value)
        elif isinstance(value, Mapping) and depth < MOST_DEPTH:
            for key, inner in value.items():
                visit(inner, f"{path}.{key}" if path else str(key), depth + 1)
        elif isinstance(value, list):
            for inner in value[:MOST_NAMED]:
                visit(inner, path, depth)

    visit(row, "", 0)
    named = sorted(found, key=lambda path: -found[path]) or [str(key) for key in row]
    return tuple(named[:MOST_NAMED])


def _texts(value: Any) -> list[Any]:
    if not isinstance(value, list):
        return [value]
    return [text for member in value for text in _texts(member)] if value else [""]


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return _KINDS.get(type(value), f"a {type(value).__name__}")
