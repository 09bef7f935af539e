r"""The best model to train under limits on data, money, energy, time and serving memory.

A model is N parameters trained on D tokens. Training takes 6 N D FLOPs, and serving T tokens takes
2 N T (Sardana et al. 2023). A real shape has exact FLOPs instead. At a given N each limit is an
upper bound of D, so the search is over N alone. Repeated tokens count less (Muennighoff et al.
2023). A limit is binding if the best model uses all of it; the decision gives the loss that 10 %
more of it would save.

References
----------
Sardana et al. 2023, arXiv:2401.00448 (serving). Muennighoff et al. 2023, arXiv:2305.16264
(repeats).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import UsageError
from scalelab.fit.outcome import FitWarning
from scalelab.forecast.candidates import binding, candidate_of, comparable, front, repeated
from scalelab.forecast.decision import LIMIT_OPTIONS, Candidate, Decision, Deployment, Limits
from scalelab.forecast.forecaster import Forecaster, LawForecaster, check_decides
from scalelab.forecast.size_pool import SizePool, continuum, most_tokens
from scalelab.units import format_flops, format_quantity, parse_quantity

Point = tuple[SizePool, float]
"""One model and its number of training tokens."""

SEARCHED_SIZES = np.geomspace(1e4, 1e16, 481)
REFINEMENTS, REFINEMENT_SIZES = 8, 33
"""Refinements of the size grid, and sizes in each; the final resolution is 3e-11 of a size."""
RELAX_FACTOR = 1.10
NEIGHBOUR_FACTORS = (0.25, 0.5, 2.0, 4.0)
CHEAPER_SHARES = (0.5, 0.2, 0.1)
MIN_SAVING = 1e-3
"""Loss that doubled compute must save, in its unit; less is within the noise between runs."""
MIN_COMPUTE_SHARE, BISECTIONS = 1e-12, 20
"""Smallest share of the full compute that is searched, and the number of bisections."""


def decide(
    source: Forecaster,
    limits: Limits,
    deployment: Deployment,
    *,
    named: Sequence[tuple[float, float]] = (),
    target_loss: float | None = None,
    shapes: SizePool | None = None,
    beside: LawForecaster | None = None,
) -> Decision:
    """Return the best model and alternatives.

    Parameters
    ----------
    source : Forecaster
    limits : Limits
    deployment : Deployment
    named : sequence of (n_params, n_tokens)
        Candidates to compare; if empty, search for the best model.
    target_loss : float, optional
        Loss to reach, for the probability of missing it.
    shapes : SizePool, optional
        Real shapes to choose among; default: any size, with C = 6 N D.
    beside : LawForecaster, optional
        Another forecaster, whose loss each candidate has too.

    Raises
    ------
    UsageError
        If no limit bounds the tokens, or no model is within the limits.
    """
    if target_loss is not None and not (math.isfinite(target_loss) and target_loss > 0):
        raise UsageError(
            f"target loss {target_loss:g}",
            "a loss above 0",
            "Use --target-loss 2.1.",
        )
    check_decides(source)
    search = _Search(source=source, deployment=deployment, shapes=shapes)
    if named:
        points = [(search.sized(n), d) for n, d in named]
    else:
        full = search.best(limits)
        chosen = search.smallest_sufficient(full, limits)
        within = limits if chosen is full else replace(limits, flops=_flops(chosen))
        points = [
            chosen,
            *([full] if chosen is not full else []),
            *search.neighbours(chosen, within),
            *search.cheaper(chosen, within),
        ]
    candidates = tuple(
        candidate_of(source, limits, deployment, *p, target_loss, beside) for p in points
    )
    compared = comparable(candidates)
    relaxed: dict[str, float] = {}
    if named:
        best = min(compared, key=lambda c: (c.loss_nats, c.flops)) if compared else None
        warned = repeated(candidates)
    else:
        best = candidates[0]
        relaxed = search.relaxed(limits, search.loss(full, limits))
        warned = [
            *repeated([best]),
            *_at_edge(best, SEARCHED_SIZES if shapes is None else shapes.n_params),
        ]
        if chosen is not full:
            warned.append(_saturated(best, candidates[1]))
    return Decision(
        best=best,
        candidates=candidates,
        front=front(candidates),
        binding=binding(limits, best, relaxed),
        relaxed=relaxed,
        warnings=tuple(warned),
        forecaster=source.name,
    )


def parse_candidate(text: str) -> tuple[float, float]:
    """Return N and D of ``7B:2T``; UsageError if the text has another form."""
    size, colon, tokens = text.partition(":")
    if not colon:
        raise UsageError(f"candidate {text!r}", "N:D", "Use for example --candidate 7B:2T.")
    return parse_quantity(size, what="parameters"), parse_quantity(tokens, what="tokens")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Search:
    """The search for the best model under limits, over all sizes or over real shapes."""

    source: Forecaster
    deployment: Deployment
    shapes: SizePool | None

    def sized(self, n_params: float) -> SizePool:
        """Return the model of this size, or the nearest real shape."""
        if self.shapes is None:
            return continuum(np.array([n_params]))
        return self.shapes.nearest(n_params)

    def best(self, limits: Limits) -> Point:
        """Return the best model and its training tokens."""
        pool = self.shapes or continuum(_sizes(limits, self.deployment))
        most = most_tokens(pool, limits, self.deployment)
        if np.isinf(most).any():
            raise UsageError(
                "no limit that bounds compute, hours, days, money or energy",
                "--flops, --gpu-hours, --max-days, --max-usd, --max-kwh or --max-co2-kg; "
                "a price of 0 does not bound compute",
                "Add for example --flops 1e22.",
            )
        if not np.isfinite(most).any():
            served = self.deployment.inference_tokens
            serving = f" with {format_quantity(served)} tokens to serve" if served else ""
            raise UsageError(
                "limits that exclude every model" + serving,
                "limits that some model meets",
                f"Raise {' or '.join(LIMIT_OPTIONS[name].split()[0] for name in limits.given())}"
                + (", or lower --inference-tokens." if served else "."),
            )
        is_possible = np.isfinite(most)
        allowed = pool.at(np.flatnonzero(is_possible))
        losses = self.source.losses(allowed.n_params, most[is_possible], limits.unique_tokens)
        i = int(losses.argmin())
        if self.shapes is not None:
            return allowed.at([i]), float(most[is_possible][i])
        return self._refined(allowed.n_params, i, float(losses[i]), limits)

    def _refined(self, sizes: FloatArray, i: int, loss: float, limits: Limits) -> Point:
        """Return the best size between the neighbours of size i, by repeated refinement."""
        best, grid = math.log(sizes[i]), np.log(sizes[max(i - 1, 0) : i + 2])
        for _ in range(REFINEMENTS):
            grid = np.linspace(grid[0], grid[-1], REFINEMENT_SIZES)
            pool = continuum(np.exp(grid))
            most = most_tokens(pool, limits, self.deployment)
            tokens = np.nan_to_num(most, nan=1.0)
            losses = self.source.losses(pool.n_params, tokens, limits.unique_tokens)
            losses[~np.isfinite(most)] = math.inf
            k = int(losses.argmin())
            if losses[k] < loss:
                best, loss = grid[k], float(losses[k])
            grid = grid[max(k - 1, 0) : k + 2]
        pool = continuum(np.array([math.exp(best)]))
        return pool, float(most_tokens(pool, limits, self.deployment)[0])

    def loss(self, model: Point, limits: Limits) -> float:
        """Return the predicted loss of a model."""
        tokens = np.array([model[1]])
        return float(self.source.losses(model[0].n_params, tokens, limits.unique_tokens)[0])

    def smallest_sufficient(self, full: Point, limits: Limits) -> Point:
        """Return the best model of the smallest compute with nearly the loss of ``full``.

        With repeated tokens the loss reaches a floor. If half the compute raises the loss by less
        than `MIN_SAVING`, return the smallest compute whose loss is at most that above.
        """
        if limits.unique_tokens is None:
            return full
        target = self.loss(full, limits) + MIN_SAVING

        def at(log_share: float) -> Point | None:
            flops = math.exp(log_share) * _flops(full)
            try:
                found = self.best(replace(limits, flops=flops))
            except UsageError:
                return None
            return found if self.loss(found, limits) <= target else None

        low, high = math.log(MIN_COMPUTE_SHARE), math.log(0.5)
        least = at(high)
        if least is None:
            return full
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            found = at(middle)
            if found is None:
                low = middle
            else:
                least, high = found, middle
        return least

    def neighbours(self, best: Point, limits: Limits) -> list[Point]:
        """Return multiples of the best size, each with the most tokens that the limits allow."""
        out = []
        for factor in NEIGHBOUR_FACTORS:
            pool = self.sized(float(best[0].n_params[0]) * factor)
            most = most_tokens(pool, limits, self.deployment)[0]
            if np.isfinite(most):
                out.append((pool, float(most)))
        return out

    def cheaper(self, best: Point, limits: Limits) -> list[Point]:
        """Return the best models at smaller shares of the training compute."""
        flops = _flops(best)
        out = []
        for share in CHEAPER_SHARES:
            try:
                out.append(self.best(replace(limits, flops=share * flops)))
            except UsageError:
                break
        return out

    def relaxed(self, limits: Limits, loss: float) -> dict[str, float]:
        """Return the loss that 10 % more of each limit saves."""
        out = {}
        for name, value in limits.given().items():
            wider = replace(limits, **{name: value * RELAX_FACTOR})
            out[name] = max(loss - self.loss(self.best(wider), wider), 0.0)
        return out


def _flops(model: Point) -> float:
    """Return the training compute of a model."""
    return float(model[0].flops_per_token[0]) * model[1]


def _sizes(limits: Limits, deployment: Deployment) -> FloatArray:
    """Return the sizes to search, up to the largest that fits in the serving memory."""
    if limits.serving_bytes is None:
        return SEARCHED_SIZES
    edge = limits.serving_bytes / deployment.bytes_per_param
    return np.append(SEARCHED_SIZES[edge > SEARCHED_SIZES], edge)


def _at_edge(best: Candidate, sizes: FloatArray) -> list[FitWarning]:
    """Return a warning if the best size is the first or last in the search."""
    if sizes[0] < best.n_params * 0.99 and best.n_params * 1.01 < sizes[-1]:
        return []
    return [
        FitWarning(
            code="edge_of_search",
            message=(
                f"The best N, {format_quantity(best.n_params)}, is at the edge of the searched "
                f"sizes, {format_quantity(sizes[0])} to {format_quantity(sizes[-1])}. A better "
                "size may be outside. Check the limits."
            ),
        )
    ]


def _saturated(best: Candidate, full: Candidate) -> FitWarning:
    saved = 100 * (best.loss_nats / full.loss_nats - 1)
    return FitWarning(
        code="saturated",
        message=(
            f"Training with {format_flops(full.flops)} instead of {format_flops(best.flops)} FLOPs "
            f"lowers the loss by only {saved:.1g} %. To use more compute, add unique "
            "tokens."
        ),
    )
