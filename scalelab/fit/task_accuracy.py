"""Accuracy of a task: from its task loss by a sigmoid, and directly from compute.

The sigmoid goes from the accuracy of guessing to 1, so it has two parameters. With a free ceiling,
small models do not determine it: they are far below it. Accuracies here are normalised,
p = (accuracy - chance) / (1 - chance), 0 for guessing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.objective import Objective
from scalelab.fit.outcome import ParametricFit
from scalelab.fit.parametric import fit_parametric
from scalelab.records.types import Observations
from scalelab.theory.laws.accuracy import Accuracy

CHANCE = {
    **dict.fromkeys(
        ("arc_challenge", "arc_easy", "hellaswag", "mmlu", "openbookqa", "sciq", "race"), 0.25
    ),
    **dict.fromkeys(("piqa", "winogrande", "boolq", "copa"), 0.5),
    **dict.fromkeys(("csqa", "commonsense_qa"), 0.2),
    **dict.fromkeys(("socialiqa", "social_iqa", "siqa"), 1 / 3),
    **dict.fromkeys(("lambada", "triviaqa", "gsm8k"), 0.0),
}
"""Accuracy of guessing by task: 1 divided by the number of choices."""
USUAL_CHANCES = (0.5, 1 / 3, 0.25, 0.2, 0.0)
"""Values that are tried for a task that `CHANCE` does not list."""
DELTA = 0.01
"""Huber's threshold of an accuracy: accuracies of benchmarks have a noise of about one point."""
LEAST_SIGNAL = 0.05
"""Normalised accuracy of the best runs below which a task is at chance."""
LEAST_NOISES = 3.0
"""The same in standard deviations of an accuracy."""
BEST_RUNS = 3
N_STARTS = 6
VISIBLE = 0.02
"""Rows of this normalised accuracy or more show a logarithm."""
DEFAULT_REPLICATES = 200


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AccuracyLink:
    """Accuracy as a sigmoid of the task loss.

    Attributes
    ----------
    chance : float
        Accuracy of guessing.
    is_chance_known : bool
        False if it was chosen as the best of `USUAL_CHANCES`.
    fit : ParametricFit
        The sigmoid of `scalelab.theory.laws.accuracy.Accuracy` with a + b = 1, b = chance.
    noise : float
        Standard deviation of an accuracy around the sigmoid.
    misfit : float
        Error of the sigmoid, in the logit of p, for the largest models if it is fitted to the
        smaller ones; NaN if there is one size.
    signal : float
        Mean p of the runs of least task loss; above that of the runs of highest task loss, if the
        accuracy of guessing is not known.
    task_loss, measured : ndarray of shape (n,)
        Task loss and accuracy of the fitted rows.
    """

    chance: float
    is_chance_known: bool
    fit: ParametricFit
    noise: float
    misfit: float
    signal: float
    task_loss: FloatArray
    measured: FloatArray

    @property
    def n_rows(self) -> int:
        """Number of fitted rows."""
        return len(self.measured)

    @property
    def is_at_chance(self) -> bool:
        """Whether even the best runs are not clearly above guessing."""
        per_mean = self.noise / (1 - self.chance) / BEST_RUNS**0.5
        return bool(self.signal < max(LEAST_SIGNAL, LEAST_NOISES * per_mean))

    def accuracy(self, task_loss: FloatArray) -> FloatArray:
        """Return the accuracy at task losses."""
        return self.fit.law.loss({"loss_nats": task_loss})

    def draws(self, task_loss: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Return possible accuracies of draws of the task loss, shape (k,).

        Each draw has a replicate of the sigmoid and an error of `misfit`.
        """
        k, samples = len(task_loss), self.fit.samples
        if len(samples):
            steep, middle = (samples[:, self.fit.names.index(name)] for name in ("k", "L_0"))
            chosen = rng.integers(0, len(samples), size=k)
            steep, middle = steep[chosen], middle[chosen]
        else:
            steep, middle = (np.full(k, self.fit.params[name]) for name in ("k", "L_0"))
        logit = -steep * (task_loss - middle)
        if np.isfinite(self.misfit):
            logit = logit + self.misfit * rng.standard_normal(k)
        return np.asarray(self.chance + (1 - self.chance) / (1 + np.exp(-logit)))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DirectLaw:
    r"""Direct law of accuracy in compute, :math:`-\log p = A C^{-\alpha}`.

    Attributes
    ----------
    chance : float
    intercept, alpha : float
        log A and the exponent.
    samples : ndarray of shape (k, 2)
        Replicates of both.
    noise : float
        Standard deviation of log(-log p): of a run, or of the law's error for the runs of most
        compute if it is fitted to the others, whichever is larger.
    n_rows : int
    """

    chance: float
    intercept: float
    alpha: float
    samples: FloatArray
    noise: float
    n_rows: int

    def accuracy(self, flops: float) -> float:
        """Return the accuracy at a compute."""
        p = np.exp(-np.exp(self.intercept - self.alpha * np.log(flops)))
        return float(self.chance + (1 - self.chance) * p)

    def draws(self, flops: float, rng: np.random.Generator) -> FloatArray:
        """Return possible accuracies, shape (k,)."""
        value = self.samples[:, 0] - self.samples[:, 1] * np.log(flops)
        value = value + self.noise * rng.standard_normal(len(value))
        return np.asarray(self.chance + (1 - self.chance) * np.exp(-np.exp(value)))


def fit_link(
    rows: Observations,
    accuracy: FloatArray,
    task: str,
    *,
    chance: float | None = None,
    bootstrap: BootstrapSpec | None = None,
) -> AccuracyLink:
    """Return the sigmoid of accuracy over task loss.

    Parameters
    ----------
    rows : Observations
        Runs or checkpoints; ``loss_nats`` is the task loss. Rows of one cluster are resampled
        together.
    accuracy : ndarray of shape (n,)
        Share of right answers.
    task : str
        Name of the task, by which `CHANCE` knows the accuracy of guessing.
    chance : float, optional
        Accuracy of guessing, if it is known.
    bootstrap : BootstrapSpec, optional
        Default: 200 replicates by cluster.
    """
    # Replicates of few runs with many checkpoints: whole runs are drawn with replacement.
    bootstrap = replace(bootstrap or BootstrapSpec(k=DEFAULT_REPLICATES), weighting="counts")
    known = chance if chance is not None else CHANCE.get(task.lower())
    tried = USUAL_CHANCES if known is None else (known,)
    fits = {each: _sigmoid(rows, accuracy, each, replace(bootstrap, k=0)) for each in tried}
    best = min(fits, key=lambda each: fits[each].value)
    found = _sigmoid(rows, accuracy, best, bootstrap) if bootstrap.k else fits[best]
    size = float(np.median(np.abs(found.residuals))) * 1.4826
    order = np.argsort(rows.loss_nats)
    signal = float((accuracy[order[: max(BEST_RUNS, len(order) // 50)]].mean() - best) / (1 - best))
    if known is None:
        # A flat accuracy is at chance at any value of it.
        worst = accuracy[order[-max(len(order) // 3, 1) :]].mean()
        signal = min(signal, signal - float((worst - best) / (1 - best)))
    return AccuracyLink(
        chance=best,
        is_chance_known=known is not None,
        fit=found,
        noise=size,
        misfit=_misfit(rows, accuracy, best),
        signal=signal,
        task_loss=rows.loss_nats,
        measured=accuracy,
    )


def _sigmoid(
    rows: Observations, accuracy: FloatArray, chance: float, bootstrap: BootstrapSpec
) -> ParametricFit:
    told = replace(rows, extra={**rows.extra, Accuracy.target: accuracy})
    return fit_parametric(
        told,
        form=Accuracy.name,
        objective=Objective(residual="linear", loss="huber", delta=DELTA),
        bootstrap=bootstrap,
        fixed={"a": 1 - chance, "b": chance},
        n_starts=N_STARTS,
        uses_inflation=False,
    )


def _misfit(rows: Observations, accuracy: FloatArray, chance: float) -> float:
    """Return the root mean square error in logits for the largest models, fitted without them."""
    largest = rows.n_params >= 0.999 * rows.n_params.max()
    if not rows.has("n_params") or largest.all() or (~largest).sum() < 3:
        return float("nan")
    law = _sigmoid(
        rows.take(~largest), accuracy[~largest], chance, BootstrapSpec(k=0, method="none")
    ).law
    p = (accuracy[largest] - chance) / (1 - chance)
    loss = rows.loss_nats[largest]
    seen = (p > VISIBLE) & (p < 1 - VISIBLE)
    if not seen.any():
        return float("nan")
    # The rows of least loss are nearest to what will be asked.
    order = np.argsort(loss[seen])[: max(BEST_RUNS, int(seen.sum()) // 4)]
    p, loss = p[seen][order], loss[seen][order]
    guessed = (law.loss({"loss_nats": loss}) - chance) / (1 - chance)
    guessed = np.clip(guessed, 1e-6, 1 - 1e-6)
    logits = np.log(guessed / (1 - guessed)) - np.log(p / (1 - p))
    return float(np.sqrt(np.mean(logits**2)))


def fit_direct(
    flops: FloatArray,
    accuracy: FloatArray,
    chance: float,
    *,
    replicates: int = DEFAULT_REPLICATES,
    seed: int = 0,
) -> DirectLaw | None:
    """Return the direct law of final runs; None with fewer than 4 runs above chance."""
    p = (accuracy - chance) / (1 - chance)
    seen = (p > VISIBLE) & (p < 1 - 1e-6)
    if seen.sum() < 4 or np.ptp(np.log(flops[seen])) == 0:
        return None
    p, x = p[seen], np.log(flops[seen])
    y = np.log(-np.log(p))
    # An error of p moves y by 1 / (p log p).
    weight = (p * np.log(p)) ** 2
    design = np.column_stack([np.ones_like(x), -x])

    def solve(w: FloatArray) -> FloatArray:
        scaled = design * w[:, None]
        return np.asarray(np.linalg.lstsq(scaled.T @ design, scaled.T @ y, rcond=None)[0])

    best = solve(weight)
    rng = np.random.default_rng(seed)
    samples = [solve(weight * rng.exponential(size=len(y))) for _ in range(replicates)]
    residual = y - design @ best
    freedom = max(len(y) - 2, 1) / len(y)
    inside = np.sqrt((weight * residual**2).sum() / weight.sum() / freedom)
    return DirectLaw(
        chance=chance,
        intercept=float(best[0]),
        alpha=float(best[1]),
        samples=np.array(samples).reshape(-1, 2),
        noise=float(max(inside, _direct_misfit(solve, weight, design, y))),
        n_rows=len(y),
    )


def _direct_misfit(
    solve: Callable[[FloatArray], FloatArray], weight: FloatArray, design: FloatArray, y: FloatArray
) -> float:
    """Return the root mean square error for the quarter of most compute, fitted without it."""
    order = np.argsort(-design[:, 1])
    held = order[-max(len(y) // 4, 1) :]
    if len(y) - len(held) < 3:
        return 0.0
    kept = weight.copy()
    kept[held] = 0.0
    return float(np.sqrt(np.mean((y[held] - design[held] @ solve(kept)) ** 2)))
