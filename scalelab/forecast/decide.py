r"""What to train under limits: the best model that data, money, energy, time and serving allow.

A model is N parameters trained on D tokens. Training takes 6 N D FLOPs; serving T tokens takes
2 N T more (Sardana et al. 2023). At a given N every limit bounds D from above, so the search runs
over N alone. Repeated tokens are worth less, by Muennighoff et al. 2023. A limit binds when the
best model uses all of it; what it costs is the loss that 10 % more of it would save.

References
----------
Sardana et al. 2023, arXiv:2401.00448 (serving). Muennighoff et al. 2023, arXiv:2305.16264
(repeats). de Vries 2023, "Go smol or go home" (overhead of a smaller model).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

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
from scalelab.theory.accounting import FLOPS_PER_PARAM_FORWARD, train_flops_6nd
from scalelab.theory.laws.chinchilla import Chinchilla, TiedExponents
from scalelab.theory.laws.data_constrained import DataConstrained
from scalelab.units import format_quantity, parse_quantity

FloatArray = NDArray[np.float64]

R_D, R_N = 15.387756, 5.309743
"""Worth of repeats, Muennighoff et al. 2023, section 5."""
SIZES = np.geomspace(1e4, 1e16, 481)
RELAXED = 1.10
ACTIVE = 0.999
NEIGHBOURS = (0.25, 0.5, 2.0, 4.0)
CHEAPER = (0.5, 0.2, 0.1)
NOISE_POINTS = 101


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Forecaster:
    """A law, with the replicates of its fit where there are any.

    Attributes
    ----------
    law : Chinchilla
    replicates : tuple of Chinchilla
    residuals : ndarray of shape (n,)
        log(predicted / observed) of the fitted runs: what a new run may differ by.
    level : float
    """

    law: Chinchilla
    replicates: tuple[Chinchilla, ...] = ()
    residuals: FloatArray
    level: float = 0.9


def forecaster(found: ParametricFit | Chinchilla, level: float = 0.9) -> Forecaster:
    """Return what a decision rests on.

    Raises
    ------
    NotIdentifiedError
        When the fit does not determine its law.
    UsageError
        When its form is not that of Chinchilla.
    """
    if isinstance(found, Chinchilla):
        return Forecaster(law=found, residuals=np.zeros(0), level=level)
    if found.status == "not_identified":
        raise NotIdentifiedError(
            "a fit that is not identified",
            "rows that determine the law",
            "See `scalelab fit`: its warnings say what is missing.",
        )
    laws = [_untied(law) for law in (found.law, *found.replicate_laws())]
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

    Raises
    ------
    UsageError
        When nothing bounds the tokens, or the limits leave nothing to train.
    """
    if named:
        points = list(named)
    else:
        best_point = _search(source.law, limits, setting)
        points = [
            best_point,
            *_neighbours(best_point, limits, setting),
            *_cheaper(source.law, best_point, limits, setting),
        ]
    candidates = tuple(_candidate(source, limits, setting, *p, target_loss) for p in points)
    feasible = [candidate for candidate in candidates if candidate.is_feasible]
    best = min(feasible, key=lambda c: (c.loss_nats, c.flops)) if feasible else None
    relaxed = {} if named or best is None else _relaxed(source.law, limits, setting, best)
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


def _untied(law: Any) -> Chinchilla:
    if isinstance(law, TiedExponents):
        return law.untied()
    if isinstance(law, Chinchilla):
        return law
    raise UsageError(
        f"a decision by the form {law.name}", "chinchilla or tied", "Fit one of these forms."
    )


def _surface(law: Chinchilla, n: FloatArray, d: FloatArray, unique: float | None) -> FloatArray:
    if unique is None:
        return law.loss({"n_params": n, "n_tokens": d})
    repeated = DataConstrained(**law.params, R_D=R_D, R_N=R_N)
    columns = {"n_params": n, "n_tokens": d, "unique_tokens": np.minimum(unique, d)}
    return repeated.loss(columns)


def _most_tokens(n: FloatArray, limits: Limits, setting: Setting) -> FloatArray:
    """Return the most tokens that every limit allows at each size; NaN where none does."""
    per_hour = setting.flops_per_hour
    training = {
        "flops": limits.flops,
        "gpu_hours": limits.gpu_hours and limits.gpu_hours * per_hour,
        "days": limits.days and limits.days * HOURS_PER_DAY * setting.n_devices * per_hour,
    }
    kwh_flops = per_hour / setting.kwh_per_hour
    total = {
        "usd": limits.usd and limits.usd / setting.usd_per_hour * per_hour,
        "kwh": limits.kwh and limits.kwh * kwh_flops,
        "kg_co2": limits.kg_co2
        and limits.kg_co2 * GRAMS_PER_KG / setting.grams_per_kwh * kwh_flops,
    }
    serving = FLOPS_PER_PARAM_FORWARD * n * setting.inference_tokens
    most = np.full(len(n), np.inf)
    for flops in training.values():
        if flops is not None:
            most = np.minimum(most, flops / train_flops_6nd(n, np.ones(1)))
    for flops in total.values():
        if flops is not None:
            most = np.minimum(most, (flops - serving) / train_flops_6nd(n, np.ones(1)))
    if limits.serving_bytes is not None:
        most = np.where(
            n * setting.bytes_per_param > limits.serving_bytes * (1 + 1e-12), np.nan, most
        )
    return np.where(most >= 1, most, np.nan)


def _search(law: Chinchilla, limits: Limits, setting: Setting) -> tuple[float, float]:
    sizes = SIZES
    if limits.serving_bytes is not None:
        edge = limits.serving_bytes / setting.bytes_per_param
        sizes = np.append(SIZES[edge > SIZES], edge)
    most = _most_tokens(sizes, limits, setting)
    if np.isinf(most[np.isfinite(most) | np.isinf(most)]).any():
        raise UsageError(
            "no limit on compute, hours, days, money or energy",
            "one of them: without it more is always better",
            "Give --flops, --gpu-hours, --max-days, --max-usd, --max-kwh or --max-co2-kg.",
        )
    if not np.isfinite(most).any():
        raise UsageError(
            "limits that no model keeps"
            + (
                f" with {format_quantity(setting.inference_tokens)} tokens to serve"
                if setting.inference_tokens
                else ""
            ),
            "limits under which something can be trained",
            "Loosen the tightest of them, or lower the demand.",
        )

    def loss(log_n: float) -> float:
        n = np.array([math.exp(log_n)])
        d = _most_tokens(n, limits, setting)
        value = _surface(law, n, np.nan_to_num(d, nan=1.0), limits.unique_tokens)[0]
        return float(value) if np.isfinite(d[0]) else math.inf

    is_possible = np.isfinite(most)
    allowed = sizes[is_possible]
    losses = _surface(law, allowed, most[is_possible], limits.unique_tokens)
    i = int(losses.argmin())
    low, high = np.log(allowed[max(i - 1, 0)]), np.log(allowed[min(i + 1, len(allowed) - 1)])
    best = math.log(allowed[i])
    if high > low:
        found = optimize.minimize_scalar(
            loss, bounds=(low, high), method="bounded", options={"xatol": 1e-10}
        )
        best = float(found.x) if found.fun < losses[i] else best
    n = math.exp(best)
    return n, float(_most_tokens(np.array([n]), limits, setting)[0])


def _neighbours(
    best: tuple[float, float], limits: Limits, setting: Setting
) -> list[tuple[float, float]]:
    sizes = np.array([best[0] * factor for factor in NEIGHBOURS])
    most = _most_tokens(sizes, limits, setting)
    return [(float(n), float(d)) for n, d in zip(sizes, most, strict=True) if np.isfinite(d)]


def _cheaper(
    law: Chinchilla, best: tuple[float, float], limits: Limits, setting: Setting
) -> list[tuple[float, float]]:
    """Return the best models of some shares of the best one's training compute."""
    flops = train_flops_6nd(*best)
    out = []
    for share in CHEAPER:
        try:
            out.append(_search(law, replace(limits, flops=share * flops), setting))
        except UsageError:
            break
    return out


def _candidate(
    source: Forecaster,
    limits: Limits,
    setting: Setting,
    n_params: float,
    n_tokens: float,
    target: float | None,
) -> Candidate:
    n, d = np.array([n_params]), np.array([n_tokens])
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
    flops = train_flops_6nd(n_params, n_tokens)
    total = flops + FLOPS_PER_PARAM_FORWARD * n_params * setting.inference_tokens
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
    )


def _relaxed(
    law: Chinchilla, limits: Limits, setting: Setting, best: Candidate
) -> dict[str, float]:
    """Return the nats that 10 % more of each limit saves."""
    out = {}
    for name, value in limits.given().items():
        wider = replace(limits, **{name: value * RELAXED})
        n, d = (np.array([x]) for x in _search(law, wider, setting))
        gain = best.loss_nats - float(_surface(law, n, d, wider.unique_tokens)[0])
        out[name] = max(gain, 0.0)
    return out


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
