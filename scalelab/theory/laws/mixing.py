r"""Mixture laws: the loss on one evaluation set as a function of the weights of the sources.

A mixture law is written for given sources: `MixingLaw.over` returns the law as a class with one
column ``weight_SOURCE`` and the parameters of each source. Where runs differ in N or D, the law has
a term of them, as Chinchilla has; otherwise the term is a part of E.

* `ExponentialMixing`: the loss falls exponentially with the weights. Few parameters.
* `JointMixing`: each source has an exponent, and the scales of N and D depend on the weights.
  Most parameters: it needs many mixtures at several sizes.
* `TransferMixing`: between the two. The set's own source has an exponent, which follows the steep
  fall of the loss from a weight of 0 to a small one; other sources transfer a constant share.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass, replace
from itertools import product
from typing import Any, ClassVar, cast

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.theory.laws.base import Coordinate, Law, linear_coordinates, log_coordinates

WEIGHT = "weight_"
"""Start of the name of a column with the weight of a source."""
SCALES = {"n_params": ("A", "alpha"), "n_tokens": ("B", "beta")}
"""Scale and exponent of the term of N and of that of D."""
EXPONENT_SEEDS = (0.1, 0.35, 0.8)
ABOVE = (0.03, 0.3, 1.5)
"""Distances of E below the lowest loss that `seeds` tries, in standard deviations of the loss."""
TYPICAL_SIZE = 1e8
"""Parameters at which the w of `TransferMixing` are those of the formula."""
SMALLEST = 1e-4
"""Smallest value of a positive coefficient in `seeds`."""


def _with_valid_names(coordinates: tuple[Coordinate, ...]) -> tuple[Coordinate, ...]:
    """Return coordinates whose names are Python names: sources may be called ``docs-en``."""
    names: list[str] = []
    for coordinate in coordinates:
        name = re.sub(r"\W", "_", coordinate.name)
        while name in names:
            name += "_"
        names.append(name)
    return tuple(replace(c, name=name) for c, name in zip(coordinates, names, strict=True))


class MixingLaw(Law):
    r"""Base class of mixture laws: :math:`L = E + M(h) + A N^{-\alpha} + B D^{-\beta}`.

    Attributes
    ----------
    sources : tuple of str
        Names of the sources; their weights h sum to 1.
    scale : tuple of str
        ``n_params``, ``n_tokens``, both or neither: columns of N and D that the law uses.
    own : str or None
        Source of the same kind of text as the evaluation set.
    """

    sources: ClassVar[tuple[str, ...]] = ()
    scale: ClassVar[tuple[str, ...]] = ()
    own: ClassVar[str | None] = None
    offset = "E"

    @classmethod
    def over(
        cls, sources: Sequence[str], scale: Sequence[str] = (), own: str | None = None
    ) -> type[MixingLaw]:
        """Return the law of these sources, with terms of N and D as ``scale`` says.

        ``own`` is the source of the same kind of text as the evaluation set; None if there is none.
        """
        coordinates = (
            *linear_coordinates("E"),
            *cls.mixing_coordinates(sources, scale, own),
            *(
                coordinate
                for name in scale
                for coordinate in (
                    *log_coordinates(SCALES[name][0]),
                    Coordinate(name=SCALES[name][1], is_log=False, low=0.02, high=3.0),
                )
            ),
        )
        coordinates = _with_valid_names(coordinates)
        made = make_dataclass(
            cls.__name__,
            [(c.name, float) for c in coordinates],
            bases=(cls,),
            namespace={
                "sources": tuple(sources),
                "scale": tuple(scale),
                "own": own,
                "coordinates": coordinates,
                "columns": (*(WEIGHT + name for name in sources), *scale),
            },
            frozen=True,
            kw_only=True,
        )
        return cast("type[MixingLaw]", made)

    @classmethod
    @abstractmethod
    def mixing_coordinates(
        cls, sources: Sequence[str], scale: Sequence[str], own: str | None
    ) -> tuple[Coordinate, ...]:
        """Return the coordinates of M(h)."""

    @classmethod
    @abstractmethod
    def mixing_seeds(
        cls, weights: FloatArray, columns: Mapping[str, FloatArray], rest: FloatArray
    ) -> list[list[float]]:
        """Return starting points of M(h) for weights (n, m) and values of M (n,), positive."""

    @classmethod
    def weights_of(cls, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the weights, shape (n, m)."""
        return np.stack([columns[WEIGHT + name] for name in cls.sources], axis=-1)

    @classmethod
    def scale_terms(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the sum of the terms of N and D from the last coordinates."""
        total: Any = 0.0
        rest = theta[len(theta) - 2 * len(cls.scale) :]
        for j, name in enumerate(cls.scale):
            total = total + np.exp(rest[2 * j] - rest[2 * j + 1] * np.log(columns[name]))
        return total

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return a grid of E and the exponents of N and D, with M(h) by least squares."""
        weights = cls.weights_of(columns)
        spread = max(float(np.std(target)), 1e-3)
        out: list[list[float]] = []
        for exponents in product(EXPONENT_SEEDS, repeat=len(cls.scale)):
            powers = [
                columns[name] ** -power for name, power in zip(cls.scale, exponents, strict=True)
            ]
            design = np.column_stack([weights, *powers])
            norm = np.sqrt((design**2).sum(axis=0)) + 1e-300
            found = np.linalg.lstsq(design / norm, target, rcond=None)[0] / norm
            scales = [
                max(float(c), SMALLEST / float(power.mean()))
                for c, power in zip(found[weights.shape[1] :], powers, strict=True)
            ]
            rest = target - sum(
                (c * power for c, power in zip(scales, powers, strict=True)), np.zeros(len(target))
            )
            for above in ABOVE:
                E = max(float(rest.min()) - above * spread, 0.0)
                M = np.maximum(rest - E, 0.02 * spread)
                tail = [
                    value
                    for c, power in zip(scales, exponents, strict=True)
                    for value in (float(np.log(c)), power)
                ]
                out.extend([E, *start, *tail] for start in cls.mixing_seeds(weights, columns, M))
        return np.array(out)


class ExponentialMixing(MixingLaw):
    r"""Exponential data-mixing law :math:`L = E + \exp(\sum_j t_j h_j) + A N^{-\alpha} + ..`.

    The paper has a factor k before the exponential. As the weights sum to 1, it is a part of the t
    here: t_j = log k + t_j of the paper. The paper fits each size by itself; here c of the paper is
    E plus the terms of N and D.
    """

    name = "exponential_mixing"
    source = "Ye et al. 2024, arXiv:2403.16952, equation 6; its constant c as a law of N and D"

    @classmethod
    def mixing_coordinates(
        cls, sources: Sequence[str], scale: Sequence[str], own: str | None
    ) -> tuple[Coordinate, ...]:
        """Return the slope of each source."""
        return tuple(
            Coordinate(name=f"t_{name}", is_log=False, low=-60.0, high=20.0) for name in sources
        )

    @classmethod
    def mixing_seeds(
        cls, weights: FloatArray, columns: Mapping[str, FloatArray], rest: FloatArray
    ) -> list[list[float]]:
        """Return the slopes by least squares of log M."""
        return [[float(t) for t in np.linalg.lstsq(weights, np.log(rest), rcond=None)[0]]]

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from (E, t.., log A, alpha, log B, beta)."""
        exponent: Any = 0.0
        for t, name in zip(theta[1:], cls.sources, strict=False):
            exponent = exponent + t * columns[WEIGHT + name]
        return theta[0] + np.exp(exponent) + cls.scale_terms(theta, columns)

    @classmethod
    def terms(cls, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the features of the exponential and of the terms of N and D."""
        weights = cls.weights_of(columns)
        n, m = weights.shape
        features = np.zeros((1 + len(cls.scale), n, 1 + m + 2 * len(cls.scale)))
        features[0, :, 1 : 1 + m] = weights
        for j, name in enumerate(cls.scale):
            features[1 + j, :, 1 + m + 2 * j] = 1.0
            features[1 + j, :, 2 + m + 2 * j] = -np.log(columns[name])
        return features


class JointMixing(MixingLaw):
    r"""Joint law of N, D and weights.

    .. math:: L = E + \frac{1}{\sum_j C_j h_j^{\gamma_j}}
        + \frac{A (\sum_j a_j h_j)^{\gamma_A}}{N^\alpha}
        + \frac{B (\sum_j b_j h_j)^{\gamma_B}}{D^\beta}

    The a_j and b_j are relative to the first source, whose value is 1: A and B carry the scale.
    """

    name = "joint_mixing"
    source = "Shukor et al. 2025, arXiv:2507.09404, section 3, joint law"

    @classmethod
    def mixing_coordinates(
        cls, sources: Sequence[str], scale: Sequence[str], own: str | None
    ) -> tuple[Coordinate, ...]:
        """Return C and gamma of each source, then the factors of the terms of N and D."""
        out = [*log_coordinates(*(f"C_{name}" for name in sources))]
        out += [Coordinate(name=f"gamma_{name}", is_log=False, high=4.0) for name in sources]
        for column in scale:
            letter = SCALES[column][0]
            out.append(Coordinate(name=f"gamma_{letter}", is_log=False, low=-3.0, high=3.0))
            out += [
                Coordinate(name=f"{letter.lower()}_{name}", low=1e-4, high=1e4)
                for name in sources[1:]
            ]
        return tuple(out)

    @classmethod
    def mixing_seeds(
        cls, weights: FloatArray, columns: Mapping[str, FloatArray], rest: FloatArray
    ) -> list[list[float]]:
        """Return equal exponents, with the C by non-negative least squares of 1/M."""
        m = weights.shape[1]
        factors = [0.5, *([0.0] * (m - 1))] * len(cls.scale)
        return [
            [*positive_logs(weights**gamma * rest[:, None], np.ones(len(rest))), *[gamma] * m,
             *factors]
            for gamma in (0.15, 0.4, 1.0)
        ]  # fmt: skip

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss; the coordinates are those of `over`."""
        m = len(cls.sources)
        weights = [columns[WEIGHT + name] for name in cls.sources]
        worth: Any = 0.0
        for log_C, gamma, h in zip(theta[1 : 1 + m], theta[1 + m :], weights, strict=False):
            # A source with weight 0 adds nothing, at any exponent.
            worth = worth + np.exp(log_C + gamma * np.log(np.where(h > 0, h, 1.0))) * (h > 0)
        total = theta[0] + np.exp(-np.log(worth))
        at, ends = 1 + 2 * m, len(theta) - 2 * len(cls.scale)
        for j, name in enumerate(cls.scale):
            gamma, factors = theta[at], theta[at + 1 : at + m]
            at += m
            mixed: Any = weights[0]
            for log_factor, h in zip(factors, weights[1:], strict=True):
                mixed = mixed + np.exp(log_factor) * h
            log_scale, power = theta[ends + 2 * j], theta[ends + 2 * j + 1]
            total = total + np.exp(
                log_scale + gamma * np.log(mixed) - power * np.log(columns[name])
            )
        return total


class TransferMixing(MixingLaw):
    r"""Law of effective data :math:`L = E + (N/10^8)^{-a} / W(h) + A N^{-\alpha} + B D^{-\beta}`.

    .. math:: W(h) = w_o h_o^{\gamma} + \sum_{j \ne o} w_j h_j

    The set's own source o counts with an exponent: its first tokens lower the loss most. The others
    transfer a constant share. The effect of the data changes with the model by the exponent a. A
    set without a source of its own has no gamma. This is the mixture term of `JointMixing` with
    the exponents of other sources at 1.
    """

    name = "transfer_mixing"
    source = "the mixture term of arXiv:2507.09404 with one exponent, which changes with N"

    @classmethod
    def mixing_coordinates(
        cls, sources: Sequence[str], scale: Sequence[str], own: str | None
    ) -> tuple[Coordinate, ...]:
        """Return the worth of each source, the own exponent and, with N, how W changes with N."""
        out = [Coordinate(name=f"w_{name}", low=1e-30, high=1e30) for name in sources]
        if own is not None:
            out.append(Coordinate(name="gamma", is_log=False, low=0.05, high=2.0))
        if "n_params" in scale:
            out.append(Coordinate(name="a", is_log=False, low=-0.5, high=1.0))
        return tuple(out)

    @classmethod
    def mixing_seeds(
        cls, weights: FloatArray, columns: Mapping[str, FloatArray], rest: FloatArray
    ) -> list[list[float]]:
        """Return a grid of own exponents, with the worths by non-negative least squares."""
        end = [0.0] if "n_params" in cls.scale else []
        ones = np.ones(len(rest))
        if cls.own is None:
            return [[*positive_logs(weights * rest[:, None], ones), *end]]
        o = cls.sources.index(cls.own)
        out = []
        for gamma in (0.3, 0.55, 0.85):
            powered = weights.copy()
            powered[:, o] **= gamma
            out.append([*positive_logs(powered * rest[:, None], ones), gamma, *end])
        return out

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from (E, log w.., gamma, a, log A, alpha, log B, beta)."""
        m = len(cls.sources)
        worth: Any = 0.0
        for log_w, name in zip(theta[1 : 1 + m], cls.sources, strict=True):
            h = columns[WEIGHT + name]
            if name == cls.own:
                log_h = np.log(np.where(h > 0, h, 1.0))
                worth = worth + np.exp(log_w + theta[1 + m] * log_h) * (h > 0)
            else:
                worth = worth + np.exp(log_w) * h
        exponent = -np.log(worth)
        if "n_params" in cls.scale:
            a = theta[1 + m + (cls.own is not None)]
            # log N about 0 at the sizes of experiments keeps a and the w apart.
            exponent = exponent - a * np.log(columns["n_params"] / TYPICAL_SIZE)
        return theta[0] + np.exp(exponent) + cls.scale_terms(theta, columns)


def positive_logs(design: FloatArray, target: FloatArray) -> list[float]:
    """Return logarithms of non-negative least-squares coefficients, zeros replaced by a share."""
    from scipy.optimize import nnls

    norm = np.sqrt((design**2).sum(axis=0))
    norm = np.where(norm > 0, norm, 1.0)
    found = nnls(design / norm, target)[0] / norm
    floor = 1e-3 * max(float(found.max()), 1e-12)
    return [float(v) for v in np.log(np.maximum(found, floor))]


MIXING_LAWS: tuple[type[MixingLaw], ...] = (ExponentialMixing, JointMixing, TransferMixing)
"""Mixture laws that are compared, simplest first."""
