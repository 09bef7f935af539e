"""Evaluation sets of a run: their sequences, and the losses on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalelab.corpus.dataset import Dataset, open_dataset
from scalelab.corpus.eval_text import HELD_OUT
from scalelab.corpus.mixed import AnyDataset, MixedDataset
from scalelab.errors import DataError
from scalelab.records.types import EvalRow
from scalelab.sweep.run_spec import EvalSetRef, RunSpec

EVAL_LOSSES_FILE = "eval_losses.npy"
SET_LOSSES_FILE = "eval_losses.{}.npy"


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Losses of the sequences of an evaluation set, nats per token.

    Attributes
    ----------
    losses : ndarray of fp64, shape (n,)
        Mean loss of each sequence.
    ema_losses : ndarray of fp64, shape (n,), or None
        The same with the weight average; None if the run keeps none.
    parts : tuple of int
        Sequences of each source of a mixture, in order; empty for one text.
    """

    losses: NDArray[np.float64]
    ema_losses: NDArray[np.float64] | None = None
    parts: tuple[int, ...] = ()

    @property
    def loss(self) -> float:
        """Mean loss; of several parts, the mean of their means."""
        return self._mean(self.losses)

    @property
    def stderr(self) -> float | None:
        """Standard error of the mean over sequences; None if a part is a single one."""
        found = self._split(self.losses)
        if min(map(len, found)) < 2:
            return None
        squares = [float(part.std(ddof=1) / math.sqrt(len(part))) ** 2 for part in found]
        return math.sqrt(math.fsum(squares)) / len(found)

    @property
    def ema_loss(self) -> float | None:
        """Mean loss of the weight average."""
        return None if self.ema_losses is None else self._mean(self.ema_losses)

    def _mean(self, losses: NDArray[np.float64]) -> float:
        means = [float(part.mean()) for part in self._split(losses)]
        return math.fsum(means) / len(means)

    def _split(self, losses: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        return np.split(losses, np.cumsum(self.parts[:-1])) if self.parts else [losses]


def joined(found: Sequence[Evaluated]) -> Evaluated:
    """Return the losses of several sets as one set, in which each set has the same weight."""
    averages = [each.ema_losses for each in found if each.ema_losses is not None]
    return Evaluated(
        np.concatenate([each.losses for each in found]),
        np.concatenate(averages) if averages else None,
        tuple(len(each.losses) for each in found),
    )


class EvaluationSets:
    """The evaluation sets of a run: the held-out part of its data, and the named ones.

    Parameters
    ----------
    spec : RunSpec
        The run.
    dataset : Dataset or MixedDataset
        Its training data; the named sets lie beside it.

    Raises
    ------
    DataError
        When a named set is missing, damaged, or not the one that the run was planned with.
    """

    def __init__(self, spec: RunSpec, dataset: AnyDataset) -> None:
        self._seq_len = spec.seq_len
        self._bytes_per_token = {HELD_OUT: dataset.bytes_per_token}
        self._sources: dict[str, Dataset] = {}
        if isinstance(dataset, MixedDataset):
            self._sources = dict(dataset.sources)
        self._held_out = dataset
        self._named = {ref.name: _open(ref, dataset.folder.parent) for ref in spec.eval_sets}
        for name, each in (*self._sources.items(), *self._named.items()):
            self._bytes_per_token[name] = each.bytes_per_token

    @property
    def is_only_held_out(self) -> bool:
        """Whether there is no set but the held-out part of one text."""
        return not self._sources and not self._named

    def evaluated(self, evaluate: Callable[[NDArray[np.int64]], Evaluated]) -> dict[str, Evaluated]:
        """Return the losses on each set by name, the held-out one first.

        The held-out part of each source of a mixture is also a set with the name of the source.

        Parameters
        ----------
        evaluate : callable
            Returns the losses of sequences, shape (n, T + 1).
        """
        parts = {
            name: evaluate(each.eval_sequences(self._seq_len))
            for name, each in self._sources.items()
        }
        found = {
            name: evaluate(each.eval_sequences(self._seq_len)) for name, each in self._named.items()
        }
        if parts:
            held_out = joined(list(parts.values()))
        else:
            held_out = evaluate(self._held_out.eval_sequences(self._seq_len))
        return {HELD_OUT: held_out, **parts, **found}

    def rows(self, step: int, evaluated: Mapping[str, Evaluated]) -> list[EvalRow]:
        """Return the lines of ``evals.jsonl`` for the losses after a step."""
        rows = []
        for name, found in evaluated.items():
            n_tokens = found.losses.size * self._seq_len
            per_token = self._bytes_per_token[name]
            rows.append(
                EvalRow(
                    step=step,
                    set=name,
                    loss_nats=found.loss,
                    stderr_nats=found.stderr,
                    n_tokens=n_tokens,
                    n_bytes=None if per_token is None else round(n_tokens * per_token),
                    ema_loss_nats=found.ema_loss,
                )
            )
        return rows


def write_losses(folder: Path, evaluated: Mapping[str, Evaluated]) -> None:
    """Write the losses of the sequences of each set into the folder of an attempt."""
    for name, found in evaluated.items():
        file = EVAL_LOSSES_FILE if name == HELD_OUT else SET_LOSSES_FILE.format(name)
        with (folder / file).open("wb") as out:
            np.save(out, found.losses)


def _open(ref: EvalSetRef, data: Path) -> Dataset:
    do = "Run the sweep's command again, which prepares its evaluation sets."
    try:
        found = open_dataset(data / ref.fingerprint)
    except DataError as error:
        raise DataError(f"evaluation set {ref.name}: {error.given}", error.allowed, do) from error
    if (found.fingerprint, found.n_eval_tokens) != (ref.fingerprint, ref.n_tokens):
        raise DataError(
            f"evaluation set {ref.name} with fingerprint {found.fingerprint} and "
            f"{found.n_eval_tokens:,} tokens",
            f"the set that the run was planned with, {ref.fingerprint} of {ref.n_tokens:,} tokens",
            do,
        )
    return found
