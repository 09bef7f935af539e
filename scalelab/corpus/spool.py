"""Collect the distinct documents of all files on disk, ordered by a hash of their text.

The text is written to one temporary file and read back through a memory map, so the corpus may be
larger than memory. Memory use is 32 bytes per document.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.documents import CutTextError, NotTextError, kind_of, read_rows, read_text
from scalelab.corpus.json_rows import TooLongError
from scalelab.corpus.rejects import FILE, Reject, Rejects, missing_field
from scalelab.corpus.source import AUTO, JSON, TEXT, DataSource, SourceFile
from scalelab.corpus.split import digest, new_digest
from scalelab.errors import DataError
from scalelab.units import plural

Progress = Callable[[str, int, int], None]

REPORT_BYTES = 4 << 20
MOST_HELD = 10_000
"""Rows without text after which a file is a file of rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spool:
    """Distinct documents on disk, ordered by hash.

    ``high`` and ``low`` are the halves of each document's hash; ``starts`` and ``lengths`` locate
    its bytes in ``text``. All have shape (n_documents,). ``n_listed`` counts the rows in the list
    of what cannot be used.
    """

    text: NDArray[np.uint8]
    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    n_duplicates: int
    n_empty: int
    n_skipped_files: int
    n_rejected: int
    n_listed: int
    n_markup_files: int

    def __len__(self) -> int:
        return len(self.high)

    @property
    def n_bytes(self) -> int:
        """Total bytes of text."""
        return int(self.lengths.sum())

    def spans(self, first: int = 0, end: int | None = None) -> NDArray[np.int64]:
        """Return the first byte and the end in ``text`` of documents, shape (n, 2)."""
        starts, lengths = self.starts[first:end], self.lengths[first:end]
        return np.stack([starts, starts + lengths], axis=1)


def spool_documents(
    source: DataSource,
    files: tuple[SourceFile, ...],
    path: Path,
    rejects: Rejects,
    progress: Progress,
) -> Spool:
    """Write the text of all documents to ``path`` and return them ordered by hash.

    Raises
    ------
    DataError
        When a file cannot be read, too many rows cannot be used, or there is no text.
    """
    with path.open("wb", buffering=1 << 20) as text:
        reader = _Reader(source, files, text, rejects, progress)
        reader.read()
    reader.require_text()
    halves = np.frombuffer(reader.digests, dtype=">u8").reshape(-1, 2).astype(np.uint64)
    sizes = np.frombuffer(reader.lengths, dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
    kept = order[is_new]
    return Spool(
        text=np.asarray(np.memmap(path, dtype=np.uint8, mode="r")),
        high=halves[kept, 0],
        low=halves[kept, 1],
        starts=starts[kept],
        lengths=sizes[kept],
        n_duplicates=len(order) - len(kept),
        n_empty=reader.n_empty,
        n_skipped_files=len(reader.skipped),
        n_rejected=rejects.n_rejected,
        n_listed=rejects.n_listed,
        n_markup_files=len(reader.markup),
    )


class _Reader:
    """Reads files one after the other into one file of text."""

    def __init__(
        self,
        source: DataSource,
        files: tuple[SourceFile, ...],
        text: BinaryIO,
        rejects: Rejects,
        progress: Progress,
    ) -> None:
        self.source, self.files, self._text = source, files, text
        self.rejects, self._progress = rejects, progress
        self.digests = bytearray()
        self.lengths = array("q")
        self.skipped: list[Path] = []
        self.markup: list[Path] = []
        self.n_empty = 0
        # JSON without the field of the text that was read as text: its bytes and an example.
        self._n_json_bytes = 0
        self._json: tuple[Path, Reject] | None = None
        self._total = sum(file.path.stat().st_size for file in files)
        self._done = self._reported = 0

    def read(self) -> None:
        """Read all files."""
        for file in self.files:
            kind, is_markup = kind_of(file, self.source)
            if kind == TEXT:
                self._read_text(file, is_markup=is_markup)
            else:
                self._read_rows(file, kind)
            self._done += file.path.stat().st_size
        self._progress("reading", self._total, self._total)

    def _read_text(self, file: SourceFile, *, is_markup: bool) -> None:
        start = self._text.tell()
        hashed = new_digest()
        try:
            for block, n_read in read_text(file):
                hashed.update(block)
                self._text.write(block)
                self._report(n_read)
        except CutTextError:
            reason = "ends inside a character, which is left out"
            self.rejects.list_only(file.path, Reject(place="end", reason=reason))
        except NotTextError as error:
            self._text.seek(start)
            self._text.truncate()
            reject = Reject(place=FILE, reason=f"is not text: {error}")
            if file.is_named:
                self.rejects.add(file.path, reject)
            else:
                self.skipped.append(file.path)
                self.rejects.list_only(file.path, reject)
            return
        length = self._text.tell() - start
        self._end_document(hashed.digest(), length)
        if is_markup and length:
            self.markup.append(file.path)

    def _read_rows(self, file: SourceFile, kind: str) -> None:
        """Read rows; a JSON file without any row that has the field of the text is text."""
        may_be_text = file.kind == kind == JSON and self.source.format == AUTO
        held: list[Reject] = []
        try:
            for document, n_read in read_rows(file, self.source, kind):
                if isinstance(document, bytes):
                    may_be_text = False
                    self._text.write(document)
                    self._end_document(digest(document), len(document))
                elif may_be_text and not document.has_field and len(held) < MOST_HELD:
                    held.append(document)
                else:
                    may_be_text = False
                    self.rejects.add(file.path, document)
                self._report(n_read)
        except TooLongError:
            if not may_be_text:
                raise
        if may_be_text:
            if held and held[0].missing and self._json is None:
                self._json = file.path, held[0]
            self._n_json_bytes += file.path.stat().st_size
            self._read_text(file, is_markup=True)
        else:
            for reject in held:
                self.rejects.add(file.path, reject)

    def _end_document(self, document_digest: bytes, length: int) -> None:
        if not length:
            self.n_empty += 1
            return
        self.digests += document_digest
        self.lengths.append(length)

    def _report(self, n_read: int) -> None:
        if self._done + n_read - self._reported >= REPORT_BYTES:
            self._reported = self._done + n_read
            self._progress("reading", min(self._reported, self._total), self._total)

    def require_text(self) -> None:
        """Raise DataError if there is no text, or too many rows are unusable or markup."""
        n_rows = len(self.lengths) + self.n_empty + self.rejects.n_rejected
        self.rejects.require_share(n_rows, self.source)
        if self._json is not None and self._n_json_bytes > self._total / 2:
            path, reject = self._json
            why = "most of the text is JSON without it"
            raise missing_field(path, reject, self.source, why)
        if self.lengths:
            return
        if self.skipped:
            raise _not_text(
                f"{plural(len(self.skipped), 'file')} without UTF-8 text, such as {self.skipped[0]}"
            )
        raise DataError(
            f"no text in {self.source.describe()} ({plural(self.n_empty, 'empty document')} in "
            f"{plural(len(self.files), 'file')})",
            "files with text",
            "Name files with text, for example --data corpus/.",
        )


def _not_text(given: str) -> DataError:
    return DataError(
        given,
        "UTF-8 text, or JSON or Parquet with one text per row",
        "Convert or unpack it first, or name other files, for example --data 'corpus/*.txt'.",
    )
