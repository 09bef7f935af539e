"""Loss of two sources at one compute, and the compute that one needs for the loss of the other.

Both come from the compute-optimal frontiers, so they need runs that determine both laws, and they
may change with compute. `scalelab.fit.speedup` takes one law and one factor for all computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.fit.intervals import Interval
from scalelab.forecast.bands import Bands

SPAN = 10.0
"""Factor by which frontiers extend beyond the runs; a speed-up is within this factor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossGap:
    """A source beside the reference at one compute of the reference.

    Attributes
    ----------
    flops : float
        Compute, FLOP.
    loss, reference : float
        Loss of both at their optimum for this compute, in the unit of the metric.
    difference : Interval
        Loss minus that of the reference; below 0, the source is better. NaN limits if one of the
        two has no interval.
    compute : Interval
        Compute that the source needs for the loss of the reference at ``flops``, over ``flops``.
        Value and limits are 0 or infinite where they are beyond the compute of the frontiers.
    """

    flops: float
    loss: float
    reference: float
    difference: Interval
    compute: Interval

    @property
    def is_reached(self) -> bool:
        """Whether the source has the loss of the reference within the compute of its frontier."""
        return 0 < self.compute.value < math.inf

    @property
    def speedup(self) -> Interval:
        """1 over `compute`: above 1, the source saves compute."""
        return _inverse(self.compute)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object; what is not known or beyond the frontiers is null."""
        return {
            "flops": self.flops,
            "loss": self.loss,
            "reference_loss": self.reference,
            "loss_difference": plain(self.difference),
            "compute": plain_factor(self.compute),
            "speedup": plain_factor(self.speedup),
        }


def loss_gaps(
    ours: Bands, reference: Bands, flops: Sequence[float] | FloatArray
) -> tuple[LossGap, ...]:
    """Return the gap at each compute that both frontiers contain.

    Parameters
    ----------
    ours, reference : Bands
        Frontiers of both, of the same level, in increasing compute.
    flops : sequence of float or ndarray of shape (m,)
        Computes, FLOP.

    Notes
    -----
    Limits of a difference combine those of both losses, which come from different runs, by the
    square-and-add method (Zou and Donner 2008, doi:10.1002/sim.3095). The limits of the compute are
    where those of the difference are 0.
    """
    found = (_gap(ours, reference, float(each)) for each in flops)
    return tuple(each for each in found if each is not None)


def _gap(ours: Bands, reference: Bands, flops: float) -> LossGap | None:
    if not all(each.flops[0] <= flops <= each.flops[-1] for each in (ours, reference)):
        return None
    curves = _curves(ours)
    base = [_at(reference, each, flops) for each in _curves(reference)]
    own = [_at(ours, each, flops) for each in curves]
    loss, *_ = own
    difference = Interval(
        **{name: float(each) for name, each in zip(_NAMES, _differences(own, base), strict=True)}
    )
    # The difference falls with the compute of the source: its lower limit is 0 first.
    logs = [_where_0(np.log(ours.flops), each) for each in _differences(curves, base)]
    return LossGap(
        flops=flops,
        loss=float(loss),
        reference=float(base[0]),
        difference=difference,
        compute=Interval(
            **{name: math.exp(each) / flops for name, each in zip(_NAMES, logs, strict=True)}
        ),
    )


_NAMES = ("value", "low", "high")


def _curves(bands: Bands) -> tuple[FloatArray, FloatArray, FloatArray]:
    return bands.loss, bands.low, bands.high


def _at(bands: Bands, curve: FloatArray, flops: float) -> Any:
    """Return a curve at one compute; a straight line between points of log compute and loss."""
    return np.exp(np.interp(math.log(flops), np.log(bands.flops), np.log(curve)))


def _differences(ours: Sequence[Any], base: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Return the difference of two losses with its limits, from losses with theirs."""
    (value, low, high), (other, other_low, other_high) = ours, base
    gap = value - other
    down = np.hypot(value - low, other_high - other)
    up = np.hypot(high - value, other - other_low)
    return gap, gap - down, gap + up


def _where_0(logs: FloatArray, gaps: FloatArray) -> float:
    """Return the log compute at which a falling difference is 0; infinite if beyond the ends."""
    if not np.isfinite(gaps).all():
        return math.nan
    above = np.flatnonzero(gaps > 0)
    if not len(above):
        return -math.inf
    last = int(above[-1])
    if last == len(gaps) - 1:
        return math.inf
    share = gaps[last] / (gaps[last] - gaps[last + 1])
    return float(logs[last] + share * (logs[last + 1] - logs[last]))


def _inverse(interval: Interval) -> Interval:
    value, low, high = (
        math.inf if each == 0 else 1 / each
        for each in (interval.value, interval.high, interval.low)
    )
    return Interval(value=value, low=low, high=high)


def plain_factor(interval: Interval) -> dict[str, float | None]:
    """Return a factor for JSON; 0, for beyond the frontiers, is null as infinity is."""
    return {name: end or None for name, end in plain(interval).items()}


def plain(interval: Interval) -> dict[str, float | None]:
    """Return an interval for JSON, in which a number that is not known or infinite is null."""
    ends = (interval.value, interval.low, interval.high)
    return {
        name: end if math.isfinite(end) else None for name, end in zip(_NAMES, ends, strict=True)
    }
