"""Parametrisations: how initial values, learning rates and logits change with the model's width.

``standard`` starts every matrix with 1/sqrt(fan_in) and gives all weights one learning rate.
``mup`` (maximal update) is the same model at `BASE_WIDTH`; at m times that width, hidden matrices
learn at 1/m of the rate, logits are divided by m, the head starts as at the base width, and
attention scores scale with 1/d_head instead of its root. The best learning rate then stays where it
is while the width grows.

References
----------
Yang et al. 2022, arXiv:2203.03466, table 8 and section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalelab.sweep.run_spec import RunSpec

BASE_WIDTH = 64
BASE_HEAD = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class WidthFactors:
    """Factors of a run's parametrisation.

    Attributes
    ----------
    attention : float
        Factor of the attention scores.
    logits : float
        Factor of the head's input.
    hidden_rate : float
        Factor of the learning rate of the blocks' matrices.
    head_fan_in : int
        Width that sets the head's initial standard deviation.
    """

    attention: float
    logits: float = 1.0
    hidden_rate: float = 1.0
    head_fan_in: int


def width_factors(spec: RunSpec) -> WidthFactors:
    """Return the factors of a run."""
    shape = spec.shape
    if spec.parametrization == "standard":
        return WidthFactors(attention=shape.d_head**-0.5, head_fan_in=shape.d_model)
    inverse = BASE_WIDTH / shape.d_model
    return WidthFactors(
        attention=BASE_HEAD**0.5 / shape.d_head,
        logits=inverse,
        hidden_rate=inverse,
        head_fan_in=BASE_WIDTH,
    )
