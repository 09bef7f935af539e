"""Published language models: parameters, tokens, compute, year and source of each.

N counts the parameters that a token uses (all of them in a dense model). D counts the processed
tokens, repeats included. ``printed_flops`` is the developers' own figure, or empty; C = 6 N D does
not hold for encoder-decoders (about half), nor for figures that include recomputation (OPT). Losses
are left out: tokenizers and validation sets differ, so they cannot be compared.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scalelab.errors import NotIdentifiedError, UsageError
from scalelab.forecast.averaged import AveragedFit
from scalelab.forecast.line import line_of
from scalelab.forecast.paths import paths_of
from scalelab.forecast.valley import valley_of
from scalelab.theory.accounting import tokens_at_6nd, train_flops_6nd
from scalelab.theory.laws.base import Law
from scalelab.units import format_flops, format_times, plural


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedModel:
    """One published model.

    Attributes
    ----------
    name : str
    year : int
        Year of the first release.
    architecture : str
        ``dense-decoder``, ``moe-decoder``, ``dense-encoder``, ..
    n_params : float
        Parameters that a token uses.
    n_tokens : float
        Tokens processed in pre-training.
    printed_flops : float or None
        The developers' figure of the training compute, FLOP.
    source : str
        Where the numbers are published.
    """

    name: str
    year: int
    architecture: str
    n_params: float
    n_tokens: float
    printed_flops: float | None
    source: str

    @property
    def flops(self) -> float:
        """Training compute as 6 N D, the convention of the figures."""
        return train_flops_6nd(self.n_params, self.n_tokens)

    @property
    def is_decoder(self) -> bool:
        """Whether it is a decoder trained on next-token prediction."""
        return self.architecture in ("dense-decoder", "moe-decoder")


def _read_models() -> tuple[PublishedModel, ...]:
    with (
        Path(__file__).with_name("published_models.csv").open(encoding="utf-8", newline="") as file
    ):
        return tuple(
            PublishedModel(
                name=row["name"],
                year=int(row["year"]),
                architecture=row["architecture"],
                n_params=float(row["n_params"]),
                n_tokens=float(row["n_tokens"]),
                printed_flops=float(row["printed_flops"]) if row["printed_flops"] else None,
                source=row["source"],
            )
            for row in csv.DictReader(file)
        )


PUBLISHED_MODELS = _read_models()
"""Models whose N and D were both published, from ``published_models.csv``."""

LABELLED_MODELS = (
    "GPT-3 175B",
    "Gopher 280B",
    "MT-NLG 530B",
    "Chinchilla 70B",
    "PaLM 540B",
    "OPT-175B",
    "BLOOM-176B",
    "GLaM 64B/64E",
    "LLaMA 7B",
    "LLaMA 65B",
    "Llama 2 70B",
    "Llama 3 8B",
    "Llama 3.1 405B",
)
"""Models that a figure labels."""


def flops_for_loss(law: Law, loss_nats: float, start: float) -> float:
    """Return the smallest compute at which the law's frontier reaches a loss, else NaN.

    Parameters
    ----------
    law : Law
        A form of N and D with a compute-optimal frontier.
    loss_nats : float
    start : float
        Upper end of the bisection, FLOP.
    """

    def best(log_flops: float) -> float:
        n_params, n_tokens = law.optimal(math.exp(log_flops))
        return float(law.loss({"n_params": n_params, "n_tokens": n_tokens}))

    high = math.log(start)
    if best(high) > loss_nats:
        return math.nan
    low = high
    while best(low) <= loss_nats:
        low -= 1.0
        if low < 0:
            return math.nan
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if best(middle) > loss_nats else (low, middle)
    return math.exp(high)


def verdicts(source: Law | AveragedFit) -> list[dict[str, Any]]:
    """Return each published decoder, compared with the optimum at equal compute.

    ``ratio`` is N divided by the optimal N. Above 1 the model is too large, with too few tokens.
    ``saved`` is the share of its compute that the optimum saves at the same predicted loss.

    Raises
    ------
    UsageError
        If the form has no trade-off between N and D alone, or a term of the law is 0.
    NotIdentifiedError
        If the averaged forecaster's runs lie on one line of N and D, or show no optimum.
    """
    models = [model for model in PUBLISHED_MODELS if model.is_decoder]
    compared = (
        _averaged(source, models) if isinstance(source, AveragedFit) else _law(source, models)
    )
    return [
        {
            "model": model.name,
            "year": model.year,
            "n_params": model.n_params,
            "n_tokens": model.n_tokens,
            "flops": model.flops,
            "optimal_n_params": optimal,
            "ratio": model.n_params / optimal,
            "verdict": _verdict(model.n_params / optimal),
            "saved": 1 - enough / model.flops,
            "source": model.source,
        }
        for model, (optimal, enough) in zip(models, compared, strict=True)
    ]


def _law(law: Law, models: Sequence[PublishedModel]) -> Iterator[tuple[float, float]]:
    """Yield each model's optimal N, and the compute at which the law's optimum has its loss."""
    if set(law.columns) != {"n_params", "n_tokens"}:
        raise UsageError(
            f"published models with the form {law.name}",
            "a form of n_params and n_tokens",
            "Use --form chinchilla.",
        )
    for model in models:
        with np.errstate(all="ignore"):
            optimal = float(law.optimal(model.flops)[0])
        if not (math.isfinite(optimal) and optimal > 0):
            raise UsageError(
                f"published models with a law whose optimal N at {format_flops(model.flops)} is "
                f"{optimal:g}",
                "a law with a finite optimum",
                "Use --law besiroglu, or add runs: one term of the law is 0.",
            )
        loss = float(law.loss({"n_params": model.n_params, "n_tokens": model.n_tokens}))
        yield optimal, flops_for_loss(law, loss, model.flops * (1 + 1e-9))


def _averaged(
    found: AveragedFit, models: Sequence[PublishedModel]
) -> Iterator[tuple[float, float]]:
    """Yield each model's optimal N, and the compute at which the average's optimum has its loss."""
    line, valley = line_of(found.rows), valley_of(found)
    if line is not None or not valley.is_inside:
        raise NotIdentifiedError(
            "published models with runs that "
            + ("show no optimum" if line is None else f"lie on {line.describe()}"),
            "runs that show the compute-optimal N and D",
            "Add runs of several sizes at one compute, or use --law besiroglu.",
        )
    sizes, tokens, flops = (
        np.array([getattr(model, name) for model in models])
        for name in ("n_params", "n_tokens", "flops")
    )
    losses = valley.rising({"n_params": sizes, "n_tokens": tokens})
    optimal = np.exp(valley.bottoms(np.log(flops), is_drawn=False)[0])
    frontier = np.arange(np.log(flops.min()) - FRONTIER_REACH, np.log(flops.max()) + 0.1, 0.1)
    best = np.exp(valley.bottoms(frontier, is_drawn=False)[0])
    at = {"n_params": best, "n_tokens": tokens_at_6nd(np.exp(frontier), best)}
    falling = np.minimum.accumulate(paths_of(found).mean(at))
    enough = np.exp(np.interp(-losses, -falling, frontier))
    yield from zip(optimal.tolist(), np.minimum(enough, flops).tolist(), strict=True)


FRONTIER_REACH = 12.0
"""Natural logs of compute below the smallest model in which an equal loss is searched."""
FAR = 1000.0
"""Ratio to the compute of the largest run above which an assessment is a guess."""


def far_words(flops: Sequence[float], largest: float) -> str:
    """Return how far models are beyond the largest run, empty if none is beyond `FAR` times it.

    Parameters
    ----------
    flops : sequence of float
        Training compute of each model, FLOP.
    largest : float
        Compute of the largest fitted run, FLOP.
    """
    far = [each / largest for each in flops if each > FAR * largest]
    if not far:
        return ""
    return (
        f"{len(far)} of {plural(len(flops), 'model')} have more than {FAR:,.0f}x the compute of "
        f"the largest run ({format_times(min(far))} to {format_times(max(far))}): their "
        "assessments are guesses."
    )


NEAR_FACTOR = 1.25
"""Factor around the optimal N within which a model counts as near it."""


def _verdict(ratio: float) -> str:
    if ratio > NEAR_FACTOR:
        return "under-trained: too large for its compute"
    if ratio < 1 / NEAR_FACTOR:
        return "over-trained: smaller than optimal, cheaper to serve"
    return "near the optimum"
