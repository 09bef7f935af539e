"""Which matrix products of a model an fp8 run computes in fp8; the others are in bf16.

The rule depends on the shape only, so a run computes the same wherever and however it is executed.
A product of a dense layer is in fp8 if both sides of its weight are multiples of `FP8_MULTIPLE`,
which the hardware needs, and at least `FP8_SIDE_MIN`, a tile of the matrix units. The head counts
with its padded vocabulary. Attention, routers and routed experts are in bf16.
"""

from __future__ import annotations

from scalelab.theory.shape import ModelShape

FP8_MULTIPLE = 16
FP8_SIDE_MIN = 128
FP8_GPUS = ("b200", "h100", "h200", "l4", "rtx4090")
"""Devices of `scalelab.theory.hardware` that train in fp8: NVIDIA's from compute capability 8.9.
The formats of AMD's MI300 differ."""


def is_fp8_product(n_out: int, n_in: int) -> bool:
    """Say whether an fp8 run multiplies by a weight of shape (n_out, n_in) in fp8."""
    return all(side % FP8_MULTIPLE == 0 and side >= FP8_SIDE_MIN for side in (n_out, n_in))


def fp8_weights(shape: ModelShape) -> tuple[str, ...]:
    """Return the names of a block's weights, and of the head, whose products an fp8 run has in fp8.

    They are among ``qkv``, ``out``, ``gate_up``, ``down``, ``shared_gate_up``, ``shared_down`` and
    ``head``; empty for a narrow model.
    """
    d = shape.d_model
    weights = {
        "qkv": (shape.d_attention + 2 * shape.d_kv, d),
        "out": (d, shape.d_attention),
        "gate_up": (2 * shape.d_ff, d),
        "down": (d, shape.d_ff),
        "head": (shape.padded_vocab, d),
    }
    if shape.n_experts:
        del weights["gate_up"], weights["down"]
    if shape.d_shared_expert:
        weights |= {
            "shared_gate_up": (2 * shape.d_shared_expert, d),
            "shared_down": (d, shape.d_shared_expert),
        }
    return tuple(name for name, sides in weights.items() if is_fp8_product(*sides))
