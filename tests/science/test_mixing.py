"""R^2 of mixture laws on left-out runs, beside the published law (results/tables/mixing.md)."""

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import least_squares

from scalelab.fit.mixing_folds import folds_of
from scalelab.fit.mixing_search import fit_mixtures
from scalelab.store.mixture_runs import read_mixtures

TABLE = Path("public:scalebench_domain_mixture_train")
STARTS = (0.02, 0.1, 0.3, 1.0)
"""Distances of c below the lowest loss."""


def exponential(h, loss):
    """Return the published law c + exp(t h) fitted to weights (n, m), as a function of weights."""
    best = None
    for below in STARTS:
        c = loss.min() - below
        t = np.linalg.lstsq(h, np.log(loss - c), rcond=None)[0]
        found = least_squares(
            lambda p: np.log(p[0] + np.exp(h @ p[1:])) - np.log(loss),
            np.append(c, t),
            bounds=([0, *[-60] * h.shape[1]], [5, *[20] * h.shape[1]]),
            loss="huber",
            f_scale=0.01,
        )
        best = found if best is None or found.cost < best.cost else best
    return lambda weights: best.x[0] + np.exp(weights @ best.x[1:])


def power(sizes, losses, at):
    """Return E + A N^-alpha through a mixture's losses at other sizes, at one size."""
    x = np.log(sizes / sizes.mean())
    best = None
    for alpha in (0.1, 0.3, 0.6):
        found = least_squares(
            lambda p: p[0] + np.exp(p[1] - p[2] * x) - losses,
            [0.7 * losses.min(), np.log(0.4 * losses.mean()), alpha],
            bounds=([0, -10, 0.02], [losses.min(), 5, 3]),
        )
        best = found if best is None or found.cost < best.cost else best
    E, log_A, alpha = best.x
    return E + np.exp(log_A - alpha * np.log(at / sizes.mean()))


def published(runs, kept, loss):
    """Return the published law's prediction of the runs that are left out, shape (n,).

    One exponential law for each size; a size that is left out is first extrapolated for each
    mixture by a power law of N, as in section 4 of arXiv:2403.16952.
    """
    out = np.full(runs.n, np.nan)
    sizes, h = runs.n_params, runs.weights
    for size in np.unique(sizes[~kept]):
        here = sizes == size
        if (here & kept).any():
            law = exponential(h[here & kept], loss[here & kept])
        else:
            rows = np.flatnonzero(here)
            values = [
                power(sizes[same & kept], loss[same & kept], size)
                for i in rows
                for same in [runs.mixtures == runs.mixtures[i]]
            ]
            law = exponential(h[rows], np.array(values))
        out[here & ~kept] = law(h[here & ~kept])
    return out


def r2(observed, predicted):
    return 1 - ((observed - predicted) ** 2).sum() / ((observed - observed.mean()) ** 2).sum()


@pytest.mark.science
@pytest.mark.parametrize(
    "mapping",
    [
        {},
        {
            "n_params": "case \"group\" when '70M' then 18.9e6 when '160M' then 85e6 "
            "when '305M' then 201.5e6 else 302e6 end"
        },
    ],
    ids=["named sizes", "without embeddings"],
)
def test_left_out_runs_are_predicted_at_least_as_well_as_by_the_published_law(mapping, request):
    runs = read_mixtures(TABLE, mapping=mapping)
    fit = fit_mixtures(runs, replicates=0)
    folds = folds_of(runs.mixtures, runs.n_params)
    baseline = {name: np.empty((len(folds.kept), runs.n)) for name in runs.losses}
    for name, loss in runs.losses.items():
        for k, kept in enumerate(folds.kept):
            baseline[name][k] = published(runs, kept > 0, loss)
    print(f"\n{request.node.callspec.id}")
    forms = [*fit.n_parameters, "chosen"]
    for j, scheme in enumerate(folds.schemes):
        theirs = {
            name: r2(runs.losses[name], folds.gather(values)[j])
            for name, values in baseline.items()
        }
        scores = {s.form: dict(s.r2) for s in fit.scores if s.scheme == scheme}
        scores["chosen"] = {name: scores[law.form][name] for name, law in fit.laws.items()}
        for form, found in [("published", theirs), *((form, scores[form]) for form in forms)]:
            cells = " | ".join(f"{found[name]:.4f}" for name in runs.losses)
            print(f"| {scheme} | `{form}` | {cells} | {np.mean(list(found.values())):.4f} |")
        assert np.mean(list(scores["chosen"].values())) >= np.mean(list(theirs.values()))
