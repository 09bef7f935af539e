"""Bytes, FLOPs and launches of one training step on a GPU, kernel group by kernel group.

`step_work` counts what the trainer's code executes for a `StepConfig`. `scalelab.theory.roofline`
turns the counts into seconds. FLOPs of the blocks' products agree with
`scalelab.theory.accounting`; attention and head count what is executed, recomputation included.
Bytes count each tensor that a kernel reads or writes in device memory once; caches are ignored.

The counts assume one device, no recomputed blocks and no weight average.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from scalelab.errors import UsageError
from scalelab.theory.accounting import FLOPS_PER_PARAM_FORWARD, count_params
from scalelab.theory.hardware import CALIBRATION
from scalelab.theory.shape import ModelShape

PARTS = ("matmul", "attention", "elementwise", "head", "optimizer", "gaps")
"""Parts of a step: products of the blocks, attention, norms and other elementwise kernels, head and
loss, optimizer and gradient copies, and the time in which the device waits for a kernel."""
CHOICES = {
    "precision": ("fp32", "bf16", "fp8"),
    "step": ("eager", "compiled", "graph"),
    "kernels": ("reference", "triton"),
    "attention": ("explicit", "sdpa", "cudnn", "flash", "triton"),
    "head": ("auto", "fused", "chunked"),
    "optimizer": ("adamw", "muon"),
}
FUSED_HEAD_MAX_WIDTH = 128
"""Widest model whose head recomputes tiles of logits (``head = auto``).

`scalelab.theory.roofline.head_seconds` gives the times of both routes on an H100 and an H200: the
chunked route is faster for all wider models.
"""
CHUNK_TOKENS = 4096
"""Tokens, of all batched runs, whose logits the chunked head keeps in memory."""
FP32 = 4
NEWTON_SCHULZ_STEPS = 5

# Launches of torch's own operations, counted in `scalelab_kernels.reference`.
_PLAIN_NORM_LAUNCHES = 19
_PLAIN_LAUNCHES_OF_BLOCK = 80
_PLAIN_ADAMW_LAUNCHES = 22
_PLAIN_ADAMW_BYTES = 136
_MUON_BYTES = 90
_MUON_LAUNCHES_PER_MATRIX = 2
_SMALL_LAUNCHES = 14
"""Loss, learning rates, readings and the embedding's gradient."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepConfig:
    """What is trained in one step, and how it is executed.

    Attributes
    ----------
    shape : ModelShape
        Shape of the model.
    seq_len, batch_seqs : int
        Tokens in a sequence, and sequences in the batch of one run.
    precision, step, kernels, attention, optimizer : str
        As in `RunSpec` and `ExecutionSpec`; `CHOICES` has the values.
    head : str
        ``fused`` (recomputed tiles of logits), ``chunked`` (products of cuBLAS over chunks of
        tokens) or ``auto`` (by `FUSED_HEAD_MAX_WIDTH`). Only Triton kernels have the choice.
    batched_runs : int
        Runs that train in the same step, K.
    micro_batch_seqs : int
        Sequences of one forward pass; 0 is the whole batch.

    Raises
    ------
    UsageError
        If a value is not one of `CHOICES`, or a number is too small.
    """

    shape: ModelShape
    seq_len: int
    batch_seqs: int
    precision: str = "bf16"
    step: str = "graph"
    kernels: str = "triton"
    attention: str = "flash"
    head: str = "auto"
    optimizer: str = "adamw"
    batched_runs: int = 1
    micro_batch_seqs: int = 0

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"{name} = {getattr(self, name)!r}",
                    " or ".join(allowed),
                    f"Use for example {name} = {allowed[-1]}.",
                )
        for name, least in (
            ("seq_len", 1),
            ("batch_seqs", 1),
            ("batched_runs", 1),
            ("micro_batch_seqs", 0),
        ):
            if getattr(self, name) < least:
                raise UsageError(
                    f"{name} = {getattr(self, name)}",
                    f"a whole number from {least}",
                    f"Use for example {name} = {max(least, 1)}.",
                )

    @property
    def n_tokens(self) -> int:
        """Tokens of a step, of all batched runs together."""
        return self.batched_runs * self.batch_seqs * self.seq_len

    @property
    def n_passes(self) -> int:
        """Forward passes of a step."""
        return -(-self.batch_seqs // (self.micro_batch_seqs or self.batch_seqs))

    @property
    def element_bytes(self) -> int:
        """Bytes of an activation."""
        return FP32 if self.precision == "fp32" else 2

    @property
    def is_fused(self) -> bool:
        """Whether elementwise operations are fused, by our kernels or by the compiler."""
        return self.kernels == "triton" or self.step == "compiled"

    @property
    def head_route(self) -> str:
        """``fused``, ``chunked``, or ``plain`` (all logits in memory)."""
        if self.kernels == "reference":
            return "plain"
        if self.head != "auto":
            return self.head
        return "fused" if self.shape.d_model <= FUSED_HEAD_MAX_WIDTH else "chunked"


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Kernels of one kind, all launches of a step together.

    Attributes
    ----------
    part : str
        One of `PARTS`.
    name : str
        What the kernels compute.
    n_launches : int
        Kernels.
    n_bytes : float
        Bytes read and written in device memory.
    flops : float
        FLOPs of the matrix units.
    precision : str
        Precision of those FLOPs.
    rate_share : float
        Share of the sustained matmul rate that these FLOPs reach.
    vector_flops : float
        fp32 FLOPs outside the matrix units.
    n_tiles : float
        Output tiles of one launch, which run at the same time; infinite if they fill the device.
    is_product : bool
        Whether part of the shorter of compute and memory time is not hidden (matrix products).
    """

    part: str
    name: str
    n_launches: float
    n_bytes: float
    flops: float = 0.0
    precision: str = "bf16"
    rate_share: float = 1.0
    vector_flops: float = 0.0
    n_tiles: float = float("inf")
    is_product: bool = False


def step_work(config: StepConfig) -> tuple[Work, ...]:
    """Return the work of one step."""
    return (
        *_products(config),
        _attention(config),
        *_elementwise(config),
        *head_work(config),
        *_optimizer(config),
    )


def n_stored(shape: ModelShape) -> int:
    """Return the parameters in memory, padding of the vocabulary included."""
    padding = (shape.padded_vocab - shape.vocab_size) * shape.d_model
    return count_params(shape).total + padding * (1 if shape.is_tied else 2)


def linears(shape: ModelShape) -> tuple[tuple[str, int, int, int, int], ...]:
    """Return the products of a block: name, inputs, outputs, rows for each token, matrices."""
    experts, active = max(shape.n_experts, 1), max(shape.n_active_experts, 1)
    router = (("router", shape.d_model, shape.n_experts, 1, 1),) if shape.n_experts else ()
    return (
        ("qkv", shape.d_model, shape.d_attention + 2 * shape.d_kv, 1, 1),
        ("out", shape.d_attention, shape.d_model, 1, 1),
        *router,
        ("gate_up", shape.d_model, 2 * shape.d_ff, active, experts),
        ("down", shape.d_ff, shape.d_model, active, experts),
    )


def _tiles(rows: float, columns: float, inner: float = 0.0) -> float:
    """Return the output tiles of a product; long sums are split among tiles."""
    side, split = CALIBRATION["tile_rows"].value, CALIBRATION["split_inner"].value
    return float(-(-rows // side) * -(-columns // side) * max(1.0, inner // split))


def _products(config: StepConfig) -> list[Work]:
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
            launches=launches,
            n_layers=config.shape.n_layers,
            precision="bf16" if (config.precision, name) == ("fp8", "router") else config.precision,
        )
    return found


def three_products(
    config: StepConfig,
    part: str,
    name: str,
    rows: float,
    n_in: int,
    n_out: int,
    *,
    n_matrices: int,
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
    launches : float
        Launches of each product in a step.
    n_layers : int
        Layers with these products.
    precision : str
        Precision of the products.
    """
    size = config.element_bytes
    weights = n_matrices * n_in * n_out * launches / n_layers
    operands = {
        "forward": (rows * n_in, weights, rows * n_out),
        "input gradient": (rows * n_out, weights, rows * n_in),
        "weight gradient": (rows * n_in, rows * n_out, weights),
    }
    # Rows of one product: the step's rows over its matrices and its passes or chunks.
    each = rows * n_layers / launches / n_matrices
    sides = {
        "forward": (each, n_out, n_in),
        "input gradient": (each, n_in, n_out),
        "weight gradient": (n_out, n_in, each),
    }
    found = []
    for kind, (a, b, result) in operands.items():
        n_bytes = size * (a + b + result)
        if precision == "fp8":
            # Both operands are read, rounded and written (a byte each), and read again.
            n_bytes = (size + 2) * (a + b) + size * result
        found.append(
            Work(
                part=part,
                name=f"{name} {kind}",
                n_launches=launches * (3 if precision == "fp8" else 1),
                n_bytes=n_layers * n_bytes,
                flops=n_layers * FLOPS_PER_PARAM_FORWARD * rows * n_in * n_out,
                precision=precision,
                n_tiles=n_matrices * _tiles(*sides[kind]),
                is_product=True,
            )
        )
    return found


def attention_rate_share(path: str, d_head: int, seq_len: int) -> float:
    """Return the share of the sustained matmul rate of causal attention, forward and backward.

    FLOPs count 7 T^2 D for each head: the causal half of 4 T^2 D forward and 10 T^2 D backward.
    Smaller heads than 64 are padded; between 64 and 128 the share is interpolated.

    Parameters
    ----------
    path : str
        ``cudnn``, ``flash``, ``triton`` or ``sdpa``, which is taken for ``flash``.
    d_head, seq_len : int
        Head size and sequence length.
    """
    path = "flash" if path == "sdpa" else path
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
    if config.attention == "explicit":
        # Forward 2 products and backward 4 of the whole square, whose scores and weights are
        # written by one operation and read by the next: 4 passes forward, 8 backward.
        square = n * t * shape.n_heads * shape.n_layers
        return Work(
            part="attention",
            name="explicit",
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
        * _tiles(t, 1),
    )


def _elementwise(config: StepConfig) -> list[Work]:
    shape, size, n = config.shape, config.element_bytes, config.n_tokens
    d, layers = shape.d_model, shape.n_layers
    launches = layers * config.n_passes
    heads, kv = shape.d_attention, shape.d_kv
    hidden = max(shape.n_active_experts, 1) * shape.d_ff
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


def head_work(config: StepConfig) -> list[Work]:
    """Return the work of the head and the loss, forward and backward."""
    shape, size, n = config.shape, config.element_bytes, config.n_tokens
    d, v, k = shape.d_model, shape.vocab_size, config.batched_runs
    route = config.head_route
    if route == "fused":
        width = max(16, 1 << (d - 1).bit_length())
        name = "fused_head_share" if width <= 128 else "fused_head_wide_share"
        return [
            Work(
                part="head",
                name="fused",
                n_launches=7 * config.n_passes,
                # The logits stay on the chip.
                n_bytes=3 * size * (n * d + k * v * d * config.n_passes),
                flops=10.0 * n * v * width,
                precision="fp32" if config.precision == "fp32" else "bf16",
                rate_share=CALIBRATION[name].value,
                vector_flops=2 * 3 * CALIBRATION["fused_head_vector_ops"].value * n * v,
            )
        ]
    pass_tokens = -(-config.batch_seqs // config.n_passes) * config.seq_len
    rows = max(1, min(CHUNK_TOKENS // k, pass_tokens)) if route == "chunked" else pass_tokens
    chunks = -(-pass_tokens // rows) * config.n_passes
    products = three_products(
        config, "head", f"{route} head", n, d, v, n_matrices=k, launches=chunks,
        precision=config.precision,
    )  # fmt: skip
    if route == "chunked":
        # Each chunk reads and writes the fp32 sum of the weight's gradient. The loss kernel reads
        # the logits and writes their gradients; two passes scale the gradients at the end.
        sums = (2 * FP32 - size) * k * v * d * chunks
        products[2] = replace(products[2], n_bytes=products[2].n_bytes + sums)
        loss = size * (2 * n * v + 4 * n * d) + (size + FP32) * k * v * d * config.n_passes
        launches = 2 * chunks + 2 * config.n_passes
    else:
        # With the compiler, two reads and a write of the logits; without it, each operation of the
        # loss writes its own result in fp32 (38 V bytes a token with the products').
        loss = n * v * (3 * size if config.step == "compiled" else (32 if size == 2 else 28))
        launches = 10 * config.n_passes
    return [*products, Work(part="head", name="loss", n_launches=launches, n_bytes=loss)]


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
            flops=k * sum(count * newton_schulz_flops(r, c) for r, c, count in matrices),
            precision="fp32" if config.precision == "fp32" else "bf16",
            is_product=True,
        ),
    ]


def _muon_matrices(shape: ModelShape) -> list[tuple[int, int, int]]:
    """Return the matrices that Muon updates: rows, columns, number."""
    d, layers, experts = shape.d_model, shape.n_layers, max(shape.n_experts, 1)
    return [
        (shape.d_attention, d, layers),
        (shape.d_kv, d, 2 * layers),
        (d, shape.d_attention, layers),
        (shape.d_ff, d, 2 * layers * experts),
        (d, shape.d_ff, layers * experts),
    ]


def newton_schulz_flops(n_rows: int, n_columns: int) -> float:
    """Return the FLOPs of Muon's orthogonalization: per step X X^T, its square, and a product."""
    small, large = sorted((n_rows, n_columns))
    return NEWTON_SCHULZ_STEPS * (4.0 * small**2 * large + 2.0 * small**3)
