"""``scalelab decide --mixture``: the weights of the sources with the lowest target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from scalelab.cli.mixture_laws import (
    DECIDE_OPTIONS,
    parse_amounts,
    print_best,
    refuse_others,
)
from scalelab.units import parse_quantity


def decide_mixture(
    given: Mapping[str, str],
    *,
    from_file: Path | None,
    sweep: str | None,
    results: Path,
    mapping: Mapping[str, str],
    target: str | None,
    n_params: str | None,
    n_tokens: str | None,
    unique_tokens: str | None,
    max_epochs: float | None,
    level: float,
    as_json: bool,
) -> int:
    """Fit the mixture laws, find the best weights, print them and return the exit code."""
    from scalelab.api.mixtures import (
        best_mixture,
        checked_epochs,
        fit_mixture,
        parse_target,
        target_sets,
    )
    from scalelab.fit.mixing_goal import MixtureLimits

    refuse_others(given, DECIDE_OPTIONS, "--mixture")
    if target is not None:
        parse_target(target)  # before the fit, which takes longer
    unique = {} if unique_tokens is None else parse_amounts([unique_tokens], "--unique-tokens")
    limits = MixtureLimits(unique_tokens=unique)
    if max_epochs is not None:
        limits = MixtureLimits(unique_tokens=unique, max_epochs=checked_epochs(max_epochs))
    fit = fit_mixture(from_file, sweep=sweep, results=results, mapping=mapping, level=level)
    goal = target_sets(fit, target or dict.fromkeys(fit.laws, 1 / len(fit.laws)))
    best = best_mixture(
        fit,
        goal,
        limits=limits,
        n_params=None if n_params is None else parse_quantity(n_params, what="--n-params"),
        n_tokens=None if n_tokens is None else parse_quantity(n_tokens, what="--n-tokens"),
    )
    return print_best(fit, best, goal, level, as_json=as_json)
