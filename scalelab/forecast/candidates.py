"""Candidates of a decision: costs, binding limits, Pareto front and warnings."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import ScalelabError
from scalelab.fit.outcome import FitWarning
from scalelab.forecast.decision import (
    GRAMS_PER_KG,
    HOURS_PER_DAY,
    Candidate,
    Deployment,
    Limits,
)
from scalelab.forecast.forecaster import Forecaster, LawForecaster
from scalelab.forecast.size_pool import SERVING_SHARE, SizePool
from scalelab.theory.epochs import MAX_EPOCHS
from scalelab.units import format_quantity

BINDING_SHARE = 0.999
"""Used share of a limit above which the limit is binding."""
WORTHLESS_EPOCHS = 40.0
"""Passes after which another has no value (Muennighoff et al. 2023, section 6)."""


def candidate_of(
    source: Forecaster,
    limits: Limits,
    deployment: Deployment,
    model: SizePool,
    n_tokens: float,
    target: float | None,
    beside: LawForecaster | None = None,
) -> Candidate:
    """Return a model trained on ``n_tokens``, with its loss, costs and exceeded limits."""
    n_params = float(model.n_params[0])
    other = None
    if beside is not None and beside.name != source.name:
        # The answer does not depend on the law beside it.
        with contextlib.suppress(ScalelabError):
            at = np.array([n_params]), np.array([n_tokens])
            other = float(beside.losses(*at, limits.unique_tokens)[0])
    found, miss = source.run(n_params, n_tokens, limits.unique_tokens, target)
    per_token = float(model.flops_per_token[0])
    flops = per_token * n_tokens
    total = flops + SERVING_SHARE * per_token * deployment.inference_tokens
    hours, life_hours = flops / deployment.flops_per_hour, total / deployment.flops_per_hour
    kwh = life_hours * deployment.kwh_per_hour
    costs: dict[str, float | None] = {
        "total_flops": total,
        "gpu_hours": hours,
        "days": hours / deployment.n_devices / HOURS_PER_DAY,
        "usd": life_hours * deployment.device_usd_per_hour,
        "kwh": kwh,
        "kg_co2": kwh * deployment.grams_per_kwh / GRAMS_PER_KG,
        "serving_bytes": float(model.n_stored[0]) * deployment.bytes_per_param,
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
        n_stored=float(model.n_stored[0]),
        n_tokens=n_tokens,
        flops=flops,
        loss_nats=float(found.value[0]),
        low=_known(found.low),
        high=_known(found.high),
        pred_low=_known(found.pred_low),
        pred_high=_known(found.pred_high),
        miss=miss,
        law_loss_nats=other,
        costs=costs,
        broken=broken,
        is_in_valley=source.in_valley(n_params, n_tokens, limits.unique_tokens),
        shape=None if model.shapes is None else model.shapes[0].label(),
    )


def _known(limit: FloatArray) -> float | None:
    """Return the limit at one point; None if there is none."""
    return None if np.isnan(limit[0]) else float(limit[0])


def binding(limits: Limits, best: Candidate | None, relaxed: dict[str, float]) -> tuple[str, ...]:
    """Return the limits that the best candidate uses completely."""
    if best is None:
        return ()
    used = {**best.costs, "flops": best.flops}
    return tuple(
        name
        for name, most in limits.given().items()
        if (
            relaxed.get(name, 0.0) > 1e-7
            if name == "unique_tokens"
            else (used[name] or 0.0) > BINDING_SHARE * most
        )
    )


def comparable(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the feasible candidates in the valley of the runs; without one, all feasible ones."""
    feasible = [each for each in candidates if each.is_feasible]
    return [each for each in feasible if each.is_in_valley] or feasible


def front(candidates: Sequence[Candidate]) -> tuple[int, ...]:
    """Return the Pareto front in loss and total FLOPs of the candidates that can be the best."""

    def total(candidate: Candidate) -> float:
        return candidate.costs["total_flops"] or 0.0

    compared = {id(each) for each in comparable(candidates)}
    kept = [i for i, candidate in enumerate(candidates) if id(candidate) in compared]
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


def repeated(candidates: Sequence[Candidate]) -> list[FitWarning]:
    """Return a warning for each candidate with more than `MAX_EPOCHS` passes."""
    found = []
    for each in candidates:
        epochs = each.costs["epochs"]
        if epochs is not None and epochs > MAX_EPOCHS:
            found.append(
                FitWarning(
                    code="repeated_data",
                    message=(
                        f"{each.label} tokens repeat the unique text {format_quantity(epochs)} "
                        f"times. Up to {MAX_EPOCHS:g} passes are nearly as good as new text; after "
                        f"about {WORTHLESS_EPOCHS:g}, another pass has no value (Muennighoff et "
                        "al. 2023). Add text, or train on fewer tokens."
                    ),
                )
            )
    return found
