"""Named evaluation texts as users give them: `EvalText`, and reading them from options and files.

``[data.eval]`` of a sweep file has one entry for each set: a path, a list of paths, or a table with
``paths`` and ``tokens``. ``--eval-set NAME=PATH`` adds a path to a set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from scalelab.errors import UsageError, did_you_mean
from scalelab.units import parse_quantity

SET_NAME = r"[a-z][a-z0-9_]*"
"""Names of evaluation sets and of sources of a mixture."""
HELD_OUT = "heldout"
"""Name of the evaluation set that is a part of the training text; every run has it."""
_KEYS = ("paths", "tokens")
_EXAMPLE = "Write for example --eval-set code='eval/code/*.py'."


@dataclass(frozen=True, slots=True)
class EvalText:
    """The text of one evaluation set.

    Attributes
    ----------
    paths : tuple of str
        Files, folders and globs.
    tokens : int or None
        Tokens of the set; None for ``eval_tokens`` of ``[data]``.
    """

    paths: tuple[str, ...]
    tokens: int | None = None


def split_sets(pairs: Iterable[str]) -> dict[str, list[str]]:
    """Return the paths by name of ``NAME=PATH`` texts; a name that repeats has several paths.

    Raises
    ------
    UsageError
        If an item has no ``=``.
    """
    found: dict[str, list[str]] = {}
    for pair in pairs:
        name, separator, path = pair.partition("=")
        if not separator:
            raise UsageError(f"--eval-set {pair}", "NAME=PATH, with a name of yours", _EXAMPLE)
        found.setdefault(name.strip(), []).append(path)
    return found


def read_eval_sets(value: Any) -> dict[str, dict[str, Any]]:
    """Return evaluation texts by name from a table, or from ``NAME=PATH`` texts.

    Raises
    ------
    UsageError
        If a name or an entry is not valid.
    """
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple):
        value = split_sets(str(pair) for pair in value)
    if not isinstance(value, Mapping):
        raise UsageError(
            f"eval = {value!r} in [data]",
            "a table [data.eval] of names and paths",
            'Write for example [data.eval] and below it code = "eval/code/*.py".',
        )
    return {require_set_name(str(name)): _entry(str(name), each) for name, each in value.items()}


def require_set_name(name: str) -> str:
    """Return the name of an evaluation set or of a source of a mixture if it is valid.

    Raises
    ------
    UsageError
    """
    if not re.fullmatch(SET_NAME, name) or name == HELD_OUT:
        raise UsageError(
            f"evaluation set {name!r}",
            f"lower-case letters, digits and _, after a letter; not {HELD_OUT}, the part of the "
            "training text that every run evaluates",
            _EXAMPLE,
        )
    return name


def _entry(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, EvalText):
        value = {"paths": value.paths, "tokens": value.tokens}
    if isinstance(value, str | list | tuple):
        value = {"paths": value}
    if not isinstance(value, Mapping) or not set(value) <= set(_KEYS):
        unknown = sorted(set(value) - set(_KEYS)) if isinstance(value, Mapping) else []
        given = f"key {unknown[0]} of evaluation set {name}" if unknown else f"{name} = {value!r}"
        raise UsageError(
            given,
            "a path, a list of paths, or a table with paths and tokens",
            f"{did_you_mean(unknown[0], _KEYS) if unknown else ''}Write for example {name} = "
            f'{{ paths = ["eval/{name}/*.txt"], tokens = 65536 }}.',
        )
    paths = value.get("paths") or ()
    paths = (paths,) if isinstance(paths, str) else tuple(paths)
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise UsageError(
            f"evaluation set {name} with {'an empty path' if paths else 'no path'}",
            "files, folders and globs of text",
            f"Write for example --eval-set {name}=eval/{name}/. A shell variable may be unset.",
        )
    tokens = value.get("tokens")
    if tokens is not None:
        tokens = round(parse_quantity(tokens, what=f"tokens of {name}"))
        if tokens < 1:
            raise UsageError(
                f"evaluation set {name} of {tokens} tokens",
                "a whole number of at least 1",
                f"Write for example {name} = {{ paths = {list(paths)}, tokens = 65536 }}.",
            )
    return {"paths": paths, "tokens": tokens}
