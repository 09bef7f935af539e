"""Prepare the sources of a mixture: each as a dataset, all with one tokenizer.

A BPE tokenizer is trained on the text of all sources, as many bytes of each. Every source has its
own held-out part, so that each run can say its loss on each of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from scalelab.corpus.build import (
    UNSETTLED_S,
    build_dataset,
    find_built,
    inputs_of,
    listing_of,
    scratch_folder,
)
from scalelab.corpus.dataset import Dataset, ignore_progress
from scalelab.corpus.held_out import never_held_out, texts_of
from scalelab.corpus.mixed import MixedDataset, mixture_of
from scalelab.corpus.rejects import Rejects
from scalelab.corpus.shards import FINGERPRINT_LENGTH, MANIFEST_NAME
from scalelab.corpus.shared_documents import (
    all_documents,
    held_out_documents,
    n_held_out,
    named_places,
    shared_documents,
)
from scalelab.corpus.source import DataSource
from scalelab.corpus.spool import Progress, spool_documents
from scalelab.corpus.tokenizer import SharedTokenizer, cached_bpe
from scalelab.errors import DataError, ScalelabError
from scalelab.units import plural

Sources = Mapping[str, DataSource]
"""Sources of a mixture by name, with the same tokenizer."""


def prepare_mixture(
    sources: Sources,
    results: Path,
    *,
    progress: Progress | None = None,
    checks_hashes: bool = False,
) -> MixedDataset:
    """Return the mixture of sources; prepare those that do not exist yet.

    Parameters are those of `scalelab.corpus.dataset.prepare`.

    Raises
    ------
    UsageError, DataError
        When a source cannot be used, two sources have the same text, or a held-out document of one
        is trained on in another.
    """
    progress = progress or ignore_progress
    shared = _shared_tokenizer(sources, results, progress)
    found: dict[str, Dataset] = {}
    for name, source in sources.items():
        with of_source(name):
            folder, manifest = build_dataset(
                source,
                results,
                _named(progress, name),
                checks_hashes=checks_hashes,
                shared=shared,
                keeps_documents=True,
            )
        found[name] = Dataset(folder=folder, manifest=manifest)
    mixed = mixture_of(results / "data", found)
    _require_different(mixed)
    _refuse_leaks(sources, mixed, results, progress, shared)
    if not _is_published(mixed):
        _publish(mixed, results / "data")
    return mixed


def find_mixture(sources: Sources, results: Path) -> MixedDataset | None:
    """Return the mixture that was prepared earlier; None if there is none or files changed.

    Reads only the sizes and times of the files, and writes nothing.

    Raises
    ------
    UsageError, DataError
        When a source cannot be used.
    """
    shared = _shared_tokenizer(sources, results, ignore_progress)
    found: dict[str, Dataset] = {}
    for name, source in sources.items():
        with of_source(name):
            built = find_built(source, results, shared=shared)
        if built is None:
            return None
        found[name] = Dataset(folder=built[0], manifest=built[1])
    return mixture_of(results / "data", found)


@contextlib.contextmanager
def of_source(name: str) -> Iterator[None]:
    """Name the source in errors of the block."""
    try:
        yield
    except ScalelabError as error:
        raise type(error)(f"source {name}: {error.given}", error.allowed, error.do) from error


def _named(progress: Progress, name: str) -> Progress:
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)


def _shared_tokenizer(
    sources: Sources, results: Path, progress: Progress
) -> SharedTokenizer | None:
    """Return the BPE tokenizer of all sources; None if the tokenizer is not trained here."""
    if all(source.bpe_size is None for source in sources.values()):
        return None
    listings, newest_s = [], 0.0
    for name, source in sources.items():
        with of_source(name):
            tokens, _, files = inputs_of(source, results)
            if tokens is not None:
                raise DataError(
                    f"token files with the tokenizer {source.tokenizer}",
                    "text, on which the tokenizer is trained",
                    "Give text for every source, or a file of the tokenizer that made the tokens.",
                )
            listing, changed_s = listing_of(source, files)
        listings.append(listing)
        newest_s = max(newest_s, changed_s)
    key = hashlib.sha256(json.dumps(listings).encode()).hexdigest()[:FINGERPRINT_LENGTH]

    def train() -> Path:
        # A file that changed within the last clock tick could change again with the same time.
        is_settled = newest_s < time.time() - UNSETTLED_S
        return _train(sources, results, key if is_settled else None, progress)

    return SharedTokenizer(key=key, file=train)


def _train(sources: Sources, results: Path, key: str | None, progress: Progress) -> Path:
    """Return the file of the tokenizer; train it unless the files with this key had it trained."""
    data = results / "data"
    known = data / "sources" / f"tokenizer-{key}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        file = data / "tokenizers" / str(json.loads(known.read_text())["file"])
        if file.is_file():
            return file
    texts, hashed = [], hashlib.sha256()
    size = next(size for source in sources.values() if (size := source.bpe_size) is not None)
    with scratch_folder(data) as scratch:
        for index, (name, source) in enumerate(sources.items()):
            # What cannot be used is listed when the source is prepared.
            with of_source(name), Rejects(scratch / "list", scratch / "rejects") as rejects:
                spool = spool_documents(
                    source,
                    inputs_of(source, results)[-1],
                    scratch / f"text-{index}",
                    rejects,
                    _named(progress, name),
                )
            n_bytes = max(1, source.bpe_sample // len(sources))
            spans, digest = never_held_out(spool, n_bytes)
            hashed.update(digest)
            texts.append(texts_of(spool.text, spans, n_bytes))
        progress("training the tokenizer", 0, 1)
        file = cached_bpe(
            itertools.chain.from_iterable(texts), hashed.hexdigest(), size, data / "tokenizers"
        )
        progress("training the tokenizer", 1, 1)
        if key is not None:
            note = scratch / "note.json"
            note.write_text(json.dumps({"file": file.name}))
            known.parent.mkdir(exist_ok=True)
            note.replace(known)
    return file


def _require_different(mixed: MixedDataset) -> None:
    """Raise DataError when two sources have the same tokens."""
    names: dict[str, str] = {}
    for name, source in mixed.sources.items():
        other = names.setdefault(source.fingerprint, name)
        if other != name:
            raise DataError(
                f"sources {other} and {name} with the same text",
                "different text for each source",
                f"Remove {name}, and add its weight to {other}.",
            )


def _refuse_leaks(
    sources: Sources,
    mixed: MixedDataset,
    results: Path,
    progress: Progress,
    shared: SharedTokenizer | None,
) -> None:
    """Raise DataError when a held-out document of a source is in the training part of another.

    Token files have no documents to compare.
    """
    texts = {name: data for name, data in mixed.sources.items() if not data.manifest.files}
    hashes = {}
    for name in texts:
        with of_source(name):
            own = _named(progress, name)
            hashes[name] = all_documents(sources[name], results, own, shared=shared)
    for name, other in itertools.permutations(texts, 2):
        trained = hashes[other][n_held_out(texts[other]) :]
        found = shared_documents(held_out_documents(texts[name], hashes[name]), trained)
        if found:
            places = named_places(found, sources[name], sources[other], results)
            is_one = len(found) == 1
            raise DataError(
                f"source {name}, of which {plural(len(found), 'held-out document')} "
                f"{'is' if is_one else 'are'} in the training part of source {other}: {places}",
                "sources without a common document: the loss on a text that was trained on is too "
                "low",
                f"Leave {'this file' if is_one else 'these files'} out of one of the sources.",
            )


def _is_published(mixed: MixedDataset) -> bool:
    """Return whether the folder of a mixture has its manifest."""
    try:
        return (mixed.folder / MANIFEST_NAME).read_text(encoding="utf-8") == mixed.to_json()
    except OSError:
        return False


def _publish(mixed: MixedDataset, data: Path) -> None:
    """Write the folder of a mixture; another process may write the same one."""
    with scratch_folder(data) as scratch:
        file = scratch / MANIFEST_NAME
        file.write_text(mixed.to_json(), encoding="utf-8")
        mixed.folder.mkdir(exist_ok=True)
        file.replace(mixed.folder / MANIFEST_NAME)
