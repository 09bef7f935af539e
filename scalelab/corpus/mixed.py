"""A mixture of prepared sources: batches in given proportions, and one held-out part per source.

Each source is a dataset with its own folder, which other sweeps may share. The folder of a mixture
has only a manifest that names them; it does not depend on the weights, so that runs with different
weights read the same folder. `open_data` opens either kind of folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.dataset import Dataset, open_dataset
from scalelab.corpus.drawing import Weights, drawn, n_drawn
from scalelab.corpus.shards import FINGERPRINT_LENGTH, MANIFEST_NAME, damaged
from scalelab.errors import DataError

MIXTURE_FORMAT = 1
SOURCES = "sources"
"""Key of a mixture's manifest, which no other manifest has."""


@dataclass(frozen=True, kw_only=True)
class MixedDataset:
    """Prepared sources and, for a run, their weights.

    It is pickled as its path, so it can be passed to a worker process.

    Attributes
    ----------
    folder : Path
        ``<results>/data/<fingerprint>``.
    sources : Mapping[str, Dataset]
        By name, in the order of the names.
    weights : tuple of float
        Weight of each source; empty until `with_weights`.
    """

    folder: Path
    sources: Mapping[str, Dataset]
    weights: Weights = ()

    def __reduce__(self) -> tuple[Callable[..., MixedDataset], tuple[Path, Weights]]:
        return _reopened, (self.folder, self.weights)

    def with_weights(self, weights: Mapping[str, float]) -> MixedDataset:
        """Return the mixture of a run, by the weight of each source."""
        return replace(self, weights=tuple(weights[name] for name in self.sources))

    @property
    def fingerprint(self) -> str:
        """Hash of the names of the sources and of their content."""
        return _short([[name, each.fingerprint] for name, each in self.sources.items()])

    @property
    def eval_fingerprint(self) -> str:
        """Hash of the names of the sources and of their evaluation tokens."""
        return _short([[name, each.eval_fingerprint] for name, each in self.sources.items()])

    @property
    def tokenizer(self) -> str:
        """Name of the tokenizer of all sources."""
        return self._first.tokenizer

    @property
    def vocab_size(self) -> int:
        """Vocabulary size without padding: the largest of a source."""
        return max(each.vocab_size for each in self.sources.values())

    @property
    def end_token(self) -> int | None:
        """Token that ends a document; None if the documents of a source have no such token."""
        found = {each.end_token for each in self.sources.values()}
        return self._first.end_token if len(found) == 1 else None

    @property
    def bytes_per_token(self) -> float | None:
        """Mean bytes of text per evaluation token, each source with the same weight."""
        found = [each.bytes_per_token for each in self.sources.values()]
        known = [each for each in found if each is not None]
        return sum(known) / len(known) if len(known) == len(found) else None

    @property
    def n_train_tokens(self) -> int:
        """Training tokens of all sources."""
        return sum(each.n_train_tokens for each in self.sources.values())

    @property
    def n_eval_tokens(self) -> int:
        """Evaluation tokens of all sources."""
        return sum(each.n_eval_tokens for each in self.sources.values())

    def warnings(self) -> list[str]:
        """Return what to know about the sources before training on them."""
        return [
            f"{name}: {text}" for name, each in self.sources.items() for text in each.warnings()
        ]

    def batch(self, seed: int, step: int, batch_seqs: int, seq_len: int) -> NDArray[np.int64]:
        """Return the training batch of a step; it depends only on the arguments and the weights.

        The place in the run decides the source of a sequence (`scalelab.corpus.drawing`). Inside a
        source, sequences have the order of `Dataset.batch`.

        Returns
        -------
        ndarray of int64, shape (batch_seqs, seq_len + 1)
            Inputs are ``[:, :-1]``, targets ``[:, 1:]``.
        """
        batch = np.empty((batch_seqs, seq_len + 1), dtype=np.int64)
        self.read_batches([(seed, step)], batch)
        return batch

    def read_batches(self, runs: Sequence[tuple[int, int]], batches: NDArray[np.integer]) -> None:
        """Write the `batch` of each of several runs with these weights to one array.

        Parameters and errors are those of `Dataset.read_batches`.
        """
        batch_seqs, length = batches.shape[-2:]
        rows = batches.reshape(-1, length)
        for index, (seed, step) in enumerate(runs):
            of_run = rows[index * batch_seqs : (index + 1) * batch_seqs]
            places, ranks = drawn(self.weights, step * batch_seqs, (step + 1) * batch_seqs)
            for number, source in enumerate(self.sources.values()):
                (here,) = np.nonzero(places == number)
                if not len(here):
                    continue
                part = np.empty((len(here), length), dtype=rows.dtype)
                # Ranks of a source are consecutive.
                first = int(ranks[here[0]])
                source.read_sequences([(seed, first, first + len(here))], part)
                of_run[here] = part

    def eval_sequences(self, seq_len: int) -> NDArray[np.int64]:
        """Return the evaluation sets of all sources, one after the other."""
        return np.concatenate(list(self.eval_parts(seq_len).values()))

    def eval_parts(self, seq_len: int) -> dict[str, NDArray[np.int64]]:
        """Return the evaluation set of each source by name, as `Dataset.eval_sequences`."""
        return {name: each.eval_sequences(seq_len) for name, each in self.sources.items()}

    def draws(self, n_tokens: int, seq_len: int) -> dict[str, int]:
        """Return the tokens that a run over ``n_tokens`` predicts of each source."""
        counts = n_drawn(self.weights, n_tokens // seq_len).tolist()
        return {name: n * seq_len for name, n in zip(self.sources, counts, strict=True)}

    def unique_tokens(self, n_tokens: int, seq_len: int = 1) -> int:
        """Return how many distinct training tokens a run over ``n_tokens`` predicts."""
        draws = self.draws(n_tokens, seq_len)
        return sum(
            self.sources[name].unique_tokens(n, seq_len) if n else 0 for name, n in draws.items()
        )

    @functools.cached_property
    def _first(self) -> Dataset:
        return next(iter(self.sources.values()))

    def to_json(self) -> str:
        """Return the content of the mixture's manifest."""
        content = {
            "format": MIXTURE_FORMAT,
            "fingerprint": self.fingerprint,
            "eval_fingerprint": self.eval_fingerprint,
            SOURCES: {name: each.fingerprint for name, each in self.sources.items()},
        }
        return json.dumps(content, indent=1) + "\n"


AnyDataset = Dataset | MixedDataset


def open_data(folder: Path) -> AnyDataset:
    """Open prepared data, of one text or of a mixture, and check the sizes of its shards.

    Raises
    ------
    DataError
        When the folder, or that of a source, is missing or damaged.
    """
    try:
        content: Any = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or SOURCES not in content:
        return open_dataset(folder)
    named = content[SOURCES]
    if content.get("format") != MIXTURE_FORMAT or not (isinstance(named, dict) and named):
        raise damaged(folder, "a manifest of a mixture that cannot be read")
    found = mixture_of(
        folder.parent, {str(name): open_dataset(folder.parent / str(named[name])) for name in named}
    )
    if found.fingerprint != content.get("fingerprint"):
        raise damaged(folder, "a mixture whose sources have changed")
    return found


def mixture_of(data: Path, sources: Mapping[str, Dataset]) -> MixedDataset:
    """Return the mixture of prepared sources; ``data`` is the folder of all prepared data.

    Raises
    ------
    DataError
        When the sources have different tokenizers.
    """
    ordered = {name: sources[name] for name in sorted(sources)}
    require_one_tokenizer(ordered.items())
    found = MixedDataset(folder=data, sources=ordered)
    return replace(found, folder=data / found.fingerprint)


def require_one_tokenizer(sources: Iterable[tuple[str, Dataset]]) -> None:
    """Raise DataError when two sources have different tokenizers."""
    (first, other), *rest = sources
    for name, each in rest:
        kinds = [(d.tokenizer, d.manifest.tokenizer_sha256) for d in (other, each)]
        if kinds[0] != kinds[1]:
            raise DataError(
                f"source {name} with tokenizer {each.tokenizer} beside source {first} with "
                f"tokenizer {other.tokenizer}",
                "sources with the same tokenizer, because one model reads all of them",
                "Give text for both and one --tokenizer, or token files of one tokenizer.",
            )


def _reopened(folder: Path, weights: Weights) -> MixedDataset:
    found = open_data(folder)
    assert isinstance(found, MixedDataset)
    return replace(found, weights=weights)


def _short(content: Any) -> str:
    text = json.dumps(["mixture", MIXTURE_FORMAT, content])
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_LENGTH]
