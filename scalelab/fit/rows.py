"""From observations to the numbers of one fit: columns, target, weights, in canonical order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.errors import DataError, UsageError
from scalelab.fit.objective import Objective
from scalelab.fit.row_model import Rows
from scalelab.records.types import Observations
from scalelab.theory.laws.base import Law

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Design:
    """The rows of one fit in canonical order.

    Attributes
    ----------
    columns : dict of str to ndarray of shape (n,)
        What the law needs.
    rows : Rows
        Target and weights, the largest from 1 up to 2: their scale changes no optimum, and numbers
        far from 1 would lose it.
    unit : float
        What these weights are counted in, a power of two.
    labels : ndarray of shape (n,), or None
        Cluster labels.
    labels_from : str
        Where the labels came from, in a word.
    order : ndarray of int, shape (n,)
        Positions of these rows in the caller's order.
    max_flops : float
        Compute of the largest run.
    """

    columns: dict[str, FloatArray]
    rows: Rows
    labels: NDArray[Any] | None
    labels_from: str
    order: NDArray[np.intp]
    max_flops: float
    unit: float = 1.0

    @property
    def weight(self) -> FloatArray:
        """The weights as they were given."""
        return self.rows.weight * self.unit


def column(observations: Observations, name: str) -> NDArray[Any]:
    """Return a column by name; UsageError lists the columns when there is none."""
    own = {
        "n_params": observations.n_params,
        "n_tokens": observations.n_tokens,
        "loss_nats": observations.loss_nats,
        "flops": observations.flops,
        "budget": observations.budget,
        "cluster": observations.cluster,
        **observations.extra,
    }
    found = own.get(name)
    if found is None:
        there = sorted(key for key, value in own.items() if value is not None)
        raise UsageError(
            f"column {name!r}",
            f"a column of numbers: one of {', '.join(there)}",
            "Map that column, or name another.",
        )
    return found


def design(
    observations: Observations, law: type[Law], objective: Objective, cluster: str | None
) -> Design:
    """Return the rows in canonical order, so that neither row nor column order matters.

    Raises
    ------
    UsageError
        For a column that the rows lack.
    DataError
        For no rows, or values that are not finite and positive.
    """
    if not len(observations):
        raise DataError("no rows", "at least one run", "Widen the selection of rows.")
    columns = {name: positive(observations, name) for name in law.columns}
    target = positive(observations, law.target)
    weight = np.ones(len(target))
    if objective.weight is not None:
        weight = numbers(observations, objective.weight)
        if not (weight >= 0).all() or not weight.any():
            raise DataError(
                f"weights in {objective.weight} from {weight.min()} to {weight.max()}",
                "numbers from 0 up, not all 0",
                "Correct that column, or weigh all rows alike.",
            )
    unit = 2.0 ** math.floor(math.log2(weight.max()))
    weight = weight / unit
    labels = column(observations, cluster) if cluster else observations.cluster
    keys: list[NDArray[Any]] = [] if labels is None else [np.unique(labels, return_inverse=True)[1]]
    keys += [weight, *(columns[name] for name in sorted(columns)), target]
    order = np.lexsort(keys)
    return Design(
        columns={name: values[order] for name, values in columns.items()},
        rows=Rows(target[order], weight[order], objective.residual),
        labels=None if labels is None else labels[order],
        labels_from=cluster or "cluster",
        order=order,
        max_flops=float(observations.flops.max()),
        unit=unit,
    )


def numbers(observations: Observations, name: str) -> FloatArray:
    """Return a column as finite numbers; DataError names the first row that is not one."""
    try:
        values = np.asarray(column(observations, name), dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(
            f"text in column {name}", "numbers", "Map a column of numbers to it."
        ) from None
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise DataError(
            f"{name} = {values[bad[0]]} in row {bad[0] + 1} ({len(bad)} such rows)",
            "finite numbers",
            "Remove those rows.",
        )
    return values


def positive(observations: Observations, name: str) -> FloatArray:
    """Return a column as finite positive numbers; DataError names the first row that is not."""
    values = numbers(observations, name)
    bad = np.flatnonzero(values <= 0)
    if len(bad):
        raise DataError(
            f"{name} = {values[bad[0]]} in row {bad[0] + 1} ({len(bad)} such rows)",
            "numbers above zero",
            "Remove those rows.",
        )
    return values
