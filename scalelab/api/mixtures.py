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
    from scalelab.fit.mixture_runs import MixtureRuns
    from scalelab.store.reading import Reading


def fit_mixture(
    data: Any = None,
    *,
    sweep: str | None = None,
    results: str | Path = "results",
    mapping: Mapping[str, str] | None = None,
    where: str | None = None,
    holdout: str | None = None,
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
        SQL condition on the table, or on ``runs`` for a sweep; other rows are ignored.
    holdout : str, optional
        SQL condition: these rows are not fitted, and the fit is scored on them.
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
    from scalelab.fit.mixing_search import DEFAULT_REPLICATES, fit_mixtures

    if data is not None and sweep is not None:
        raise UsageError("both a table and the sweep " + sweep, "one of them", "Leave one out.")

    def read(condition: str | None) -> MixtureRuns:
        return _read(data, sweep, results, mapping, condition, sets, reading)

    rest = where
    if holdout is not None:
        rest = _both(where, f"NOT coalesce((\n{holdout}\n), false)")
    replicates = DEFAULT_REPLICATES if bootstrap is None else bootstrap
    fit = fit_mixtures(read(rest), forms=forms, replicates=replicates, level=level, seed=seed)
    return fit if holdout is None else fit.scored(read(_both(where, holdout)))


def _both(where: str | None, more: str) -> str:
    return more if where is None else f"(\n{where}\n) AND (\n{more}\n)"


def _read(
    data: Any,
    sweep: str | None,
    results: str | Path,
    mapping: Mapping[str, str] | None,
    where: str | None,
    sets: Sequence[str] | None,
    reading: Reading | None,
) -> MixtureRuns:
    from scalelab.api.data import as_frame
    from scalelab.store.mixture_runs import read_mixtures, read_sweep_mixtures

    if data is None:
        return read_sweep_mixtures(Path(results), sweep, where=where, sets=sets)
    table = Path(data) if isinstance(data, (str, os.PathLike)) else as_frame(data)
    return read_mixtures(table, mapping=mapping, where=where, reading=reading, sets=sets)


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
    goal = target_sets(fit, target)
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


def target_sets(fit: MixtureFit, target: str | Mapping[str, float]) -> dict[str, float]:
    """Return the weight of each set; ``heldout`` is the mean over the sources, as a run has it."""
    from scalelab.records.metric import HELDOUT_SET

    goal = parse_target(target) if isinstance(target, str) else dict(target)
    sources = fit.runs.sources
    if HELDOUT_SET in goal and HELDOUT_SET not in fit.laws and set(sources) <= set(fit.laws):
        share = goal.pop(HELDOUT_SET) / len(sources)
        for name in sources:
            goal[name] = goal.get(name, 0.0) + share
    return goal


def checked_epochs(epochs: float) -> float:
    """Return the most passes over a source; UsageError unless finite and above 0."""
    if not (math.isfinite(epochs) and epochs > 0):
        raise UsageError(f"max_epochs {epochs:g}", "a number above 0", "Write --max-epochs 4.")
    return epochs


def parse_mixture(text: str, sources: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Return weights, and N and D, of ``code=0.5,web=0.5,N=1B,D=20B``.

    Raises
    ------
    UsageError
        If an item is neither a source with its weight nor N or D.
    """
    from scalelab.units import parse_quantity

    weights: dict[str, float] = {}
    sizes: dict[str, float] = {}
    letters = {"N": "n_params", "D": "n_tokens"}
    for item in text.split(","):
        name, equals, value = (part.strip() for part in item.partition("="))
        if equals and name in letters and name not in sources:
            sizes[letters[name]] = parse_quantity(value, what=f"{name} of --predict")
            continue
        try:
            weights[name] = float(value)
        except ValueError:
            raise UsageError(
                f"--predict {text!r}, where {item.strip()!r} is not a weight",
                f"weights of the sources ({', '.join(sources)}), N and D",
                f"Write for example --predict {sources[0]}=0.5,{sources[1]}=0.5,N=1B.",
            ) from None
    return weights, sizes
