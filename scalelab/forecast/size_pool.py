"""The sizes among which a decision chooses: any size with C = 6 N D, or real shapes.

A model is a size with its training FLOPs per token. Serving a token takes a third of them (the
forward pass). Each limit is an upper bound of the tokens of a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.forecast.decision import GRAMS_PER_KG, HOURS_PER_DAY, Deployment, Limits
from scalelab.sweep.shape_rule import DEFAULT_RULE, ShapeRule
from scalelab.sweep.shapes import nearest_shape, size_limits
from scalelab.theory.accounting import (
    DEFAULT_FLOP_CONVENTION,
    FLOPS_PER_PARAM_FORWARD,
    FLOPS_PER_PARAM_TRAIN,
    count_params,
    train_flops_per_token,
)
from scalelab.theory.shape import ModelShape

SERVING_SHARE = FLOPS_PER_PARAM_FORWARD / FLOPS_PER_PARAM_TRAIN
"""FLOPs of a served token divided by those of a trained token."""
N_TARGET_SIZES = 600
"""Number of sizes; the pool contains the real shape nearest to each of them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SizePool:
    """Models to choose among.

    Attributes
    ----------
    n_params, flops_per_token : ndarray of shape (k,)
        Size as laws count it, and training FLOPs per token. Both are of the parameters that a token
        uses.
    n_stored : ndarray of shape (k,)
        Parameters in memory: with all experts.
    shapes : tuple of ModelShape, or None
        None if any size is possible.
    """

    n_params: FloatArray
    flops_per_token: FloatArray
    n_stored: FloatArray
    shapes: tuple[ModelShape, ...] | None = None

    def at(self, where: Sequence[int] | NDArray[np.intp]) -> SizePool:
        """Return the models at these positions."""
        return SizePool(
            n_params=self.n_params[where],
            flops_per_token=self.flops_per_token[where],
            n_stored=self.n_stored[where],
            shapes=None if self.shapes is None else tuple(self.shapes[int(i)] for i in where),
        )

    def nearest(self, n_params: float) -> SizePool:
        """Return the model of this size, or the nearest real shape."""
        if self.shapes is None:
            return continuum(np.array([n_params]))
        return self.at([int(np.argmin(np.abs(np.log(self.n_params / n_params))))])


def continuum(n_params: FloatArray) -> SizePool:
    """Return models of these sizes with C = 6 N D."""
    return SizePool(
        n_params=n_params, flops_per_token=FLOPS_PER_PARAM_TRAIN * n_params, n_stored=n_params
    )


def real_shapes(vocab_size: int, seq_len: int, rule: ShapeRule = DEFAULT_RULE) -> SizePool:
    """Return the shapes of sweep plans at this vocabulary and sequence length."""
    low, high = size_limits(vocab_size, rule)
    targets = np.geomspace(low, high, N_TARGET_SIZES)
    found = {nearest_shape(n, vocab_size, rule): None for n in targets}
    shapes = tuple(sorted(found, key=lambda shape: count_params(shape).of_active().total))
    return SizePool(
        n_params=np.array([float(count_params(shape).of_active().total) for shape in shapes]),
        n_stored=np.array([float(count_params(shape).total) for shape in shapes]),
        flops_per_token=np.array(
            [train_flops_per_token(shape, seq_len)[DEFAULT_FLOP_CONVENTION] for shape in shapes]
        ),
        shapes=shapes,
    )


def most_tokens(pool: SizePool, limits: Limits, deployment: Deployment) -> FloatArray:
    """Return the largest number of tokens of each model within all limits; NaN without any."""
    n, per_token = pool.n_params, pool.flops_per_token
    per_hour = deployment.flops_per_hour
    training = {
        "flops": limits.flops,
        "gpu_hours": limits.gpu_hours and limits.gpu_hours * per_hour,
        "days": limits.days and limits.days * HOURS_PER_DAY * deployment.n_devices * per_hour,
    }
    kwh_flops = per_hour / deployment.kwh_per_hour
    # A rate of 0, such as that of carbon-free power, sets no bound.
    total = {
        "usd": limits.usd and _over(limits.usd, deployment.device_usd_per_hour) * per_hour,
        "kwh": limits.kwh and limits.kwh * kwh_flops,
        "kg_co2": limits.kg_co2
        and _over(limits.kg_co2 * GRAMS_PER_KG, deployment.grams_per_kwh) * kwh_flops,
    }
    serving = SERVING_SHARE * per_token * deployment.inference_tokens
    most = np.full(len(n), np.inf)
    for flops in training.values():
        if flops is not None:
            most = np.minimum(most, flops / per_token)
    for flops in total.values():
        if flops is not None:
            most = np.minimum(most, (flops - serving) / per_token)
    if limits.serving_bytes is not None:
        is_small = pool.n_stored * deployment.bytes_per_param <= limits.serving_bytes * (1 + 1e-12)
        most = np.where(is_small, most, np.nan)
    return np.where(most >= 1, most, np.nan)


def _over(limit: float, rate: float) -> float:
    return limit / rate if rate else math.inf
