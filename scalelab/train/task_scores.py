"""Scores of a task by a run's weights: log-likelihoods of choices and texts, and their summary."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from scalelab.corpus.task_tokens import Scored, TaskTokens, choice_bytes
from scalelab.corpus.tasks import TEXT
from scalelab.records.evaluations import Evaluation
from scalelab.train.weights import WeightsModel

TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 65_536}
"""Tokens in a forward pass, padding included."""


def score(
    model: WeightsModel, tokens: Sequence[Scored], progress: Callable[[int], None]
) -> NDArray[np.float64]:
    """Return the negative log-likelihood of each sequence's targets, nats, shape (n,).

    Parameters
    ----------
    model : WeightsModel
    tokens : sequence of Scored
    progress : Callable
        Called with the number of sequences done.
    """
    found = np.zeros(len(tokens))
    n_done = 0
    for places in _batches(tokens, TOKENS_PER_BATCH[model.device.type]):
        rows = [tokens[place] for place in places]
        # Padding follows the targets, so no counted position sees it.
        padded = torch.zeros(len(rows), max(len(row.tokens) for row in rows), dtype=torch.long)
        is_target = torch.zeros(len(rows), padded.shape[1] - 1, dtype=torch.bool)
        for index, row in enumerate(rows):
            end = len(row.tokens)
            padded[index, :end] = torch.from_numpy(row.tokens)
            is_target[index, end - 1 - row.n_targets : end - 1] = True
        losses = model.target_losses(padded, is_target).double()
        sizes = [row.n_targets for row in rows]
        found[places] = [float(part.sum()) for part in torch.split(losses, sizes)]
        n_done += len(rows)
        progress(n_done)
    return found


def _batches(tokens: Sequence[Scored], n_most: int) -> Iterator[list[int]]:
    """Yield places of sequences of like length, the longest first."""
    order = sorted(range(len(tokens)), key=lambda place: -len(tokens[place].tokens))
    begin = 0
    while begin < len(order):
        n = max(1, n_most // len(tokens[order[begin]].tokens))
        yield order[begin : begin + n]
        begin += n


def summarize(found: TaskTokens, nats: NDArray[np.float64], step: int) -> Evaluation:
    """Return the evaluation of a task.

    Parameters
    ----------
    found : TaskTokens
    nats : ndarray, shape (n,)
        Of `score`, for ``found.scored``.
    step : int
        Step of the weights.
    """
    task = found.task
    if task.kind == TEXT:
        return _text_summary(found, nats, step)
    items = task.items
    right_nats, right_tokens = np.zeros(len(items)), np.zeros(len(items), dtype=np.int64)
    best = np.full(len(items), math.inf)
    is_right = np.zeros(len(items), dtype=bool)
    for each, own in zip(found.scored, nats, strict=True):
        item = items[each.item]
        per_byte = own / choice_bytes(item.choices[each.choice])
        if per_byte < best[each.item]:
            best[each.item], is_right[each.item] = per_byte, each.choice == item.answer
        if each.choice == item.answer:
            right_nats[each.item], right_tokens[each.item] = own, each.n_targets
    n_bytes = np.array([choice_bytes(item.choices[item.answer]) for item in items])
    return Evaluation(
        step=step,
        set=task.name,
        kind=task.kind,
        fingerprint=task.fingerprint,
        loss_nats=float(right_nats.sum() / right_tokens.sum()),
        bits_per_byte=float((right_nats / n_bytes).mean() / math.log(2)),
        accuracy=float(is_right.mean()),
        stderr=_standard_error(is_right.astype(float)),
        n_tokens=int(right_tokens.sum()),
        n_bytes=int(n_bytes.sum()),
        n_items=len(items),
    )


def _text_summary(found: TaskTokens, nats: NDArray[np.float64], step: int) -> Evaluation:
    task = found.task
    sums, n_tokens = np.zeros(len(task.items)), np.zeros(len(task.items))
    for each, own in zip(found.scored, nats, strict=True):
        sums[each.item] += own
        n_tokens[each.item] += each.n_targets
    n_bytes = sum(len(item.choices[0].encode()) for item in task.items)
    loss = float(sums.sum() / n_tokens.sum())
    n = len(sums)
    # The error of a ratio of means over texts (Cochran 1977, Sampling Techniques, section 2.11).
    spread = float(np.square(sums - loss * n_tokens).sum()) * n / (n - 1) if n > 1 else None
    return Evaluation(
        step=step,
        set=task.name,
        kind=task.kind,
        fingerprint=task.fingerprint,
        loss_nats=loss,
        bits_per_byte=float(sums.sum()) / math.log(2) / n_bytes,
        stderr=None if spread is None else math.sqrt(spread) / float(n_tokens.sum()),
        n_tokens=int(n_tokens.sum()),
        n_bytes=n_bytes,
        n_items=n,
    )


def _standard_error(values: NDArray[np.float64]) -> float | None:
    n = len(values)
    return float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None
