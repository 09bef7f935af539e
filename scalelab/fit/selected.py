"""A fit whose form was chosen by its errors: its intervals include the other candidates.

Intervals of a form that was chosen on the same rows ignore the choice. Each draw of a chosen fit
therefore belongs to one candidate, as often as that candidate is the best over resampled rows
(`scalelab.fit.select.Candidate.share`). Values and parameters are those of the chosen law.

References
----------
Buckland, Burnham and Augustin 1997, Biometrics 53 (selection frequencies as weights).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.errors import DataError
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.objective import Objective
from scalelab.fit.outcome import FitWarning, ParametricFit
from scalelab.fit.parametric import fit_parametric
from scalelab.fit.select import Candidate
from scalelab.records.types import Observations
from scalelab.theory.laws.base import Law

LEAST_SHARE = 0.1
"""Smallest share of a candidate whose draws are used."""
MOST_RIVALS = 3


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SelectedFit(ParametricFit):
    """A fit with draws of its rivals.

    Attributes
    ----------
    rivals : tuple of ParametricFit
        The other candidates.
    owner : ndarray of int, shape (k_ok,)
        Fit of each draw: 0 is this one, i the i-th rival.
    """

    rivals: tuple[ParametricFit, ...]
    owner: NDArray[np.intp]

    def replicate_laws(self) -> tuple[Law, ...]:
        """Return the law of each draw, of this form or of a rival's."""
        own = ParametricFit.replicate_laws(self)
        every = [own, *(rival.replicate_laws() for rival in self.rivals)]
        return tuple(every[j][i % len(every[j])] for i, j in enumerate(self.owner))

    def values_of_replicates(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the predictions of every draw, shape (k_ok, m)."""
        values = np.array(ParametricFit.values_of_replicates(self, columns))
        for j, rival in enumerate(self.rivals, start=1):
            place = np.flatnonzero(self.owner == j)
            theirs = rival.values_of_replicates(columns)
            values[place] = theirs[place % len(theirs)]
        return values


WITHOUT_FOLDS = ("chinchilla", "tied")
"""Forms that are tried in this order where too few rows are below the highest budget."""


def first_identified(
    observations: Observations, objective: Objective, spec: BootstrapSpec, reason: DataError
) -> ParametricFit:
    """Return the fit of the first form that the rows determine, with a warning of the reason."""
    fits = []
    for form in WITHOUT_FOLDS:
        fits.append(fit_parametric(observations, form=form, objective=objective, bootstrap=spec))
        if fits[-1].status != "not_identified":
            break
    chosen = fits[-1] if fits[-1].status != "not_identified" else fits[0]
    warning = FitWarning(
        code="auto_form",
        message=(
            f"--form auto cannot compare forms: {reason.given}, and {reason.allowed} are needed. "
            f"The form {chosen.form} is used. Add runs at other budgets."
        ),
    )
    return replace(chosen, warnings=(warning, *chosen.warnings))


def fit_selected(
    observations: Observations, candidates: Sequence[Candidate], spec: BootstrapSpec
) -> ParametricFit:
    """Return the fit of the best identified candidate, with the selection in its intervals.

    Parameters
    ----------
    observations : Observations
    candidates : sequence of Candidate
        Best first, see `scalelab.fit.select.compare`.
    spec : BootstrapSpec
        The bootstrap of every candidate.
    """
    best, *others = candidates
    chosen = fit_parametric(observations, form=best.form, objective=best.objective, bootstrap=spec)
    others = sorted(others, key=lambda each: -each.share)[:MOST_RIVALS]
    rivals, shares = [], [max(best.share, LEAST_SHARE)]
    for each in others:
        if not each.is_identified or each.share < LEAST_SHARE or not len(chosen.samples):
            continue
        fit = fit_parametric(
            observations,
            form=each.form,
            objective=each.objective,
            bootstrap=spec,
            uses_inflation=False,
        )
        if len(fit.samples) and fit.status != "not_identified":
            rivals.append(fit)
            shares.append(each.share)
    if not rivals or chosen.status == "not_identified":
        return chosen
    rng = np.random.default_rng((spec.seed, 3))
    weights = np.array(shares) / sum(shares)
    owner = rng.choice(len(weights), size=len(chosen.samples), p=weights)
    own = {field.name: getattr(chosen, field.name) for field in fields(ParametricFit)}
    return SelectedFit(**own, rivals=tuple(rivals), owner=owner)
