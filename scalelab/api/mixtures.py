"""Mixture laws for the command line, the page and notebooks."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.errors import UsageError

if TYPE_CHECKING:
    from scalelab.fit.best_mixing import BestWeights
    from scalelab.fit.mixing import MixtureFit
    from scalelab.fit.mixing_goal import MixtureLimits
    from scalelab.store.reading import Reading


def fit_mixture(
    data: Any = None,
    *,
    sweep: str | None = None,
    results: str | Path = "results",
    mapping: Mapping[str, str] | None = None,
    where: str | None = None,
    sets: Sequence[str] | None = None,
    forms: Sequence[str] | None = None,
    bootstrap: int | None = None,
    level: float = 0.9,
    seed: int = 0,
    reading: Reading | None = None,
) -> MixtureFit:
    """Fit the loss on each evaluation set as a law of the weights of the sources.

    Parameters
    ----------
    data : file name, DataFrame or other table, optional
        One row per run, with ``weight_SOURCE`` (or ``proportion_SOURCE``) and ``loss_SET``.
        Without it, the runs of ``sweep``.
    sweep : str, optional
        Name of a sweep of mixtures; default: the latest.
    results : str or Path
        The results folder.
    mapping : Mapping[str, str], optional
        ``weight_SOURCE``, ``loss_SET``, ``n_params`` or ``n_tokens`` to a column or SQL expression.
    where : str, optional
        SQL condition on the table; other rows are ignored.
    sets : sequence of str, optional
        Evaluation sets to fit; default: all.
    forms : sequence of str, optional
        Forms to compare; default: all of `scalelab.theory.laws.mixing.MIXING_LAWS`.
    bootstrap : int, optional
        Replicates, 200 by default; 0 gives no intervals.
    level, seed
        Level of the intervals, and seed of the resampling.
    reading : Reading, optional
        Format of a file.

    Raises
    ------
    UsageError, DataError
        If an argument is wrong or the runs cannot be used.
    """
    from scalelab.api.data import as_frame
    from scalelab.fit.mixing_search import DEFAULT_REPLICATES, fit_mixtures
    from scalelab.store.mixture_runs import read_mixtures, read_sweep_mixtures

    if data is None:
        runs = read_sweep_mixtures(Path(results), sweep, sets=sets)
    elif sweep is not None:
        raise UsageError("both a table and the sweep " + sweep, "one of them", "Leave one out.")
    else:
        table = Path(data) if isinstance(data, (str, os.PathLike)) else as_frame(data)
        runs = read_mixtures(table, mapping=mapping, where=where, reading=reading, sets=sets)
    replicates = DEFAULT_REPLICATES if bootstrap is None else bootstrap
    return fit_mixtures(runs, forms=forms, replicates=replicates, level=level, seed=seed)


def best_mixture(
    fit: MixtureFit,
    target: str | Mapping[str, float],
    *,
    limits: MixtureLimits | None = None,
    n_params: float | None = None,
    n_tokens: float | None = None,
    level: float | None = None,
    seed: int = 0,
) -> BestWeights:
    """Return the weights of the sources that minimise a weighted mean of losses.

    Parameters
    ----------
    fit : MixtureFit
        From `fit_mixture`.
    target : str or Mapping[str, float]
        ``"0.5*code+0.5*web"``, one set, or a dict of weights.
    limits : MixtureLimits, optional
        Unique tokens of the sources, most epochs, least and largest weights. Unique tokens that the
        runs of a sweep record are used where none are given.
    n_params, n_tokens : float, optional
        Scale of the planned run; default: that of the largest run.
    level, seed
        Level of the intervals, and seed of the search.

    Raises
    ------
    UsageError
        For an unknown set or source, or limits that no mixture meets.
    """
    from dataclasses import replace

    from scalelab.fit.mixing_goal import MixtureLimits

    goal = parse_target(target) if isinstance(target, str) else target
    limits = limits or MixtureLimits()
    if not limits.unique_tokens:
        limits = replace(limits, unique_tokens=fit.runs.unique_tokens)
    return fit.best_weights(
        goal, limits, n_params=n_params, n_tokens=n_tokens, level=level, seed=seed
    )


def parse_target(text: str, option: str = "--target") -> dict[str, float]:
    """Return the weight of each set in ``0.5*code+0.5*web``; sets without weights count alike.

    Raises
    ------
    UsageError
        If the text is not such a sum, or its weights do not sum to 1.
    """
    from scalelab.records.metric import parse_metric

    try:
        metric = parse_metric(text)
    except UsageError as error:
        words = (
            part.replace("--metric", option) for part in (error.given, error.allowed, error.do)
        )
        raise UsageError(*words) from None
    return {term.name: term.weight for term in metric.terms}


def checked_epochs(epochs: float) -> float:
    """Return the most passes over a source; UsageError unless finite and above 0."""
    if not (math.isfinite(epochs) and epochs > 0):
        raise UsageError(f"max_epochs {epochs:g}", "a number above 0", "Write --max-epochs 4.")
    return epochs
