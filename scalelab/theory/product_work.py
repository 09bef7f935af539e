"""Work of matrix products: linear layers forward and backward, and Muon's orthogonalization."""

from __future__ import annotations

from scalelab.theory.accounting import FLOPS_PER_PARAM_FORWARD
from scalelab.theory.hardware import CALIBRATION
from scalelab.theory.precision import is_fp8_product
from scalelab.theory.shape import ModelShape
from scalelab.theory.step_work import StepConfig, Work

NEWTON_SCHULZ_STEPS = 5
_QUANTIZE_BYTES = 9
"""Bytes to round a bf16 value to fp8: read for the largest magnitude, scale, round."""
_TRANSPOSE_BYTES = 2
_QUANTIZE_LAUNCHES = 9
"""Launches of one rounding to fp8 with its scale and its transpose."""


def linears(shape: ModelShape) -> tuple[tuple[str, int, int, int, int], ...]:
    """Return the products of a block: name, inputs, outputs, rows for each token, matrices."""
    experts, active = max(shape.n_experts, 1), max(shape.n_active_experts, 1)
    router = (("router", shape.d_model, shape.n_experts, 1, 1),) if shape.n_experts else ()
    shared = (
        (
            ("shared_gate_up", shape.d_model, 2 * shape.d_shared_expert, 1, 1),
            ("shared_down", shape.d_shared_expert, shape.d_model, 1, 1),
        )
        if shape.d_shared_expert
        else ()
    )
    return (
        ("qkv", shape.d_model, shape.d_attention + 2 * shape.d_kv, 1, 1),
        ("out", shape.d_attention, shape.d_model, 1, 1),
        *router,
        ("gate_up", shape.d_model, 2 * shape.d_ff, active, experts),
        ("down", shape.d_ff, shape.d_model, active, experts),
        *shared,
    )


def tiles(rows: float, columns: float, inner: float = 0.0) -> float:
    """Return the output tiles of a product; long sums are split among tiles."""
    side, split = CALIBRATION["tile_rows"].value, CALIBRATION["split_inner"].value
    return float(-(-rows // side) * -(-columns // side) * max(1.0, inner // split))


def block_products(config: StepConfig) -> list[Work]:
    """Return forward, input-gradient and weight-gradient products of all blocks."""
    found = []
    launches = config.shape.n_layers * config.n_passes
    for name, n_in, n_out, per_token, n_matrices in linears(config.shape):
        found += three_products(
            config,
            "matmul",
            name,
            config.n_tokens * per_token,
            n_in,
            n_out,
            n_matrices=config.batched_runs * n_matrices,
            n_uses=config.n_passes,
            launches=launches,
            n_layers=config.shape.n_layers,
            precision=precision_of(config, name, n_out, n_in),
        )
    return found


def precision_of(config: StepConfig, name: str, n_out: int, n_in: int) -> str:
    """Return the precision of the products with a weight of shape (n_out, n_in).

    Routed experts and routers have none in fp8.
    """
    is_expert = config.shape.n_experts and name in ("router", "gate_up", "down")
    if config.precision == "fp8" and (is_expert or not is_fp8_product(n_out, n_in)):
        return "bf16"
    return config.precision


def three_products(
    config: StepConfig,
    part: str,
    name: str,
    rows: float,
    n_in: int,
    n_out: int,
    *,
    n_matrices: int,
    n_uses: int,
    launches: float,
    n_layers: int = 1,
    precision: str,
) -> list[Work]:
    """Return the products of a linear layer: forward, input gradient and weight gradient.

    Parameters
    ----------
    config : StepConfig
    part, name : str
        Of the work.
    rows : float
        Rows of the activations in a step, of all matrices together.
    n_in, n_out : int
        Shape of a matrix.
    n_matrices : int
        Matrices, of all batched runs, in one layer.
    n_uses : int
        Times that each matrix is read in a step: passes or chunks.
    launches : float
        Launches of each product in a step.
    n_layers : int
        Layers with these products.
    precision : str
        Precision of the products.
    """
    size = config.element_bytes
    weights = n_matrices * n_in * n_out * n_uses
    operands = {
        "forward": (rows * n_in, weights, rows * n_out),
        "input gradient": (rows * n_out, weights, rows * n_in),
        "weight gradient": (rows * n_in, rows * n_out, weights),
    }
    # Rows of one product, and its matrices.
    each = rows / n_matrices / n_uses
    n_tiles = n_matrices * n_uses * n_layers / launches
    sides = {
        "forward": (each, n_out, n_in),
        "input gradient": (each, n_in, n_out),
        "weight gradient": (n_out, n_in, each),
    }
    is_fp8 = precision == "fp8"
    found = [
        Work(
            part=part,
            name=f"{name} {kind}",
            n_launches=launches,
            n_bytes=n_layers * ((a + b + size * result) if is_fp8 else size * (a + b + result)),
            flops=n_layers * FLOPS_PER_PARAM_FORWARD * rows * n_in * n_out,
            precision=precision,
            n_tiles=n_tiles * tiles(*sides[kind]),
            is_product=True,
        )
        for kind, (a, b, result) in operands.items()
    ]
    if is_fp8:
        # Activations, weights and gradients are each rounded and transposed once.
        values = rows * (n_in + n_out) + weights
        found.append(
            Work(
                part=part,
                name=f"{name} rounding",
                n_launches=3 * _QUANTIZE_LAUNCHES * launches,
                n_bytes=n_layers * (_QUANTIZE_BYTES + _TRANSPOSE_BYTES) * values,
            )
        )
    return found


def newton_schulz_flops(n_rows: int, n_columns: int, *, halves_symmetric: bool = False) -> float:
    """Return the FLOPs of Muon's orthogonalization: per step X X^T, its square, and a product.

    Parameters
    ----------
    n_rows, n_columns : int
        Shape of the matrix.
    halves_symmetric : bool
        Whether one half of the first two products, which are symmetric, is computed.
    """
    small, large = sorted((n_rows, n_columns))
    symmetric = 2.0 * small**2 * large + 2.0 * small**3
    other = 2.0 * small**2 * large
    return NEWTON_SCHULZ_STEPS * (symmetric / (2 if halves_symmetric else 1) + other)
