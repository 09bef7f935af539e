"""Bytes, FLOPs and launches of one training step on a GPU, kernel group by kernel group.

`step_work` counts what the trainer's code executes for a `StepConfig`. `scalelab.theory.roofline`
turns the counts into seconds. FLOPs of the blocks' products agree with
`scalelab.theory.accounting`; attention and head count what is executed, recomputation included.
Bytes count each tensor that a kernel reads or writes in device memory once; caches are ignored.

The counts assume one device, no recomputed blocks and no weight average.
"""

from __future__ import annotations

from scalelab.theory.accounting import count_params
from scalelab.theory.hardware import CALIBRATION
from scalelab.theory.head_work import head_work
from scalelab.theory.product_work import (
    NEWTON_SCHULZ_STEPS,
    block_products,
    newton_schulz_flops,
    tiles,
)
from scalelab.theory.shape import ModelShape
from scalelab.theory.step_work import FP32, StepConfig, Work

# Launches of torch's own operations, counted in `scalelab_kernels.reference`.
_PLAIN_NORM_LAUNCHES = 19
_PLAIN_LAUNCHES_OF_BLOCK = 80
_PLAIN_ADAMW_LAUNCHES = 22
_PLAIN_ADAMW_BYTES = 136
_MUON_BYTES = 90
_MUON_LAUNCHES_PER_MATRIX = 2
_SMALL_LAUNCHES = 14
"""Loss, learning rates, readings and the embedding's gradient."""


def step_work(config: StepConfig) -> tuple[Work, ...]:
    """Return the work of one step."""
    return (
        *block_products(config),
        _attention(config),
        *_elementwise(config),
        *head_work(config),
        *_optimizer(config),
    )


def n_stored(shape: ModelShape) -> int:
    """Return the parameters in memory, padding of the vocabulary included."""
    padding = (shape.padded_vocab - shape.vocab_size) * shape.d_model
    return count_params(shape).total + padding * (1 if shape.is_tied else 2)


def attention_rate_share(path: str, d_head: int, seq_len: int) -> float:
    """Return the share of the sustained matmul rate of causal attention, forward and backward.

    FLOPs count 7 T^2 D for each head: the causal half of 4 T^2 D forward and 10 T^2 D backward.
    Smaller heads than 64 are padded; between 64 and 128 the share is interpolated.

    Parameters
    ----------
    path : str
        ``cudnn``, ``flash`` or ``triton``.
    d_head, seq_len : int
        Head size and sequence length.
    """
    at_64 = CALIBRATION[f"attention_{path}_64"].value
    at_128 = CALIBRATION[f"attention_{path}_128"].value
    if d_head <= 64:
        share = at_64 * d_head / 64
    else:
        share = at_64 + (at_128 - at_64) * min(d_head - 64, 64) / 64
    return share * seq_len / (seq_len + CALIBRATION["attention_half_length"].value)


def _attention(config: StepConfig) -> Work:
    shape, size = config.shape, config.element_bytes
    n, t = config.n_tokens, config.seq_len
    precision = "fp32" if config.precision == "fp32" else "bf16"
    launches = shape.n_layers * config.n_passes
    if config.attention in ("explicit", "sdpa"):
        if config.attention == "sdpa":
            # On a GPU, torch's math backend, which computes in fp32.
            precision, size = "fp32", FP32
        # Forward 2 products and backward 4 of the whole square, whose scores and weights are
        # written by one operation and read by the next: 4 passes forward, 8 backward.
        square = n * t * shape.n_heads * shape.n_layers
        return Work(
            part="attention",
            name=config.attention,
            n_launches=12 * launches,
            n_bytes=12 * size * square,
            flops=12 * square * shape.d_head,
            precision=precision,
            is_product=True,
        )
    return Work(
        part="attention",
        name=config.attention,
        n_launches=4 * launches,
        # Forward: q, k, v, result. Backward: the same, two gradients of rows, three of inputs.
        n_bytes=size * n * shape.n_layers * (6 * shape.d_attention + 6 * shape.d_kv),
        flops=7 * n * (t + 1) * shape.d_attention * shape.n_layers,
        precision=precision,
        rate_share=attention_rate_share(config.attention, shape.d_head, t),
        n_tiles=config.batched_runs
        * -(-config.batch_seqs // config.n_passes)
        * shape.n_heads
        * tiles(t, 1),
    )


def _elementwise(config: StepConfig) -> list[Work]:
    shape, size, n = config.shape, config.element_bytes, config.n_tokens
    d, layers = shape.d_model, shape.n_layers
    launches = layers * config.n_passes
    heads, kv = shape.d_attention, shape.d_kv
    hidden = max(shape.n_active_experts, 1) * shape.d_ff + shape.d_shared_expert
    if config.is_fused:
        # Each residual addition is part of the next norm: forward reads two and writes two rows,
        # backward reads three and writes one. The first norm has no addition.
        norm = size * (8 * 2 * layers + 8) * d
        qk = size * layers * (5 * heads + 9 * kv)
        gated = size * layers * 8 * hidden
        norm_launches, qk_launches, gated_launches = 6 * launches + 4, 4 * launches, 2 * launches
    else:
        cast = 0 if size == FP32 else size + FP32
        norm = (2 * layers + 1) * (80 + 4 * cast + 6 * size) * d
        per_head = 40 + 4 * cast + (80 + 4 * cast if shape.has_qk_norm else 0)
        qk = layers * (per_head * (heads + kv) + 10 * size * kv)
        gated = layers * (56 + 6 * cast + 10 * size) * hidden
        norm_launches = (2 * launches + 1) * _PLAIN_NORM_LAUNCHES
        qk_launches, gated_launches = _PLAIN_LAUNCHES_OF_BLOCK * launches, 13 * launches
    found = [
        _stream("norms", norm_launches, n * norm),
        _stream("qk_norm_rope", qk_launches, n * qk),
        _stream("swiglu", gated_launches, n * gated),
        # Read and write rows forward; read them and write the whole gradient backward.
        _stream(
            "embedding",
            8 * config.n_passes + _SMALL_LAUNCHES,
            size * (4 * n * d + 4 * config.batched_runs * shape.padded_vocab * d * config.n_passes),
        ),
    ]
    if shape.n_experts:
        k = shape.n_active_experts
        found.append(
            _stream("experts", 24 * launches, n * layers * (size * (7 * k + 3) * d + 40 * k))
        )
    return found


def _stream(name: str, n_launches: float, n_bytes: float) -> Work:
    return Work(part="elementwise", name=name, n_launches=n_launches, n_bytes=n_bytes)


def _optimizer(config: StepConfig) -> list[Work]:
    size, k = config.element_bytes, config.batched_runs
    n_values = k * n_stored(config.shape)
    copies = size + FP32 + (config.n_passes - 1) * (size + 2 * FP32)
    # Norm 4, weight, gradient and moments 28, and the half-precision copy.
    adamw = 32 + (size if size < FP32 else 0)
    launches = 5.0
    if not config.is_fused:
        adamw, launches = _PLAIN_ADAMW_BYTES, float(_PLAIN_ADAMW_LAUNCHES)
    found = [
        Work(
            part="optimizer",
            name="gradient copies",
            n_launches=config.n_passes * (2 + config.shape.n_layers // 12),
            n_bytes=copies * n_values,
        )
    ]
    if config.optimizer == "adamw":
        return [
            *found,
            Work(part="optimizer", name="adamw", n_launches=launches, n_bytes=adamw * n_values),
        ]
    matrices = _muon_matrices(config.shape)
    is_halved = config.kernels == "triton" and config.precision != "fp32"
    n_hidden = k * sum(count * rows * columns for rows, columns, count in matrices)
    n_matrices = sum(count for _, _, count in matrices)
    return [
        *found,
        Work(
            part="optimizer",
            name="adamw",
            n_launches=launches,
            n_bytes=adamw * (n_values - n_hidden) + _MUON_BYTES * n_hidden,
        ),
        Work(
            part="optimizer",
            name="newton_schulz",
            n_launches=NEWTON_SCHULZ_STEPS * 3 * len(matrices)
            + _MUON_LAUNCHES_PER_MATRIX * n_matrices,
            n_bytes=NEWTON_SCHULZ_STEPS * size * 6 * n_hidden,
            flops=k
            * sum(
                count * newton_schulz_flops(rows, columns, halves_symmetric=is_halved)
                for rows, columns, count in matrices
            ),
            precision="fp32" if config.precision == "fp32" else "bf16",
            is_product=True,
        ),
    ]


def _muon_matrices(shape: ModelShape) -> list[tuple[int, int, int]]:
    """Return the matrices that Muon updates: rows, columns, number."""
    d, layers, experts = shape.d_model, shape.n_layers, max(shape.n_experts, 1)
    shared = [
        (shape.d_shared_expert, d, 2 * layers),
        (d, shape.d_shared_expert, layers),
    ]
    return [
        (shape.d_attention, d, layers),
        (shape.d_kv, d, 2 * layers),
        (d, shape.d_attention, layers),
        (shape.d_ff, d, 2 * layers * experts),
        (d, shape.d_ff, layers * experts),
        *(shared if shape.d_shared_expert else ()),
    ]
