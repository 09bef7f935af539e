"""Prepared evaluation sets: texts beside the training text, whose loss every run reports.

A set is a dataset without a training part. It is cut with the tokenizer of the training data and
stored beside it, so that workers find it as they find the training data. Its tokens depend only on
its text and on the size asked for. A set that has a document of the training text is refused.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scalelab.corpus.build import (
    UNSETTLED_S,
    documents_file,
    keep_hashes,
    listing_of,
    publish,
    scratch_folder,
)
from scalelab.corpus.dataset import Dataset, open_dataset
from scalelab.corpus.eval_text import EvalText
from scalelab.corpus.held_out import whole_set
from scalelab.corpus.rejects import Rejects
from scalelab.corpus.shared_documents import (
    Hashes,
    named_places,
    shared_documents,
    trained_documents,
)
from scalelab.corpus.source import DataSource, SourceFile, find_files
from scalelab.corpus.spool import Progress, spool_documents
from scalelab.corpus.text_dataset import write_rest
from scalelab.corpus.token_dataset import UNNAMED, write_eval_tokens
from scalelab.corpus.token_files import find_tokens
from scalelab.corpus.tokenizer import BpeTokenizer, ByteTokenizer, Tokenizer
from scalelab.corpus.tokenizer_files import source_tokenizer
from scalelab.errors import DataError, UsageError
from scalelab.units import plural

Trained = tuple[tuple[DataSource, Dataset], ...]
"""The training text, or the sources of a mixture, each with its prepared tokens."""


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """A prepared evaluation set.

    Attributes
    ----------
    name : str
        Its name.
    dataset : Dataset
        Its tokens, as the evaluation part of a dataset without a training part.
    n_asked : int
        Tokens that were asked for; the set has fewer if its text has.
    is_compared : bool
        Whether its documents were compared with those of the training text; token files have none.
    """

    name: str
    dataset: Dataset
    n_asked: int
    is_compared: bool

    def warnings(self) -> list[str]:
        """Return what to know about the set before evaluating on it."""
        found = [f"evaluation set {self.name}: {text}" for text in self.dataset.warnings()]
        n = self.dataset.n_eval_tokens
        if n < self.n_asked:
            found.append(
                f"evaluation set {self.name} has {plural(n, 'token')}, fewer than the "
                f"{self.n_asked:,} asked for: its text has no more. Its loss is less precise."
            )
        if not self.is_compared:
            found.append(
                f"evaluation set {self.name} was not compared with the training text, because "
                "token files have no documents. Make sure that no text is in both."
            )
        return found


def set_source(source: DataSource, text: EvalText) -> DataSource:
    """Return the source of an evaluation set: its own paths, read as the training text is."""
    return replace(
        source, paths=text.paths, eval_paths=(), eval_tokens=text.tokens or source.eval_tokens
    )


def prepare_eval_sets(
    texts: Mapping[str, EvalText],
    source: DataSource,
    trained: Trained,
    results: Path,
    progress: Progress,
) -> tuple[EvalSet, ...]:
    """Return the evaluation sets of a sweep; build those that do not exist yet.

    Parameters
    ----------
    texts : Mapping
        By name.
    source : DataSource
        How their files are read.
    trained : tuple
        The training text or the sources of a mixture, with their prepared tokens.
    results : Path
        The results folder.
    progress : callable
        As in `scalelab.corpus.dataset.prepare`.

    Raises
    ------
    DataError
        When a text cannot be used, is empty, or has a document of the training text.
    UsageError
        When a set is of tokens and the training data is text, or the other way round.
    """
    training: list[Hashes] = []
    (_, dataset), *_ = trained
    found = []
    for name, text in texts.items():
        own = set_source(source, text)
        with naming_set(name):
            is_text = _require_kind(own, dataset, results) is None
            prepared, hashes = _prepare(own, dataset, results, progress, is_text=is_text)
        is_compared = is_text and not dataset.manifest.files
        if is_compared and hashes is not None:
            training = training or [
                trained_documents(text_source, prepared_text, results, progress)
                for text_source, prepared_text in trained
            ]
            for (text_source, _), each in zip(trained, training, strict=True):
                _refuse_shared(name, own, hashes, text_source, each, results)
        n_asked = own.eval_tokens
        found.append(EvalSet(name=name, dataset=prepared, n_asked=n_asked, is_compared=is_compared))
    return tuple(found)


def find_eval_set(
    text: EvalText, source: DataSource, dataset: Dataset, results: Path
) -> Dataset | None:
    """Return the dataset of a set that was built earlier; None if there is none.

    Raises
    ------
    DataError
        When a path is missing or unreadable.
    """
    own = set_source(source, text)
    return _known(_note(own, _files(own, results), dataset, results)[0])


def _require_kind(own: DataSource, dataset: Dataset, results: Path) -> object | None:
    """Return the token files of a set, None for text; UsageError if the tokenizer is unknown."""
    tokens = find_tokens(own, results)
    if tokens is not None and not dataset.manifest.files:
        raise UsageError(
            f"token files {own.describe()} as an evaluation set of text",
            "text, which is cut with the tokenizer of the training text",
            "Name the text itself. If the files are text, add --data-format text.",
        )
    if tokens is None and dataset.tokenizer == UNNAMED:
        raise UsageError(
            f"text {own.describe()} as an evaluation set of token files without their tokenizer",
            "token files in the format of the training data, or the tokenizer that made them",
            "Name the tokenizer, for example --tokenizer tokenizer.json.",
        )
    return tokens


def _files(own: DataSource, results: Path) -> tuple[SourceFile, ...]:
    tokens = find_tokens(own, results)
    if tokens is None:
        return find_files(own, results)
    return tuple(SourceFile(path=path, kind="tokens", is_named=True) for path in tokens.files)


def _note(
    own: DataSource, files: tuple[SourceFile, ...], dataset: Dataset, results: Path
) -> tuple[Path, str, float]:
    """Return the file that names the dataset of a set, its listing, and the newest time."""
    manifest = dataset.manifest
    also = json.dumps(["evaluation set", manifest.tokenizer, manifest.tokenizer_sha256])
    if manifest.files:
        also += json.dumps([manifest.vocab_size, manifest.end_token])
    listing, newest_s = listing_of(own, files, also=also)
    return results / "data" / "sources" / f"{listing}.json", listing, newest_s


def _known(note: Path) -> Dataset | None:
    try:
        fingerprint = str(json.loads(note.read_text())["fingerprint"])
        return open_dataset(note.parents[1] / fingerprint)
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None


def _prepare(
    own: DataSource, dataset: Dataset, results: Path, progress: Progress, *, is_text: bool
) -> tuple[Dataset, Hashes | None]:
    """Return the dataset of a set and the hashes of its documents, None for token files."""
    data = results / "data"
    started_s = time.time()
    files = _files(own, results)
    note, listing, newest_s = _note(own, files, dataset, results)
    found, kept = _known(note), documents_file(data, listing)
    if found is not None and (not is_text or kept.exists()):
        return found, np.load(kept) if is_text else None
    hashes = None
    with scratch_folder(data) as scratch:
        whole = scratch / "whole"
        whole.mkdir()
        if is_text:
            with Rejects(data / "rejects" / f"{listing}.jsonl", scratch / "rejects") as rejects:
                spool = spool_documents(own, files, scratch / "text", rejects, progress)
            tokenizer = _tokenizer(own, dataset)
            parts = whole_set(own, spool, tokenizer, scratch)
            manifest = write_rest(own, spool, parts, tokenizer, (), whole)
            manifest = replace(manifest, rejects=rejects.path.name if rejects.n_listed else None)
            hashes = keep_hashes(spool, kept, scratch)
        else:
            tokens = find_tokens(own, results)
            assert tokens is not None
            manifest = write_eval_tokens(own, tokens, dataset.manifest, whole)
        folder = publish(whole, manifest, data)
        if newest_s < started_s - UNSETTLED_S:
            note.parent.mkdir(exist_ok=True)
            (scratch / "note.json").write_text(json.dumps({"fingerprint": manifest.fingerprint}))
            (scratch / "note.json").replace(note)
        else:
            kept.unlink(missing_ok=True)
    return Dataset(folder=folder, manifest=manifest), hashes


def _tokenizer(own: DataSource, dataset: Dataset) -> Tokenizer:
    """Return the tokenizer of the training data."""
    made = source_tokenizer(own)
    if made is not None:
        return made
    if own.bpe_size is None:
        return ByteTokenizer()
    return BpeTokenizer(dataset.folder / "tokenizer.json")


def _refuse_shared(
    name: str,
    own: DataSource,
    hashes: Hashes,
    source: DataSource,
    training: Hashes,
    results: Path,
) -> None:
    """Raise DataError if a document of a set is trained on."""
    shared = shared_documents(hashes, training)
    if shared:
        raise DataError(
            f"evaluation set {name}, of which {plural(len(shared), 'document')} of "
            f"{len(hashes):,} {'is' if len(shared) == 1 else 'are'} also in the training text: "
            f"{named_places(shared, own, source, results)}",
            "texts without a common document: the loss on a text that was trained on is too low",
            "Leave these files out of the training text, or name other files for the set: "
            f"--eval-set {name}=PATH.",
        )


@contextlib.contextmanager
def naming_set(name: str) -> Iterator[None]:
    """Add the name of a set and its option to an error of reading its text."""
    try:
        yield
    except DataError as error:
        flag = f"--eval-set {name}="
        allowed, do = (
            re.sub(r"--data (?=[\w'])", flag, text) for text in (error.allowed, error.do)
        )
        given = re.sub(r"--data (?=\S)", "", error.given)
        raise DataError(f"evaluation set {name}: {given}", allowed, do) from error
