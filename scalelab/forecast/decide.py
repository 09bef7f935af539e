r"""What to train under limits: the best model that data, money, energy, time and serving allow.

A model is N parameters trained on D tokens. Training takes 6 N D FLOPs; serving T tokens takes
2 N T more (Sardana et al. 2023); of a shape that exists, the exact FLOPs are taken instead. At a
given N every limit bounds D from above, so the search runs over N alone. Repeated tokens are worth
less, by Muennighoff et al. 2023. A limit binds when the best model uses all of it; what it costs is
the loss that 10 % more of it would save.

References
----------
Sardana et al. 2023, arXiv:2401.00448 (serving). Muennighoff et al. 2023, arXiv:2305.16264
(repeats). de Vries 2023, "Go smol or go home" (overhead of a smaller model).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scalelab.errors import NotIdentifiedError, UsageError
from scalelab.fit.outcome import ParametricFit
from scalelab.forecast.decision import (
    GRAMS_PER_KG,
    HOURS_PER_DAY,
    Candidate,
    Decision,
    Limits,
    Setting,
)
from scalelab.forecast.menu import SERVING_SHARE, Menu, continuum, most_tokens
from scalelab.theory.accounting import train_flops_6nd
from scalelab.theory.laws import Farseer, Gamma, Kaplan, Law, Overtraining
from scalelab.theory.laws.chinchilla import Chinchilla, TiedExponents
from scalelab.theory.laws.data_constrained import DataConstrained
from scalelab.units import format_quantity, parse_quantity

FloatArray = NDArray[np.float64]
Point = tuple[Menu, float]
"""One model and the tokens that it is trained on."""

R_D, R_N = 15.387756, 5.309743
"""Worth of repeats, Muennighoff et al. 2023, section 5."""
SIZES = np.geomspace(1e4, 1e16, 481)
ZOOMS, ZOOM_POINTS = 8, 33
"""Times that a search looks closer, with how many sizes: to 3e-11 of a size in the end."""
RELAXED = 1.10
ACTIVE = 0.999
NEIGHBOURS = (0.25, 0.5, 2.0, 4.0)
CHEAPER = (0.5, 0.2, 0.1)
NOISE_POINTS = 101
USABLE = (Chinchilla, Gamma, Farseer, DataConstrained, Overtraining, Kaplan)
"""Forms that weigh N against D."""
REPEATING = (Chinchilla, TiedExponents, DataConstrained)
"""Forms for which repeats have a published or fitted worth."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Forecaster:
    """A law, with the replicates of its fit where there are any.

    Attributes
    ----------
    law : Law
        With N and D as columns.
    replicates : tuple of Law
    residuals : ndarray of shape (n,)
        log(predicted / observed) of the fitted runs: what a new run may differ by.
    level : float
    """

    law: Law
    replicates: tuple[Law, ...] = ()
    residuals: FloatArray
    level: float = 0.9


def forecaster(found: ParametricFit | Law, level: float = 0.9) -> Forecaster:
    """Return what a decision rests on.

    Raises
    ------
    NotIdentifiedError
        When the fit does not determine its law.
    UsageError
        When its form has no trade-off between N and D.
    """
    if isinstance(found, Law):
        return Forecaster(law=_usable(found), residuals=np.zeros(0), level=level)
    if found.status == "not_identified":
        raise NotIdentifiedError(
            "a fit that is not identified",
            "rows that determine the law",
            "See `scalelab fit`: its warnings say what is missing.",
        )
    laws = [_usable(law) for law in (found.law, *found.replicate_laws())]
    return Forecaster(
        law=laws[0], replicates=tuple(laws[1:]), residuals=found.residuals, level=level
    )


def decide(
    source: Forecaster,
    limits: Limits,
    setting: Setting,
    *,
    named: Sequence[tuple[float, float]] = (),
    target_loss: float | None = None,
    shapes: Menu | None = None,
) -> Decision:
    """Return what to train.

    Parameters
    ----------
    source : Forecaster
    limits : Limits
    setting : Setting
    named : sequence of (n_params, n_tokens)
        Candidates to compare; none searches.
    target_loss : float, optional
        Loss to reach, nats, for the probability of missing it.
    shapes : Menu, optional
        Shapes that exist, to choose among; default any size with C = 6 N D.

    Raises
    ------
    UsageError
        When nothing bounds the tokens, or the limits leave nothing to train.
    """
    search = _Search(law=source.law, setting=setting, shapes=shapes)
    if named:
        points = [(search.sized(n), d) for n, d in named]
    else:
        best_point = search.best(limits)
        points = [
            best_point,
            *search.neighbours(best_point, limits),
            *search.cheaper(best_point, limits),
        ]
    candidates = tuple(_candidate(source, limits, setting, *p, target_loss) for p in points)
    feasible = [candidate for candidate in candidates if candidate.is_feasible]
    best = min(feasible, key=lambda c: (c.loss_nats, c.flops)) if feasible else None
    relaxed = {} if named or best is None else search.relaxed(limits, best)
    return Decision(
        best=best,
        candidates=candidates,
        front=_front(candidates),
        binding=_binding(limits, best, relaxed),
        relaxed=relaxed,
    )


def parse_candidate(text: str) -> tuple[float, float]:
    """Return N and D of ``7B:2T``; UsageError when it is not of that form."""
    size, colon, tokens = text.partition(":")
    if not colon:
        raise UsageError(f"candidate {text!r}", "N:D such as 7B:2T", "Write it so.")
    return parse_quantity(size, what="parameters"), parse_quantity(tokens, what="tokens")


def overhead(law: Chinchilla, n_params: float, flops: float) -> float:
    """Return how much more compute N parameters need for the loss that the optimum has at C.

    As a share: 0.1 is 10 % more; NaN when so few parameters never reach it.
    """
    best_n, best_d = law.optimal(flops)
    loss = law.loss({"n_params": best_n, "n_tokens": best_d})
    return float(train_flops_6nd(n_params, float(law.tokens_for(n_params, loss))) / flops - 1)


def _usable(law: Law) -> Law:
    if isinstance(law, TiedExponents):
        return law.untied()
    if isinstance(law, USABLE):
        return law
    names = ", ".join(form.name for form in (TiedExponents, *USABLE))
    raise UsageError(
        f"a decision by the form {law.name}",
        f"a form that weighs N against D: {names}",
        "Fit one of these forms.",
    )


def _surface(law: Law, n: FloatArray, d: FloatArray, unique: float | None) -> FloatArray:
    columns = {"n_params": n, "n_tokens": d}
    if isinstance(law, DataConstrained):
        return law.loss(
            {**columns, "unique_tokens": d if unique is None else np.minimum(unique, d)}
        )
    if unique is None:
        return law.loss(columns)
    if not isinstance(law, Chinchilla):
        raise UsageError(
            f"a limit on unique tokens by the form {law.name}",
            f"a form whose worth of repeats is known: {', '.join(f.name for f in REPEATING)}",
            "Fit one of these forms, or leave out the limit.",
        )
    repeated = DataConstrained(**law.params, R_D=R_D, R_N=R_N)
    return repeated.loss({**columns, "unique_tokens": np.minimum(unique, d)})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Search:
    """The search for the best model under limits: over any size, or over shapes that exist."""

    law: Law
    setting: Setting
    shapes: Menu | None

    def sized(self, n_params: float) -> Menu:
        """Return the model of a size, or the shape nearest to it."""
        if self.shapes is None:
            return continuum(np.array([n_params]))
        return self.shapes.nearest(n_params)

    def best(self, limits: Limits) -> Point:
        """Return the best model and its tokens."""
        menu = self.shapes or continuum(_sizes(limits, self.setting))
        most = most_tokens(menu, limits, self.setting)
        if np.isinf(most).any():
            raise UsageError(
                "no limit on compute, hours, days, money or energy",
                "one of them: without it more is always better",
                "Give --flops, --gpu-hours, --max-days, --max-usd, --max-kwh or --max-co2-kg.",
            )
        if not np.isfinite(most).any():
            served = self.setting.inference_tokens
            demand = f" with {format_quantity(served)} tokens to serve" if served else ""
            raise UsageError(
                "limits that no model keeps" + demand,
                "limits under which something can be trained",
                "Loosen the tightest of them, or lower the demand.",
            )
        is_possible = np.isfinite(most)
        allowed = menu.at(np.flatnonzero(is_possible))
        losses = _surface(self.law, allowed.n_params, most[is_possible], limits.unique_tokens)
        i = int(losses.argmin())
        if self.shapes is not None:
            return allowed.at([i]), float(most[is_possible][i])
        return self._refined(allowed.n_params, i, float(losses[i]), limits)

    def _refined(self, sizes: FloatArray, i: int, loss: float, limits: Limits) -> Point:
        """Return the best of the continuum between the neighbours of size i, by zooming in."""
        best, grid = math.log(sizes[i]), np.log(sizes[max(i - 1, 0) : i + 2])
        for _ in range(ZOOMS):
            grid = np.linspace(grid[0], grid[-1], ZOOM_POINTS)
            menu = continuum(np.exp(grid))
            most = most_tokens(menu, limits, self.setting)
            losses = _surface(
                self.law, menu.n_params, np.nan_to_num(most, nan=1.0), limits.unique_tokens
            )
            losses[~np.isfinite(most)] = math.inf
            k = int(losses.argmin())
            if losses[k] < loss:
                best, loss = grid[k], float(losses[k])
            grid = grid[max(k - 1, 0) : k + 2]
        menu = continuum(np.array([math.exp(best)]))
        return menu, float(most_tokens(menu, limits, self.setting)[0])

    def neighbours(self, best: Point, limits: Limits) -> list[Point]:
        """Return models of some multiples of the best one's size, with all tokens they may have."""
        out = []
        for factor in NEIGHBOURS:
            menu = self.sized(float(best[0].n_params[0]) * factor)
            most = most_tokens(menu, limits, self.setting)[0]
            if np.isfinite(most):
                out.append((menu, float(most)))
        return out

    def cheaper(self, best: Point, limits: Limits) -> list[Point]:
        """Return the best models of some shares of the best one's training compute."""
        flops = float(best[0].flops_per_token[0]) * best[1]
        out = []
        for share in CHEAPER:
            try:
                out.append(self.best(replace(limits, flops=share * flops)))
            except UsageError:
                break
        return out

    def relaxed(self, limits: Limits, best: Candidate) -> dict[str, float]:
        """Return the nats that 10 % more of each limit saves."""
        out = {}
        for name, value in limits.given().items():
            wider = replace(limits, **{name: value * RELAXED})
            menu, tokens = self.best(wider)
            loss = _surface(self.law, menu.n_params, np.array([tokens]), wider.unique_tokens)[0]
            out[name] = max(best.loss_nats - float(loss), 0.0)
        return out


def _sizes(limits: Limits, setting: Setting) -> FloatArray:
    """Return the sizes that are tried, the largest that memory allows among them."""
    if limits.serving_bytes is None:
        return SIZES
    edge = limits.serving_bytes / setting.bytes_per_param
    return np.append(SIZES[edge > SIZES], edge)


def _candidate(
    source: Forecaster,
    limits: Limits,
    setting: Setting,
    model: Menu,
    n_tokens: float,
    target: float | None,
) -> Candidate:
    n, d = model.n_params, np.array([n_tokens])
    n_params = float(n[0])
    value = float(_surface(source.law, n, d, limits.unique_tokens)[0])
    low = high = miss = None
    if source.replicates:
        draws = np.array(
            [_surface(law, n, d, limits.unique_tokens)[0] for law in source.replicates]
        )
        tails = [(1 - source.level) / 2, (1 + source.level) / 2]
        low, high = (float(limit) for limit in np.quantile(draws, tails))
        if target is not None:
            noise = -np.quantile(source.residuals, (np.arange(NOISE_POINTS) + 0.5) / NOISE_POINTS)
            miss = float((draws[:, None] * np.exp(noise) > target).mean())
    per_token = float(model.flops_per_token[0])
    flops = per_token * n_tokens
    total = flops + SERVING_SHARE * per_token * setting.inference_tokens
    hours, life_hours = flops / setting.flops_per_hour, total / setting.flops_per_hour
    kwh = life_hours * setting.kwh_per_hour
    costs: dict[str, float | None] = {
        "total_flops": total,
        "gpu_hours": hours,
        "days": hours / setting.n_devices / HOURS_PER_DAY,
        "usd": life_hours * setting.usd_per_hour,
        "kwh": kwh,
        "kg_co2": kwh * setting.grams_per_kwh / GRAMS_PER_KG,
        "serving_bytes": n_params * setting.bytes_per_param,
        "epochs": None if limits.unique_tokens is None else n_tokens / limits.unique_tokens,
    }
    used = {**costs, "flops": flops}
    broken = tuple(
        name
        for name, most in limits.given().items()
        if name != "unique_tokens" and (used[name] or 0.0) > most * (1 + 1e-9)
    )
    return Candidate(
        n_params=n_params,
        n_tokens=n_tokens,
        flops=flops,
        loss_nats=value,
        low=low,
        high=high,
        miss=miss,
        costs=costs,
        broken=broken,
        shape=None if model.shapes is None else model.shapes[0].label(),
    )


def _binding(limits: Limits, best: Candidate | None, relaxed: dict[str, float]) -> tuple[str, ...]:
    if best is None:
        return ()
    used = {**best.costs, "flops": best.flops}
    return tuple(
        name
        for name, most in limits.given().items()
        if (
            relaxed.get(name, 0.0) > 1e-7
            if name == "unique_tokens"
            else (used[name] or 0.0) > ACTIVE * most
        )
    )


def _front(candidates: Sequence[Candidate]) -> tuple[int, ...]:
    """Return the feasible candidates that none beats in both loss and total FLOPs."""

    def total(candidate: Candidate) -> float:
        return candidate.costs["total_flops"] or 0.0

    kept = [i for i, candidate in enumerate(candidates) if candidate.is_feasible]
    return tuple(
        i
        for i in kept
        if not any(
            candidates[j].loss_nats <= candidates[i].loss_nats
            and total(candidates[j]) <= total(candidates[i])
            and (candidates[j].loss_nats, total(candidates[j]))
            != (candidates[i].loss_nats, total(candidates[i]))
            for j in kept
        )
    )
