"""A prepared corpus: open it, and get the batch of a step or the evaluation set.

`prepare` turns text into a `Dataset`, or finds the dataset built earlier. `open_dataset` opens a
folder and needs only NumPy. `find_dataset` opens the dataset that a run's spec names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.order import permuted_run
from scalelab.corpus.shards import Manifest, read_manifest
from scalelab.corpus.source import DataSource
from scalelab.corpus.spool import Progress
from scalelab.corpus.token_stream import TokenStream, outside_vocabulary
from scalelab.errors import DataError
from scalelab.units import plural


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Tokens of a corpus, memory-mapped, split into a training and an evaluation part.

    It is pickled as its path, so it can be passed to a worker process.

    Attributes
    ----------
    folder : Path
        ``<results>/data/<fingerprint>``.
    manifest : Manifest
        Content of the folder; after `prepare`, with the counts of the given source.
    """

    folder: Path
    manifest: Manifest

    def __reduce__(self) -> tuple[Callable[[Path], Dataset], tuple[Path]]:
        return open_dataset, (self.folder,)

    @property
    def fingerprint(self) -> str:
        """Content hash of tokenizer, training and evaluation tokens."""
        return self.manifest.fingerprint

    @property
    def eval_fingerprint(self) -> str:
        """Content hash of tokenizer and evaluation tokens."""
        return self.manifest.eval_fingerprint

    @property
    def tokenizer(self) -> str:
        """Name of the tokenizer: ``bytes``, ``bpe:SIZE``, ``tokens`` if it is unknown."""
        return self.manifest.tokenizer

    @property
    def vocab_size(self) -> int:
        """Vocabulary size without padding."""
        return self.manifest.vocab_size

    @property
    def end_token(self) -> int | None:
        """Token that ends a document; None if the documents have no such token."""
        return self.manifest.end_token

    @property
    def bytes_per_token(self) -> float | None:
        """Mean bytes of text per evaluation token; None for token files without their tokenizer."""
        return self.manifest.bytes_per_token

    @property
    def n_train_tokens(self) -> int:
        """Tokens of the training part."""
        return sum(shard.n_tokens for shard in self.manifest.train)

    @property
    def n_eval_tokens(self) -> int:
        """Tokens of the evaluation set."""
        return sum(shard.n_tokens for shard in self.manifest.evaluation)

    @property
    def rejects(self) -> Path | None:
        """The list of documents and files that were left out; None if there are none."""
        name = self.manifest.rejects
        return None if name is None else self.folder.parent / "rejects" / name

    def warnings(self) -> list[str]:
        """Return what to know about the text before training on it."""
        found = []
        if n := self.manifest.n_rejected:
            is_one = n == 1
            found.append(
                f"{plural(n, 'document')} cannot be used and {'was' if is_one else 'were'} left "
                f"out; {self.rejects} lists {'it' if is_one else 'them'}."
            )
        return [*found, *filter(None, [self.markup_warning()])]

    def markup_warning(self) -> str:
        """Return a warning about files that were read as text with their markup, or nothing."""
        n = self.manifest.n_markup_files
        if not n:
            return ""
        return (
            f"{plural(n, 'file')} of HTML, XML, JSON or CSV {'was' if n == 1 else 'were'} read as "
            "text, markup included. If they hold rows, name the field or column of the text, for "
            "example --field content or --column content."
        )

    def n_sequences(self, seq_len: int) -> int:
        """Return the training sequences of one epoch: the corpus cut into chunks of ``seq_len``.

        Raises
        ------
        DataError
            When the training part is shorter than one sequence.
        """
        n = (self.n_train_tokens - 1) // seq_len
        if n < 1:
            raise DataError(
                f"sequences of {seq_len} tokens from {self.n_train_tokens} training tokens",
                f"sequences of at most {self.n_train_tokens - 1} tokens",
                "Use a smaller --seq-len, or give more text.",
            )
        return n

    def batch(self, seed: int, step: int, batch_seqs: int, seq_len: int) -> NDArray[np.int64]:
        """Return the training batch of a step; it depends only on the arguments.

        Each epoch visits every chunk of ``seq_len`` tokens once, in an order given by the seed and
        the epoch. Runs that differ only in ``batch_seqs`` see the same order. Within one epoch, no
        token is predicted twice.

        Parameters
        ----------
        seed : int
            Seed of the order.
        step : int
            Step, from 0.
        batch_seqs, seq_len : int
            Sequences per batch, and predicted tokens per sequence.

        Returns
        -------
        ndarray of int64, shape (batch_seqs, seq_len + 1)
            Inputs are ``[:, :-1]``, targets ``[:, 1:]``.

        Raises
        ------
        DataError
            When the training part is shorter than one sequence.
        """
        batch = np.empty((batch_seqs, seq_len + 1), dtype=np.int64)
        self.read_batches([(seed, step)], batch)
        return batch

    def read_batches(self, runs: Sequence[tuple[int, int]], batches: NDArray[np.integer]) -> None:
        """Write the `batch` of each of several runs to one array, in one pass.

        Parameters
        ----------
        runs : sequence of (int, int)
            Seed and step of each run.
        batches : ndarray of int, shape (K, batch_seqs, seq_len + 1)
            Without K for one run.

        Raises
        ------
        DataError
            When the training part is shorter than one sequence, or a token of large token files is
            outside the vocabulary.
        """
        batch_seqs, length = batches.shape[-2:]
        places = [(seed, step * batch_seqs, (step + 1) * batch_seqs) for seed, step in runs]
        self.read_sequences(places, batches.reshape(-1, length))

    def read_sequences(
        self, places: Sequence[tuple[int, int, int]], rows: NDArray[np.integer]
    ) -> None:
        """Write training sequences to the rows of an array, in the order of `batch`.

        Parameters
        ----------
        places : sequence of (int, int, int)
            Seed of an order, and the first and the last place in it (from 0, the last excluded).
        rows : ndarray of int, shape (k, seq_len + 1)
            The sequences of all places, one after the other.

        Raises
        ------
        DataError
            As `read_batches`.
        """
        seq_len = rows.shape[1] - 1
        n = self.n_sequences(seq_len)
        chunks = [
            permuted_run(
                max(first - epoch * n, 0), min(last - epoch * n, n), n, seed=seed, epoch=epoch
            )
            for seed, first, last in places
            for epoch in range(first // n, (last - 1) // n + 1)
        ]
        starts = (chunks[0] if len(chunks) == 1 else np.concatenate(chunks)) * seq_len
        self._train.read_rows(starts, rows)
        if not self.manifest.is_scanned:
            self._require_vocabulary(starts, rows)

    def _require_vocabulary(self, starts: NDArray[np.int64], rows: NDArray[np.integer]) -> None:
        is_outside = (rows < 0) | (rows >= self.vocab_size)
        if is_outside.any():
            row, column = np.argwhere(is_outside)[0]
            place = int(starts[row] + column)
            raise outside_vocabulary(
                self.manifest.train, place, int(rows[row, column]), self.vocab_size
            )

    def eval_sequences(self, seq_len: int) -> NDArray[np.int64]:
        """Return the evaluation set as sequences, in one fixed order.

        Returns
        -------
        ndarray of int64, shape (n, seq_len + 1)
            Each evaluation token except the first is a target once. An incomplete sequence at the
            end is left out.

        Raises
        ------
        DataError
            When the evaluation set is shorter than one sequence.
        """
        n = (self.n_eval_tokens - 1) // seq_len
        if n < 1:
            raise DataError(
                f"sequences of {seq_len} tokens from {self.n_eval_tokens} evaluation tokens",
                f"sequences of at most {self.n_eval_tokens - 1} tokens",
                "Use a smaller --seq-len, or a larger --eval-tokens.",
            )
        rows = np.empty((n, seq_len + 1), dtype=np.int64)
        self._eval.read_rows(np.arange(n, dtype=np.int64) * seq_len, rows)
        return rows

    def unique_tokens(self, n_tokens: int, seq_len: int = 1) -> int:
        """Return how many distinct training tokens a run over ``n_tokens`` predicts."""
        return min(n_tokens, self.n_sequences(seq_len) * seq_len)

    @functools.cached_property
    def _train(self) -> TokenStream:
        return TokenStream(self.folder, self.manifest.train, self.manifest.dtype)

    @functools.cached_property
    def _eval(self) -> TokenStream:
        return TokenStream(self.folder, self.manifest.evaluation, self.manifest.eval_dtype)


def prepare(
    source: DataSource,
    results: Path,
    *,
    progress: Progress | None = None,
    checks_hashes: bool = False,
    keeps_documents: bool = False,
) -> Dataset:
    """Return the dataset of a source; build it if it does not exist yet.

    Files with the same sizes and times as before are not read again.

    Parameters
    ----------
    source : DataSource
        Text and tokenizer.
    results : Path
        The results folder; the dataset is in ``data/<fingerprint>``.
    progress : callable, optional
        Called with the name of the stage, the bytes done and the total bytes.
    checks_hashes : bool
        Whether to compare an existing dataset with its hashes and rebuild it if it is damaged;
        otherwise only file sizes are checked.
    keeps_documents : bool
        Whether to keep the hashes of the documents, which `scalelab.corpus.eval_sets` compares.

    Raises
    ------
    DataError
        When the text cannot be used; the results folder is then unchanged.
    """
    from scalelab.corpus.build import build_dataset

    folder, manifest = build_dataset(
        source,
        results,
        progress or ignore_progress,
        checks_hashes=checks_hashes,
        keeps_documents=keeps_documents,
    )
    return Dataset(folder=folder, manifest=manifest)


def find_prepared(source: DataSource, results: Path) -> Dataset | None:
    """Return the dataset built earlier from a source; None if there is none or files changed.

    Reads only the sizes and times of the files, and writes nothing.

    Raises
    ------
    DataError
        When a path of the source is missing or unreadable.
    """
    from scalelab.corpus.build import find_built

    found = find_built(source, results)
    return None if found is None else Dataset(folder=found[0], manifest=found[1])


def open_dataset(folder: Path) -> Dataset:
    """Open a prepared dataset and check the sizes of its shards.

    Raises
    ------
    DataError
        When the folder is missing or damaged.
    """
    return Dataset(folder=folder, manifest=read_manifest(folder))


def find_dataset(results: Path, fingerprint: str) -> Dataset:
    """Open the dataset that a run's spec names by its fingerprint.

    Raises
    ------
    DataError
        When the results folder does not contain it, or it is damaged.
    """
    folder = results / "data" / fingerprint
    if not folder.is_dir():
        raise DataError(
            f"data {fingerprint}, which is not in {folder}",
            "the fingerprint of prepared data",
            "Run `scalelab data prepare` with the data options of the sweep.",
        )
    return open_dataset(folder)


def ignore_progress(stage: str, done: int, total: int) -> None:
    """Ignore the progress."""
