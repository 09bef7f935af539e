"""Base class of the laws: parameters, one formula, exact derivatives.

Each form is a frozen dataclass whose fields are the parameters. It has `coordinates` (the
parameters as an optimizer sees them), `columns` (required in each row), `source` (the paper) and
`evaluate`, the formula, written once in NumPy. `scalelab.theory.laws.jet` computes its exact first
and second derivatives. A form that is a sum of exponentials of linear functions also has `terms`,
for which the solver is faster. `seeds` returns starting points.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from scalelab.arrays import FloatArray
from scalelab.errors import UsageError
from scalelab.theory.laws.jet import Jet

Columns = Mapping[str, ArrayLike]


@dataclass(frozen=True, kw_only=True, slots=True)
class Coordinate:
    """One parameter in the coordinates of the optimizer.

    Attributes
    ----------
    name : str
        The parameter, a field of the law.
    is_log : bool
        Whether the coordinate is the logarithm (of a positive parameter) or the value itself.
    low, high : float
        Bounds on the parameter itself. A fit whose best value goes to 0 is reported as such.
    """

    name: str
    is_log: bool = True
    low: float = 0.0
    high: float = math.inf

    def encode(self, value: ArrayLike) -> Any:
        """Return the coordinate of a parameter value (its logarithm where ``is_log``)."""
        return np.log(np.asarray(value, float)) if self.is_log else np.asarray(value, float)

    def decode(self, coordinate: ArrayLike) -> Any:
        """Return the parameter value of a coordinate."""
        with np.errstate(over="ignore"):  # a diverging replicate is infinite
            return np.exp(np.asarray(coordinate, float)) if self.is_log else np.asarray(coordinate)


def log_coordinates(*names: str) -> tuple[Coordinate, ...]:
    """Return the coordinates of positive parameters: their logarithms."""
    return tuple(Coordinate(name=name) for name in names)


def linear_coordinates(*names: str, low: float = 0.0) -> tuple[Coordinate, ...]:
    """Return the coordinates of parameters from ``low``: the values themselves."""
    return tuple(Coordinate(name=name, is_log=False, low=low) for name in names)


@dataclass(frozen=True, kw_only=True)
class Law(ABC):
    """Base class of forms; a subclass is a frozen dataclass whose fields are its parameters."""

    name: ClassVar[str]
    """Name on the command line and in files."""
    columns: ClassVar[tuple[str, ...]]
    """Columns that a row must have, in addition to the target."""
    target: ClassVar[str] = "loss_nats"
    """Predicted column of the observations."""
    coordinates: ClassVar[tuple[Coordinate, ...]]
    """Parameters in optimizer order."""
    source: ClassVar[str]
    """Paper and section that state the form."""
    offset: ClassVar[str | None] = None
    """Parameter that is added to the other terms: the irreducible loss E."""
    is_signed: ClassVar[bool] = False
    """Whether the target may be 0 or negative; its residual is then linear."""
    power: ClassVar[str | None] = None
    """Parameter, with a logarithmic coordinate, to whose power the sum of ``terms`` is raised."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the parameter names in optimizer order."""
        return tuple(c.name for c in cls.coordinates)

    @classmethod
    @abstractmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the predicted target from coordinates.

        Parameters
        ----------
        theta : sequence of length p
            Coordinates (logarithms where the coordinate says so), each an array that broadcasts
            against a column, or a `Jet`.
        columns : Mapping[str, ndarray of shape (n,)]
            The columns named in ``columns``.
        """

    @classmethod
    def terms(cls, columns: Mapping[str, FloatArray]) -> FloatArray | None:
        """Return features F, (k, n, p): the target is offset + (sum_k exp(F[k] @ theta))^power.

        ``offset`` and ``power`` are those of the form, where it has them. None for a form that is
        not such a sum.
        """
        return None

    @classmethod
    @abstractmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return starting points, shape (s, p) in coordinates, best first."""

    @classmethod
    def decode(cls, theta: FloatArray) -> FloatArray:
        """Return parameters of coordinates, both of shape (s, p)."""
        columns = [c.decode(theta[:, j]) for j, c in enumerate(cls.coordinates)]
        return np.stack(columns, axis=1).astype(np.float64)

    @classmethod
    def encode(cls, values: FloatArray) -> FloatArray:
        """Return coordinates of parameters, both of shape (s, p)."""
        columns = [c.encode(values[:, j]) for j, c in enumerate(cls.coordinates)]
        return np.stack(columns, axis=1).astype(np.float64)

    @classmethod
    def from_coordinates(cls, theta: FloatArray) -> Self:
        """Return the law at one point of the optimizer's space, shape (p,)."""
        values = cls.decode(theta[None])[0]
        return cls(**{name: float(v) for name, v in zip(cls.names(), values, strict=True)})

    def to_coordinates(self) -> FloatArray:
        """Return the optimizer's coordinates of this law, shape (p,)."""
        values = np.array([[getattr(self, name) for name in self.names()]], dtype=np.float64)
        return np.asarray(self.encode(values)[0])

    @property
    def params(self) -> dict[str, float]:
        """Parameters by name, in the order of the fields."""
        return {f.name: float(getattr(self, f.name)) for f in fields(self)}

    def loss(self, columns: Columns) -> FloatArray:
        """Return the predicted target at these columns; infinite where it is too large for a float.

        ``columns`` has an entry for each of ``self.columns``; scalars and arrays broadcast.

        Raises
        ------
        UsageError
            When a column is missing.
        """
        theta = tuple(np.float64(t) for t in self.to_coordinates())
        with np.errstate(over="ignore"):
            value = self.evaluate(theta, self.columns_of(columns))
        return np.asarray(value, dtype=np.float64)

    @classmethod
    def columns_of(cls, columns: Columns) -> dict[str, FloatArray]:
        """Return the columns that the law needs as float arrays; UsageError names a missing one."""
        missing = [name for name in cls.columns if name not in columns]
        if missing:
            raise UsageError(
                f"no column {', '.join(missing)} for the form {cls.name}",
                f"the columns {', '.join(cls.columns)}",
                f"Name the column, for example --map {missing[0]}=COLUMN, or write --form "
                "chinchilla.",
            )
        return {name: np.asarray(columns[name], dtype=np.float64) for name in cls.columns}

    @classmethod
    def derivatives(
        cls, theta: FloatArray, columns: Mapping[str, FloatArray]
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return value, gradient and Hessian of the target by coordinate.

        Parameters
        ----------
        theta : ndarray of shape (s, p)
            A batch of points.
        columns : Mapping[str, ndarray of shape (n,)]
            The rows.

        Returns
        -------
        value : ndarray of shape (s, n)
        gradient : ndarray of shape (p, s, n)
        hessian : ndarray of shape (p, p, s, n)
        """
        s, p = theta.shape
        n = len(next(iter(columns.values())))
        out: Jet = cls.evaluate(Jet.variables(theta), columns)
        return out.full((s, n), p)

    @classmethod
    def slopes(
        cls, theta: FloatArray, columns: Mapping[str, FloatArray]
    ) -> tuple[FloatArray, FloatArray]:
        """Return value (s, n) and gradient (p, s, n), as `derivatives` does, without a Hessian."""
        s, p = theta.shape
        n = len(next(iter(columns.values())))
        out: Jet = cls.evaluate(Jet.variables(theta, order=1), columns)
        gradient = np.zeros((p, s, n))
        for j, part in out.grad.items():
            gradient[j] = part
        return np.broadcast_to(out.value, (s, n)), gradient

    def optimal(self, flops: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Return the compute-optimal (N, D) at a budget of ``flops`` under C = 6 N D.

        Raises
        ------
        UsageError
            When the form has no trade-off between N and D.
        """
        raise UsageError(
            f"the compute-optimal allocation of the form {self.name}",
            "a form with a model term and a data term",
            "Use --form chinchilla.",
        )
