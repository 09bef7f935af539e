"""Rows and files that are no usable text: counted, listed in a file, an error beyond a share."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from scalelab.corpus.source import DataSource
from scalelab.errors import DataError, unwritable
from scalelab.units import plural

MOST_LISTED = 100_000
"""Rows in the list; all are counted."""
SHOWN_BYTES = 80
FILE = "file"
"""Place of a reject that is a whole file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """A row or a file that is not used.

    Attributes
    ----------
    place : str
        ``line 7``, ``row 7`` or ``file``.
    reason : str
        What is wrong, to be read after the place: ``has null as 'text'``.
    start : str
        The first characters of the row.
    missing : str
        ``field`` or ``column`` if the row lacks that of the text, else empty.
    has_field : bool
        Whether the row has the field of the text; files without any such row may be text.
    has : tuple of str
        The fields of a row that lacks it, the one with the longest text first.
    """

    place: str
    reason: str
    start: str = ""
    missing: str = ""
    has_field: bool = False
    has: tuple[str, ...] = ()


def shown(content: bytes) -> str:
    """Return the first characters of a row for the list."""
    return content[:SHOWN_BYTES].decode("utf-8", "backslashreplace")


class Rejects:
    """Collects the rows that are not used, and writes them to a file of JSON Lines.

    Parameters
    ----------
    path : Path
        The list, if there is any row; it replaces an older one at the end.
    scratch : Path
        File to write to until then.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        self.path, self._scratch = path, scratch
        self.n_rejected = self.n_listed = 0
        self.reasons: Counter[str] = Counter()
        self._examples: dict[str, tuple[Path, Reject]] = {}
        self._file: TextIO | None = None

    def add(self, file: Path, reject: Reject) -> None:
        """Count a row and list it."""
        self.n_rejected += 1
        self.reasons[reject.reason] += 1
        self._examples.setdefault(reject.reason, (file, reject))
        self.list_only(file, reject)

    def list_only(self, file: Path, reject: Reject) -> None:
        """List a file that a folder brought and that is no text; it counts as no row."""
        self.n_listed += 1
        if self.n_listed > MOST_LISTED:
            return
        row = {
            "file": str(file),
            "place": reject.place,
            "reason": reject.reason,
            "start": reject.start,
        }
        try:
            if self._file is None:
                self._file = self._scratch.open("w", encoding="utf-8")
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise unwritable(self.path, "the list of unused rows", error) from error

    def __enter__(self) -> Rejects:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
            self.path.parent.mkdir(exist_ok=True)
            self._scratch.replace(self.path)
        except OSError as error:
            raise unwritable(self.path, "the list of unused rows", error) from error

    def require_share(self, n_rows: int, source: DataSource) -> None:
        """Raise DataError if more than the allowed share of all documents cannot be used."""
        if self.n_rejected <= source.max_rejects * n_rows:
            return
        reason = self.reasons.most_common(1)[0][0]
        file, first = self._examples[reason]
        many = f"{self.n_rejected:,} of {plural(n_rows, 'document')}"
        if first.missing:
            raise missing_field(file, first, source, f"{many} cannot be used")
        where = f"{first.place} of {file}"
        do = f"Correct them; {self.path} lists them."
        if first.place == FILE:
            where = str(file)
            do = f"{_convert(file, first)} {self.path} lists every such file."
        if self.n_rejected < n_rows:
            share = math.ceil(100 * self.n_rejected / n_rows) / 100
            do += f" Or leave them out with --max-rejects {share:g}."
        raise DataError(
            f"{many} cannot be used, for example {where}, which {reason}",
            f"at most a share of {source.max_rejects:g} that cannot be used (--max-rejects)",
            do,
        )


def missing_field(file: Path, reject: Reject, source: DataSource, why: str) -> DataError:
    """Return the error for rows without the field or column of the text."""
    name = source.column if reject.missing == "column" else source.field
    what, likely = reject.missing, (reject.has[0] if reject.has else "content")
    return DataError(
        f"no {what} {name!r} in {reject.place} of {file}, which has "
        f"{', '.join(reject.has) or f'no {what}s'} ({why})",
        f"the name of the {what} with the text; a dot enters a nested one, as in meta.text",
        f"Give its name, for example --{what} {shlex.quote(likely)}. Or train on the files as they "
        "are: --data-format text.",
    )


def _convert(file: Path, reject: Reject) -> str:
    """Return how to make UTF-8 of a file."""
    name = shlex.quote(str(file))
    if "NUL" in reject.reason:
        return (
            f"If it is UTF-16, convert it: iconv -f UTF-16 -t UTF-8 {name} > NEW. If it is text "
            f"with single NULs, drop them: tr -d '\\000' < {name} > NEW."
        )
    return (
        f"Convert it to UTF-8, for example: iconv -f LATIN1 -t UTF-8 {name} > NEW. Or drop what is "
        f"not UTF-8: iconv -c -f UTF-8 -t UTF-8 {name} > NEW."
    )
