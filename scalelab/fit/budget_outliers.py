"""Which runs of one budget do not belong to its parabola.

Least squares bends towards an outlier, most of all towards one at the end of the grid: its own
residual is then small, and so are those of two outliers that hide each other. So each row, and
each pair of rows, is compared with the parabola of the *other* rows: an F test of the fit with and
without them, with Bonferroni's correction for their number. A parabola is too flat for a wide grid,
where a correct run at the end is far above it: an outlier must also be one beside a polynomial of
higher degree, and its distance must be visible in a figure.

`tests/fit/test_budget_outliers.py` counts false alarms on clean sweeps.

References
----------
Cook and Weisberg 1982, Residuals and Influence in Regression, sections 2.2.2 and 3.6.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import special

from scalelab.arrays import FloatArray
from scalelab.fit.parabola import MIN_ROWS

LEAST_ROWS = 7
"""Rows of a budget from which its outliers can be found."""
MOST_SHARE = 0.2
"""Largest share of the rows of a budget that can be outliers; more is the shape of the curve."""
FALSE_ALARM = 0.002
"""Chance that a single row or a pair is named in a budget without outliers."""
SHAPE_CHANCE = 0.05
"""Chance of an outlier beside the polynomial of higher degree, below which it is no shape."""
VISIBLE = 0.1
"""Least distance of an outlier from the parabola, relative to the range of the other losses."""
MOST_PAIRED = 60
"""Rows above which pairs are not tried: two of that many hardly bend the parabola."""
HIGHER_DEGREES = ((12, 4), (9, 3))
"""Least number of rows for the degree of the polynomial that describes the shape."""
SINGULAR = 1e-9


def outliers_of(log_x: FloatArray, loss: FloatArray) -> NDArray[np.bool_]:
    """Return which rows of a budget are outliers.

    Parameters
    ----------
    log_x, loss : ndarray of shape (n,)
        Logarithm of the sizes, and the losses.
    """
    left = np.arange(len(loss))
    u = (log_x - log_x.mean()) / (np.ptp(log_x) or 1.0)
    most = int(MOST_SHARE * len(loss)) if len(loss) >= LEAST_ROWS else 0
    while room := most - (len(loss) - len(left)):
        found = _farthest(u[left], loss[left], room)
        if not len(found):
            break
        left = np.delete(left, found)
    return ~np.isin(np.arange(len(loss)), left)


def _farthest(u: FloatArray, loss: FloatArray, room: int) -> NDArray[np.intp]:
    """Return the row, or else the pair of rows, that the others exclude; empty if none."""
    n = len(u)
    powers = u[:, None] ** np.arange(MIN_ROWS + 2)
    parabola = powers[:, :MIN_ROWS]
    for count in range(1, min(room, 2 if n <= MOST_PAIRED else 1) + 1):
        sets = np.array(list(combinations(range(n), count)), np.intp)
        chances = _chances(parabola, loss, sets)
        best: NDArray[np.intp] = sets[np.argmin(chances)]
        if chances.min() * len(sets) >= FALSE_ALARM:
            continue
        others = np.delete(np.arange(n), best)
        c = np.linalg.lstsq(parabola[others], loss[others], rcond=None)[0]
        distance = np.abs(loss[best] - parabola[best] @ c)
        is_visible = bool((distance > VISIBLE * np.ptp(loss[others])).all())
        if is_visible and not _is_shape(powers, loss, best, len(sets)):
            return best
    return np.zeros(0, np.intp)


def _is_shape(powers: FloatArray, loss: FloatArray, rows: NDArray[np.intp], tried: int) -> bool:
    """Return whether a smooth curve explains one of these rows, found as the best of ``tried``."""
    for least, degree in HIGHER_DEGREES:
        if len(loss) >= least:
            design = powers[:, : degree + 1]
            for row in rows:
                kept = np.setdiff1d(np.arange(len(loss)), np.setdiff1d(rows, row))
                at = np.flatnonzero(kept == row)[None]
                if _chances(design[kept], loss[kept], at)[0] * tried >= SHAPE_CHANCE:
                    return True
            return False
    return False


def _chances(design: FloatArray, loss: FloatArray, sets: NDArray[np.intp]) -> FloatArray:
    """Return the p-value of the F test that the rows of each set are on the curve of the others.

    Parameters
    ----------
    design : ndarray of shape (n, p)
    loss : ndarray of shape (n,)
    sets : ndarray of shape (k, size)
    """
    n, p = design.shape
    size = sets.shape[1]
    freedom = n - p - size
    if freedom < 1:
        return np.ones(len(sets))
    rest = np.eye(n) - design @ np.linalg.pinv(design)
    residual = rest @ loss
    blocks = rest[sets[:, :, None], sets[:, None, :]]
    is_free = np.linalg.det(blocks) > SINGULAR
    own = residual[sets[is_free]]
    # What the sum of squares falls by if the curve need not pass near these rows.
    gain = np.einsum("ki,ki->k", own, np.linalg.solve(blocks[is_free], own[:, :, None])[:, :, 0])
    without = np.maximum(residual @ residual - gain, np.finfo(float).tiny)
    chances = np.ones(len(sets))
    chances[is_free] = special.fdtrc(size, freedom, gain / size / (without / freedom))
    return chances
