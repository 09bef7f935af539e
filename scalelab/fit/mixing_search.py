"""Fit mixture laws, compare their forms by errors on left-out runs, and choose one for each set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import DataError, UsageError, did_you_mean
from scalelab.fit.gauss_newton import GaussNewtonModel
from scalelab.fit.intervals import check_level
from scalelab.fit.mixing import FormScore, MixtureFit, SetLaw, r_squared
from scalelab.fit.mixing_folds import Folds, folds_of
from scalelab.fit.mixture_checks import check_design
from scalelab.fit.mixture_runs import MixtureRuns
from scalelab.fit.newton import minimise
from scalelab.fit.outcome import FitWarning
from scalelab.fit.parametric import box_of
from scalelab.fit.penalty import Penalty
from scalelab.fit.row_model import Rows
from scalelab.fit.solver import choose
from scalelab.theory.laws.mixing import MIXING_LAWS, MixingLaw
from scalelab.units import plural

DELTA = 0.01
"""Huber's threshold of the log residual: mixture laws miss by some tenths of a percent."""
N_STARTS = 12
DEFAULT_REPLICATES = 200
EXACT = 1e-9
"""Held-out error below which forms are equally good."""
SIMILAR = 1.03
"""A form with fewer parameters is chosen if its held-out error is within this factor."""


def fit_mixtures(
    runs: MixtureRuns,
    *,
    forms: Sequence[str] | None = None,
    replicates: int = DEFAULT_REPLICATES,
    level: float = 0.9,
    seed: int = 0,
) -> MixtureFit:
    """Return the mixture law of each evaluation set, of the form that predicts it best.

    Parameters
    ----------
    runs : MixtureRuns
    forms : sequence of str, optional
        Names of `scalelab.theory.laws.mixing.MIXING_LAWS` to compare; default: all.
    replicates : int
        Bootstrap replicates; 0 gives no intervals.
    level : float
        Level of the intervals.
    seed : int
        Seed of the folds and of the replicates.

    Raises
    ------
    UsageError
        For an unknown form.
    DataError
        If there are too few or collinear mixtures.
    """
    check_level(level)
    check_design(runs.weights, runs.sources, runs.source)
    laws, warnings = _fitting_forms(runs, forms)
    if runs.n_incomplete:
        warnings.append(
            FitWarning(
                code="incomplete_rows",
                message=f"{plural(runs.n_incomplete, 'row')} without all losses not used.",
            )
        )
    folds = folds_of(runs.mixtures, runs.n_params if "n_params" in runs.scale else None, seed=seed)
    sets = {law.name: {name: _Fitted.of(law, runs, name) for name in runs.losses} for law in laws}
    scores = []
    for form, fitted in sets.items():
        held_out = {name: each.held_out(folds) for name, each in fitted.items()}
        count = max(len(each.law.coordinates) for each in fitted.values())
        scores += _scores(form, count, held_out, runs, folds)
    chosen = {name: choose_form([law.name for law in laws], scores, name) for name in runs.losses}
    return MixtureFit(
        runs=runs,
        laws={name: sets[form][name].set_law(replicates, seed) for name, form in chosen.items()},
        scores=tuple(scores),
        level=level,
        warnings=tuple(warnings),
    )


def choose_form(forms: Sequence[str], scores: Sequence[FormScore], name: str) -> str:
    """Return the form with the least geometric mean over schemes of a set's held-out error.

    Of forms whose errors are within `SIMILAR` of the least, the first, which has fewer parameters.
    """
    if not scores:
        return forms[0]
    error = {
        form: float(
            np.exp(np.mean([np.log(max(s.rmse[name], EXACT)) for s in scores if s.form == form]))
        )
        for form in forms
    }
    least = min(error.values())
    return next(form for form in forms if error[form] <= SIMILAR * least)


def _fitting_forms(
    runs: MixtureRuns, forms: Sequence[str] | None
) -> tuple[list[type[MixingLaw]], list[FitWarning]]:
    """Return the forms that have few enough parameters, and what to say about the others."""
    known = [law.name for law in MIXING_LAWS]
    for name in forms or ():
        if name not in known:
            raise UsageError(
                f"form {name!r} of a mixture law",
                f"one of {', '.join(known)}",
                did_you_mean(name, known) or "Leave the form out to compare all.",
            )
    laws, warnings = [], []
    n_mixtures = len(np.unique(runs.mixtures))
    for law in MIXING_LAWS:
        if forms is not None and law.name not in forms:
            continue
        own = runs.sources[0]
        needed_mixtures = 1 + len(law.over(runs.sources, (), own).coordinates)
        needed = 2 + len(law.over(runs.sources, runs.scale, own).coordinates)
        if n_mixtures >= needed_mixtures and runs.n >= needed:
            laws.append(law)
            continue
        warnings.append(
            FitWarning(
                code="too_few_mixtures",
                message=(
                    f"{law.name} was not compared: it needs {needed_mixtures} mixtures and "
                    f"{needed} runs, {runs.source} has {n_mixtures} and {runs.n}. Train more "
                    "mixtures to compare it."
                ),
            )
        )
    if not laws:
        raise DataError(
            f"{plural(runs.n, 'run')} with {plural(n_mixtures, 'mixture')} of "
            f"{plural(len(runs.sources), 'source')}",
            "more runs than a law has parameters",
            warnings[0].message if warnings else "Train more mixtures.",
        )
    return laws, warnings


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Fitted:
    """One form fitted to one set."""

    runs: MixtureRuns
    name: str
    law: type[MixingLaw]
    model: GaussNewtonModel
    rows: Rows
    eta: FloatArray
    seeds: FloatArray

    @classmethod
    def of(cls, kind: type[MixingLaw], runs: MixtureRuns, name: str) -> _Fitted:
        own = name if name in runs.sources else None
        law = kind.over(runs.sources, runs.scale, own)
        columns, target = runs.columns(), runs.losses[name]
        rows = Rows(target, np.ones(len(target)), "log")
        model = GaussNewtonModel(law, columns)
        box = box_of(law, {})
        seeds = np.clip(law.seeds(columns, target), box.low, box.high)
        misfit = model.value(seeds, rows, Penalty(delta=np.inf))
        order = np.argsort(misfit, kind="stable")
        seeds = seeds[order[np.isfinite(misfit[order])]]
        smooth = minimise(
            model, choose(seeds, N_STARTS), rows, Penalty(delta=np.inf), box,
            max_iterations=60, tolerance=1e-4,
        )  # fmt: skip
        near = smooth.eta[np.argsort(smooth.value)[:4]]
        found = minimise(model, near, rows, Penalty(delta=DELTA), box, max_iterations=300,
                         tolerance=1e-9)  # fmt: skip
        eta = found.eta[np.argmin(found.value)]
        return cls(runs=runs, name=name, law=law, model=model, rows=rows, eta=eta, seeds=seeds)

    def refits(self, weights: FloatArray, n_seeds: int) -> FloatArray:
        """Return the optimum under each row of weights (k, n), shape (k, p)."""
        box, penalty = box_of(self.law, {}), Penalty(delta=DELTA)
        best = np.tile(self.eta, (len(weights), 1))
        value = np.full(len(weights), np.inf)
        for start in (self.eta, *self.seeds[:n_seeds]):
            found = minimise(
                self.model, np.tile(start, (len(weights), 1)), self.rows.reweighted(weights),
                penalty, box, max_iterations=100, tolerance=1e-6,
            )  # fmt: skip
            better = found.value < value
            best[better], value[better] = found.eta[better], found.value[better]
        return best

    def held_out(self, folds: Folds) -> FloatArray:
        """Return the held-out prediction of each scheme, shape (schemes, n)."""
        eta = self.refits(folds.kept, 1)
        return folds.gather(self.model.predicted(eta))

    def set_law(self, replicates: int, seed: int) -> SetLaw:
        """Return the law with bootstrap replicates over mixtures."""
        target = self.rows.target
        predicted = self.model.predicted(self.eta[None])[0]
        samples = np.empty((0, len(self.eta)))
        if replicates:
            member = self.runs.mixtures
            rng = np.random.default_rng(seed)
            drawn = rng.exponential(size=(replicates, member.max() + 1))
            samples = self.refits(drawn[:, member], 0)
        return SetLaw(
            name=self.name,
            law=self.law.from_coordinates(self.eta),
            r2=r_squared(target, predicted),
            rmse=float(np.sqrt(np.mean((predicted - target) ** 2))),
            samples=samples,
        )


def _scores(
    form: str,
    n_parameters: int,
    held_out: Mapping[str, FloatArray],
    runs: MixtureRuns,
    folds: Folds,
) -> list[FormScore]:
    out = []
    for j, scheme in enumerate(folds.schemes):
        predicted = {name: values[j] for name, values in held_out.items()}
        out.append(
            FormScore(
                form=form,
                scheme=scheme,
                r2={k: r_squared(runs.losses[k], p) for k, p in predicted.items()},
                rmse={
                    k: float(np.sqrt(np.mean((p - runs.losses[k]) ** 2)))
                    for k, p in predicted.items()
                },
                n_folds=folds.counts[j],
                n_parameters=n_parameters,
            )
        )
    return out
