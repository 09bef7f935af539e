"""The largest runs of a table: what is left out to test a forecast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.theory.accounting import train_flops_6nd

FACTOR = 2.0
"""Rows within this factor of the largest N, D or C are left out."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cut:
    """A part of a table that is forecast from the rest."""

    name: str
    is_left_out: NDArray[np.bool_]


def largest_cuts(
    n_params: FloatArray, n_tokens: FloatArray, *, factor: float, share: float, rows_left: int
) -> Iterator[Cut]:
    """Yield the largest sizes, the longest runs and the largest budgets; equal cuts once.

    Parameters
    ----------
    n_params, n_tokens : ndarray of shape (n,)
    factor : float
        Rows within this factor of the largest N, D or C = 6 N D are left out.
    share : float
        Cuts that leave out a larger share of the rows are not made.
    rows_left : int
        Nor those that leave fewer rows.
    """
    seen: set[bytes] = set()
    for name, values in (
        ("largest sizes", n_params),
        ("longest runs", n_tokens),
        ("largest budgets", train_flops_6nd(n_params, n_tokens)),
    ):
        far = values >= values.max() / factor
        key = far.tobytes()
        if far.mean() <= share and (~far).sum() >= rows_left and key not in seen:
            seen.add(key)
            yield Cut(name=name, is_left_out=far)
