"""Parametrizations: how initial values, learning rates and logits change with the model's width.

``standard`` initialises each matrix with standard deviation 1/sqrt(fan_in) and uses one learning
rate for all weights. ``mup`` (maximal update) equals ``standard`` at `BASE_WIDTH` with heads of
`BASE_HEAD`. At m times that width it changes four factors, so that the best learning rate does not
depend on the width:

* Learning rate of hidden matrices: divided by m.
* Logits: divided by m.
* Initial values of the head: as at the base width.
* Attention scores: scaled by sqrt(`BASE_HEAD`) / d_head instead of 1/sqrt(d_head).

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
    """Factors of a run's parametrization.

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
