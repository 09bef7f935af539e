"""Columns that count N in more than one way, for example with and without embeddings.

A law holds for one count of N; with another it is bent. `size_counts` finds the columns, with the
relation that the rows show between each count and ``n_params``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.records.types import Observations

ASKED = "n_params"
KINDS = (
    *("total", "all", "nonembed", "nonembedding", "nonembeddings", "active", "activated"),
    *("chinchilla", "kaplan"),
)
"""What distinguishes the counts, in the names of their columns, without underscores."""
SAME = 0.005
"""Counts whose ratio varies by less, as a standard deviation of its log, give the same laws."""
UNRELATED = 0.05
"""If a count scatters by more around its relation to N, a question does not determine it."""
MOST_COUNTS = 3
"""At most this number of counts, the asked one included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """Another count of N from the asked one: N + sign x exp(constant) N^exponent.

    Embeddings grow as a power of N below 1, so the two counts converge.
    """

    sign: float
    constant: float
    exponent: float

    def other(self, n_params: FloatArray) -> FloatArray:
        """Return the other count; of a count that would be negative, a thousandth of N."""
        difference = np.exp(self.constant + self.exponent * np.log(n_params))
        return np.asarray(np.maximum(n_params + self.sign * difference, 1e-3 * n_params))


def size_counts(rows: Observations) -> dict[str, Relation]:
    """Return the other counts of N in the rows, by column, that N determines.

    Counts in proportion to N or to each other are left out: they give the same laws.
    """
    if not rows.has(ASKED) or not len(rows):
        return {}
    asked = np.log(rows.n_params)
    found: dict[str, Relation] = {}
    known: list[FloatArray] = [np.zeros(len(rows))]
    for name, values in rows.extra.items():
        if not _is_count(name) or values.dtype.kind not in "fiu":
            continue
        other = np.asarray(values, dtype=np.float64)
        if not (np.isfinite(other) & (other > 0)).all():
            continue
        ratio = np.log(other) - asked
        if any(np.std(ratio - each) < SAME for each in known):
            continue
        relation = _relation(rows.n_params, other)
        if relation is not None and len(found) + 1 < MOST_COUNTS:
            known.append(ratio)
            found[name] = relation
    return found


def names_counts(rows: Observations) -> bool:
    """Return whether other columns count N too, so that the names tell the counts apart."""
    return any(_is_count(name) for name in rows.extra)


def counted_by(rows: Observations, name: str) -> Observations:
    """Return the rows with N from a column."""
    if name == ASKED:
        return rows
    return replace(rows, n_params=np.asarray(rows.extra[name], dtype=np.float64))


def _is_count(name: str) -> bool:
    words = [word.rstrip("s") for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    names = ("param", "parameter")
    rest = "".join(word for word in words if word not in (*names, "n", "num", "count"))
    return any(word in names for word in words) and rest in KINDS


def _relation(n_params: FloatArray, other: FloatArray) -> Relation | None:
    """Return the relation of another count to N; None if N does not determine it."""
    difference = other - n_params
    sign = float(np.sign(np.median(difference)))
    if not (difference * sign > 0).all():
        return None
    x, y = np.log(n_params), np.log(np.abs(difference))
    slope = float(np.clip(np.polyfit(x - x.mean(), y, 1)[0], 0.0, 1.0)) if np.ptp(x) > 0 else 1.0
    found = Relation(sign=sign, constant=float(y.mean() - slope * x.mean()), exponent=slope)
    return found if np.std(np.log(found.other(n_params) / other)) < UNRELATED else None
