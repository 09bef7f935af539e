"""Collect the distinct documents of all files on disk, ordered by a hash of their text.

The text is written to one temporary file and read back through a memory map, so the corpus may be
larger than memory. Memory use is 32 bytes per document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.documents import NotTextError, read_documents
from scalelab.corpus.source import DataSource, SourceFile
from scalelab.corpus.split import digest
from scalelab.errors import DataError
from scalelab.units import plural

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spool:
    """Distinct documents on disk, ordered by hash.

    ``high`` and ``low`` are the halves of each document's hash; ``starts`` and ``lengths`` locate
    its bytes in ``text``. All have shape (n_documents,).
    """

    text: NDArray[np.uint8]
    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    n_duplicates: int
    n_empty: int
    n_skipped_files: int

    def __len__(self) -> int:
        return len(self.high)

    @property
    def n_bytes(self) -> int:
        """Total bytes of text."""
        return int(self.lengths.sum())

    def documents(self, first: int, end: int) -> Iterator[bytes]:
        """Yield the documents at these places of the order."""
        for index in range(first, end):
            start = int(self.starts[index])
            yield self.text[start : start + int(self.lengths[index])].tobytes()


def spool_documents(
    source: DataSource, files: tuple[SourceFile, ...], path: Path, progress: Progress
) -> Spool:
    """Write the text of all documents to ``path`` and return them ordered by hash."""
    total = sum(file.path.stat().st_size for file in files)
    digests = bytearray()
    lengths: list[int] = []
    skipped: list[Path] = []
    n_empty = done = 0
    with path.open("wb", buffering=1 << 20) as spool:
        for file in files:
            try:
                for document in read_documents(file, source):
                    if not document:
                        n_empty += 1
                        continue
                    digests += digest(document)
                    lengths.append(len(document))
                    spool.write(document)
            except NotTextError:
                if file.is_named:
                    raise _not_text(str(file.path)) from None
                skipped.append(file.path)
            done += file.path.stat().st_size
            progress("reading", done, total)
    if not lengths:
        if skipped:
            raise _not_text(
                f"{plural(len(skipped), 'file')} without UTF-8 text, such as {skipped[0]}"
            )
        raise DataError(
            f"no text in {source.describe()} ({plural(n_empty, 'empty document')} in "
            f"{plural(len(files), 'file')})",
            "files with text",
            "Name files with text, for example --data corpus/.",
        )
    halves = np.frombuffer(digests, dtype=">u8").reshape(-1, 2).astype(np.uint64)
    sizes = np.asarray(lengths, dtype=np.int64)
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
        n_empty=n_empty,
        n_skipped_files=len(skipped),
    )


def _not_text(given: str) -> DataError:
    return DataError(
        given,
        "UTF-8 text, or JSONL or Parquet with the file ending .jsonl or .parquet",
        "Convert or unpack it first, or name other files, for example --data 'corpus/*.txt'.",
    )
