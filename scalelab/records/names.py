"""Valid names of sweeps and imports, and lists of names as text.

A name becomes a folder, part of a job name and a word on a command line. Letters, digits, ``.``,
``_`` and ``-`` are safe in all three, except for a leading dot (hidden file) or dash (option).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

from scalelab.errors import UsageError

MAX_NAME_LENGTH = 64

_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9._-]{{0,{MAX_NAME_LENGTH - 1}}}", re.ASCII)
_ALLOWED = (
    f"1 to {MAX_NAME_LENGTH} letters, digits, '.', '_' or '-', starting with a letter, digit or '_'"
)


def check_name(name: str, *, what: str = "name") -> str:
    """Return ``name`` if it is a valid name of a folder.

    ``what`` is the kind of thing named, for the error message: ``sweep``, ``import``, ``run``.

    Raises
    ------
    UsageError
        If it is empty, is longer than `MAX_NAME_LENGTH`, starts with ``.`` or ``-``, or has other
        characters than letters, digits, ``.``, ``_`` and ``-``.
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{what} name {name!r}", _ALLOWED, f"Write for example {suggest_name(name)!r}."
        )
    return name


def suggest_name(text: str, *, fallback: str = "sweep") -> str:
    """Return a valid name similar to ``text`` (a file name without ending, an invalid name)."""
    words = re.sub(r"[^A-Za-z0-9_-]+", "-", text, flags=re.ASCII).strip("-")
    return words[:MAX_NAME_LENGTH].rstrip("-") or fallback


def named_folder(parent: Path, name: str, *, what: str = "name") -> Path:
    """Return ``parent / name``; `check_name` keeps it inside ``parent`` or raises UsageError."""
    return parent / check_name(name, what=what)


def names_of_text(text: str) -> tuple[str, ...]:
    """Return the names of ``a,b`` or ``"a,b",c``.

    Raises
    ------
    UsageError
        If a name is empty.
    """
    names = tuple(name.strip() for name in next(csv.reader([text], skipinitialspace=True), []))
    if not names or not all(names):
        raise UsageError(
            f"--exclude {text!r}",
            "run_ids or line numbers with commas",
            "Write for example --exclude 12,15.",
        )
    return names


def text_of_names(names: Iterable[str]) -> str:
    """Return names as `names_of_text` reads them."""
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(list(names))
    return out.getvalue()
