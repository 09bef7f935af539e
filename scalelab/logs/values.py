"""Numbers and nested settings as run logs write them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

try:
    from pydantic_core import from_json
except ModuleNotFoundError:  # A worker has only NumPy.
    from_json = None  # type: ignore[assignment]

Scalar = str | int | float | bool | None

MOST_KEYS = 5_000
MOST_TEXT = 500
_DEEPEST = 8
_NOT_A_NUMBER = {"nan", "+nan", "-nan", "n/a", "null", "none", "-nan(ind)"}


def as_number(value: Any) -> float | None:
    """Return a logged value as a float, or None if it is not a number.

    NaN and infinity may be JSON literals or text in any case, such as ``"NaN"`` or ``-inf``.
    """
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    if isinstance(value, (str, bytes)) and len(value) <= 64:
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        text = text.strip().lower()
        if text in _NOT_A_NUMBER:
            return math.nan
        try:
            return float(text.replace(",", "") if "." in text or "," in text else text)
        except ValueError:
            return None
    return None


def as_count(value: Any) -> int | None:
    """Return a logged value as a whole number from 0, or None."""
    number = as_number(value)
    if number is None or not math.isfinite(number) or number < 0 or number != int(number):
        return None
    return int(number)


def as_step(value: Any) -> int | None:
    """Return a step number that fits into 64 bits, or None."""
    count = as_count(value)
    return count if count is not None and count < 2**62 else None


def load_json(text: str | bytes) -> Any:
    """Return the content of a JSON document (NaN and Infinity allowed), else None."""
    try:
        if from_json is None:
            return json.loads(text)
        return from_json(text, allow_inf_nan=True)
    except (ValueError, RecursionError):
        return None


def flatten(nested: Any) -> dict[str, Scalar]:
    """Return the scalars of nested settings by path: ``{"model/n_layers": 4}``.

    Lists keep no entries, except lists of scalars, which become text.
    """
    flat: dict[str, Scalar] = {}
    for path, value in _leaves(nested, "", 0):
        if len(flat) >= MOST_KEYS:
            break
        flat[path] = value
    return flat


def _leaves(nested: Any, path: str, depth: int) -> Iterator[tuple[str, Scalar]]:
    if isinstance(nested, Mapping):
        if depth < _DEEPEST:
            for key, value in nested.items():
                yield from _leaves(value, f"{path}/{key}" if path else str(key), depth + 1)
    elif isinstance(nested, (str, int, float, bool)) or nested is None:
        yield path, nested[:MOST_TEXT] if isinstance(nested, str) else nested
    elif isinstance(nested, (list, tuple)) and all(
        isinstance(v, (str, int, float)) for v in nested
    ):
        yield path, str(list(nested))[:MOST_TEXT]


class Settings:
    """Settings of a run with look-up by name, however deep they are nested."""

    def __init__(self, flat: Mapping[str, Scalar]) -> None:
        self.flat = flat
        self._last: dict[str, list[str]] = {}
        for path in flat:
            name = path.replace(".", "/").rpartition("/")[2]
            self._last.setdefault(name.lower().replace("-", "_"), []).append(path)

    def path(self, *names: str) -> str | None:
        """Return the path of the first of these settings that exists.

        A name with ``/`` is a whole path or its end; any other name may be nested in any group.
        """
        for name in names:
            if name in self.flat:
                return name
            group, _, last = name.rpartition("/")
            found = [
                path
                for path in self._last.get(last, ())
                if not group or path.lower().replace(".", "/").endswith(name)
            ]
            if found:
                return min(found, key=len)
        return None

    def get(self, *names: str) -> Scalar:
        """Return the value of the first of these settings that exists, else None."""
        path = self.path(*names)
        return None if path is None else self.flat[path]

    def number(self, *names: str) -> float | None:
        """Return the first of these settings that is a finite number."""
        found = self.named_number(*names)
        return None if found is None else found[1]

    def named_number(self, *names: str) -> tuple[str, float] | None:
        """Return name and value of the first of these settings that is a finite number."""
        for name in names:
            path = self.path(name)
            value = None if path is None else as_number(self.flat[path])
            if path is not None and value is not None and math.isfinite(value):
                return path, value
        return None

    def count(self, *names: str) -> int | None:
        """Return the first of these settings that is a whole number above zero."""
        for name in names:
            value = as_count(self.get(name))
            if value:
                return value
        return None

    def flag(self, *names: str, default: bool = False) -> bool:
        """Return a setting that is true or false."""
        value = self.get(*names)
        if isinstance(value, str):
            return value.strip().lower() in ("true", "1", "yes")
        return default if value is None else bool(value)
