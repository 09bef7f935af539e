"""Documents that two texts have in common, by the hashes of their text."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.build import (
    UNSETTLED_S,
    documents_file,
    keep_hashes,
    listing_of,
    scratch_folder,
)
from scalelab.corpus.dataset import Dataset
from scalelab.corpus.documents import CutTextError, NotTextError, kind_of, read_rows, read_text
from scalelab.corpus.held_out import DOCUMENTS
from scalelab.corpus.rejects import Rejects
from scalelab.corpus.source import TEXT, DataSource, SourceFile, find_files
from scalelab.corpus.split import digest, new_digest
from scalelab.corpus.spool import Progress, spool_documents
from scalelab.corpus.tokenizer import SharedTokenizer

MOST_NAMED = 3
"""Files of documents in both texts that an error names."""

Hashes = NDArray[np.uint64]
"""Hashes of documents, shape (n, 2), in their order."""
Key = tuple[int, int]
"""The two halves of a hash."""


def trained_documents(
    source: DataSource, dataset: Dataset, results: Path, progress: Progress
) -> Hashes:
    """Return the hashes of the documents that are trained on, whole or a part of them."""
    hashes = all_documents(source, results, progress)
    return hashes[n_held_out(dataset) :]


def held_out_documents(dataset: Dataset, hashes: Hashes) -> Hashes:
    """Return the hashes of the documents that are held out, whole or their ends, of all hashes."""
    return hashes[: n_held_out(dataset) or len(hashes)]


def n_held_out(dataset: Dataset) -> int:
    """Return how many documents, in the order of their hashes, are held out as a whole."""
    manifest = dataset.manifest
    return manifest.n_held_out_documents or 0 if manifest.split == DOCUMENTS else 0


def all_documents(
    source: DataSource,
    results: Path,
    progress: Progress,
    *,
    shared: SharedTokenizer | None = None,
) -> Hashes:
    """Return the hashes of a source's documents, in order; read the text if they are unknown."""
    data = results / "data"
    started_s = time.time()
    files = find_files(source, results)
    listing, newest_s = listing_of(source, files, shared)
    kept = documents_file(data, listing)
    if kept.exists():
        found: Hashes = np.load(kept)
        return found
    with scratch_folder(data) as scratch:
        with Rejects(scratch / "rejects", scratch / "list") as rejects:
            spool = spool_documents(source, files, scratch / "text", rejects, progress)
        hashes: Hashes = keep_hashes(spool, kept, scratch)
    if newest_s >= started_s - UNSETTLED_S:
        kept.unlink(missing_ok=True)
    return hashes


def shared_documents(first: Hashes, other: Hashes) -> set[Key]:
    """Return the documents that are in both."""
    # The first halves are compared fast; whole hashes only where these agree.
    near = first[np.isin(first[:, 0], other[:, 0])]
    if not len(near):
        return set()
    known = set(map(tuple, other[np.isin(other[:, 0], near[:, 0])].tolist()))
    return {key for pair in near.tolist() if (key := tuple(pair)) in known}


def named_places(shared: set[Key], first: DataSource, other: DataSource, results: Path) -> str:
    """Return the files of the first source that have some of the documents, and how many more."""
    own = dict(_places(first, shared, results))
    others = dict(_places(other, shared, results, most=len(own)))
    named = [
        f"{path} (also {others[key]})" if key in others and others[key] != path else str(path)
        for key, path in list(own.items())[:MOST_NAMED]
    ]
    more = len(shared) - len(named)
    return ", ".join(named) + (f" and {more:,} more" if more else "")


def _places(
    source: DataSource, sought: set[Key], results: Path, most: int = MOST_NAMED
) -> Iterator[tuple[Key, Path]]:
    """Yield the hash and the file of the first documents with these hashes."""
    left = set(sought)
    for file in find_files(source, results):
        for key in _keys(file, source):
            if key in left:
                left.discard(key)
                yield key, file.path
                if len(sought) - len(left) == most:
                    return


def _keys(file: SourceFile, source: DataSource) -> Iterator[Key]:
    """Yield the hashes of a file's documents, and of the file as one text if it has no rows."""
    kind, _ = kind_of(file, source)
    if kind != TEXT:
        for document, _ in read_rows(file, source, kind):
            if isinstance(document, bytes):
                yield _key(digest(document))
    hashed = new_digest()
    with contextlib.suppress(CutTextError, NotTextError):
        for block, _ in read_text(file):
            hashed.update(block)
    yield _key(hashed.digest())


def _key(found: bytes) -> Key:
    return int.from_bytes(found[:8], "big"), int.from_bytes(found[8:], "big")
