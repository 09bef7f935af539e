"""Parametrizations: how a model's shape sets initial values, factors and learning rates.

``standard`` initialises each matrix with standard deviation 1/sqrt(fan_in) and uses one learning
rate for all weights. ``mup`` and ``completep`` equal ``standard`` at the base shape
(`scalelab.theory.shape.BASE_WIDTH`, `BASE_HEAD`, `BASE_DEPTH`). They change factors with the shape,
so that the best learning rate stays that of the base shape. With m for the width and l for the
depth, both relative to the base shape:

===========================================  ==========  =========  =============
Factor                                       standard    mup        completep
===========================================  ==========  =========  =============
Attention scores                             d_head^-½   ~ 1/d_head  ~ 1/d_head
Logits                                       1           1/m        1/m
Output of a block's part                     1           1          1/l
Initial std of the head                      d_model^-½  constant   constant
Initial std of matrices to the stream        ~ L^-½      ~ L^-½     independent of L
Learning rate of hidden matrices, AdamW      1           1/m        1/m
Learning rate of hidden matrices, Muon       1           m^-½       m^-½
Weight decay of hidden matrices              1           1          1 / that factor
AdamW's epsilon, weights in blocks           1           1          1/(m l)
AdamW's epsilon, other weights               1           1          1/m
===========================================  ==========  =========  =============

Learning rates do not depend on the depth: under ``completep``, each block's output changes at a
rate that does not depend on the depth, and the factor 1/l makes their sum independent of it too
(alpha = 1 in the paper). Norm gains, the embedding and the head have the run's learning rate.

Muon's rule follows from the spectral condition: an update of a hidden matrix should have a spectral
norm of about sqrt(fan_out / fan_in). Our Muon scales an orthogonal matrix, whose spectral norm is
1, by 0.2 sqrt(max(rows, columns)) (`scalelab.train.muon`), which grows like m^½; the factor m^-½
makes it constant. The update does not depend on the gradient's size, so the depth rule and the
weight decay rule (rate times decay stays constant) are those of AdamW.

``mup`` leaves weight decay and epsilon as they are, as the authors' implementation of it leaves
weight decay. So under ``mup`` the decay of hidden matrices per step falls like 1/m.

References
----------
Yang et al. 2022, arXiv:2203.03466, table 8 and section 4 (muP).
Dey et al. 2025, arXiv:2505.01618, table 1 and equation 40 (CompleteP: depth, weight decay and
epsilon); https://github.com/EleutherAI/nanoGPT-mup, ``model.py``.
Yang et al. 2023, arXiv:2310.17813, condition 1 (the spectral condition).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.shape import BASE_DEPTH, BASE_HEAD, BASE_WIDTH

if TYPE_CHECKING:
    from scalelab.train.parameters import Entry


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeFactors:
    """Factors of a run's forward pass and initial values.

    Attributes
    ----------
    attention : float
        Factor of the attention scores.
    logits : float
        Factor of the head's input.
    branch : float
        Factor of the outputs of attention and feed-forward layer, before they enter the stream.
    head_fan_in : int
        Width that sets the head's initial standard deviation.
    init_depth : int
        Depth that sets the initial standard deviation of matrices that write to the stream.
    """

    attention: float
    logits: float = 1.0
    branch: float = 1.0
    head_fan_in: int
    init_depth: int


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateFactors:
    """Factors of a weight's learning rate, weight decay and epsilon."""

    rate: float = 1.0
    decay: float = 1.0
    epsilon: float = 1.0


def shape_factors(spec: RunSpec) -> ShapeFactors:
    """Return the factors of a run's forward pass and initial values."""
    shape = spec.shape
    if spec.parametrization == "standard":
        return ShapeFactors(
            attention=shape.d_head**-0.5, head_fan_in=shape.d_model, init_depth=shape.n_layers
        )
    is_complete = spec.parametrization == "completep"
    return ShapeFactors(
        attention=BASE_HEAD**0.5 / shape.d_head,
        logits=BASE_WIDTH / shape.d_model,
        branch=BASE_DEPTH / shape.n_layers if is_complete else 1.0,
        head_fan_in=BASE_WIDTH,
        init_depth=BASE_DEPTH if is_complete else shape.n_layers,
    )


def update_factors(spec: RunSpec, entry: Entry) -> UpdateFactors:
    """Return the factors of a weight's updates, by AdamW or Muon."""
    if spec.parametrization == "standard":
        return UpdateFactors()
    inverse = BASE_WIDTH / spec.shape.d_model
    rate = 1.0
    if entry.is_hidden:
        rate = inverse**0.5 if spec.optimizer == "muon" else inverse
    if spec.parametrization == "mup":
        return UpdateFactors(rate=rate)
    depth = BASE_DEPTH / spec.shape.n_layers if entry.is_in_block else 1.0
    return UpdateFactors(rate=rate, decay=1 / rate, epsilon=inverse * depth)
