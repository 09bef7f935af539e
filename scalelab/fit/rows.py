"""Columns, target and weights of a fit, from observations, in canonical row order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.errors import DataError, UsageError, did_you_mean, listed
from scalelab.fit.objective import Objective
from scalelab.fit.row_model import Rows
from scalelab.records.types import Observations
from scalelab.theory.laws.base import Law
from scalelab.units import plural


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Design:
    """The rows of one fit in canonical order.

    Attributes
    ----------
    columns : dict of str to ndarray of shape (n,)
        The columns that the law needs.
    rows : Rows
        Target and weights. Weights are scaled so that the largest is from 1 to 2, for numerical
        accuracy; the scale does not change the optimum.
    unit : float
        Unit of the scaled weights, a power of two.
    labels : ndarray of shape (n,), or None
        Cluster labels.
    labels_from : str
        Column of the labels.
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
        """The weights in the caller's unit."""
        return self.rows.weight * self.unit


def column(observations: Observations, name: str) -> NDArray[Any]:
    """Return a column by name; UsageError lists the columns if it is missing."""
    sizes = {
        "n_params": observations.n_params,
        "n_tokens": observations.n_tokens,
        "flops": observations.flops,
    }
    own = {
        **{key: value for key, value in sizes.items() if observations.has(key)},
        "loss_nats": observations.loss_nats,
        "budget": observations.budget,
        "cluster": observations.cluster,
        **observations.extra,
    }
    found = own.get(name)
    if found is None:
        there = sorted(key for key, value in own.items() if value is not None)
        raise UsageError(
            f"column {name!r}",
            f"one of {listed(there, name)}",
            f"{did_you_mean(name, there)}Map it from a column of the file with --map "
            f"{name}=COLUMN, or name another.",
        )
    return found


def design(
    observations: Observations, law: type[Law], objective: Objective, cluster: str | None
) -> Design:
    """Return the rows in canonical order: the order of rows and columns does not matter.

    Raises
    ------
    UsageError
        For a missing column.
    DataError
        For no rows, or values that are not finite and positive (finite, for a signed target).
    """
    if not len(observations):
        raise DataError("no rows", "1 finished run or more", "Select more rows with --where.")
    columns = {name: positive(observations, name) for name in law.columns}
    read = numbers if law.is_signed else positive
    target = read(observations, law.target)
    weight = np.ones(len(target))
    if objective.weight is not None:
        weight = numbers(observations, objective.weight)
        if not (weight >= 0).all() or not weight.any():
            raise DataError(
                f"weights from {weight.min()} to {weight.max()} in column {objective.weight}",
                "numbers of 0 or more, not all 0",
                "Correct that column, or leave out --weight.",
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
    """Return a column as finite numbers; DataError names the first row with another value."""
    try:
        values = np.asarray(column(observations, name), dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(
            f"text in column {name}", "numbers", f"Use --map {name}=COLUMN with another column."
        ) from None
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise DataError(
            f"{name} = {values[bad[0]]} in row {bad[0] + 1} ({plural(len(bad), 'such row')})",
            "finite numbers",
            f"Remove these rows with --where, for example 'isfinite({name})'.",
        )
    return values


def positive(observations: Observations, name: str) -> FloatArray:
    """Return a column as positive numbers; DataError names the first row with another value."""
    values = numbers(observations, name)
    bad = np.flatnonzero(values <= 0)
    if len(bad):
        raise DataError(
            f"{name} = {values[bad[0]]} in row {bad[0] + 1} ({plural(len(bad), 'such row')})",
            "numbers above 0",
            f"Remove these rows with --where, for example '{name} > 0'.",
        )
    return values
