"""Names that people give to sweeps and imports: one rule, so that none leaves the results folder.

A name becomes a folder, part of a job's name and a word on a command line. Letters, digits, ``.``,
``_`` and ``-`` are safe in all three; separators, ``..``, quotes, spaces, newlines and characters
that a shell reads are not, nor is a leading dot (hidden) or dash (an option).
"""

from __future__ import annotations

import re
from pathlib import Path

from scalelab.errors import UsageError

MAX_NAME_LENGTH = 64

_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9._-]{{0,{MAX_NAME_LENGTH - 1}}}", re.ASCII)
_ALLOWED = (
    f"1 to {MAX_NAME_LENGTH} letters, digits, '.', '_' or '-', starting with a letter, digit or '_'"
)


def check_name(name: str, *, what: str = "name") -> str:
    """Return ``name`` when it can be a folder of its own, and nothing else.

    Parameters
    ----------
    name : str
        As the user wrote it.
    what : str
        What it names, for the error message: ``sweep``, ``import``, ``run``.

    Raises
    ------
    UsageError
        When it holds anything but letters, digits, ``.``, ``_`` and ``-``, starts with ``.`` or
        ``-``, is empty, or is longer than `MAX_NAME_LENGTH`.
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{what} name {name!r}", _ALLOWED, f"Choose another, such as {suggest_name(name)!r}."
        )
    return name


def suggest_name(text: str, *, fallback: str = "sweep") -> str:
    """Return an allowed name as near to ``text`` as can be (a file's stem, a refused name)."""
    words = re.sub(r"[^A-Za-z0-9_-]+", "-", text, flags=re.ASCII).strip("-")
    return words[:MAX_NAME_LENGTH].rstrip("-") or fallback


def named_folder(parent: Path, name: str, *, what: str = "name") -> Path:
    """Return ``parent / name`` after `check_name`: never ``parent`` itself nor outside of it.

    Raises
    ------
    UsageError
        As `check_name`.
    """
    return parent / check_name(name, what=what)
