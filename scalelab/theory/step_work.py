"""What the roofline counts: a training step (`StepConfig`) and the work of its kernels (`Work`)."""

from __future__ import annotations

from dataclasses import dataclass

from scalelab.errors import UsageError
from scalelab.theory.precision import is_fp8_product
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
FP32 = 4


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
        tokens) or ``auto`` (``fused`` in bf16 up to `FUSED_HEAD_MAX_WIDTH`). Only Triton kernels
        have the choice; a head in fp8 uses ``chunked``.
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
        is_fp8_head = is_fp8_product(self.shape.padded_vocab, self.shape.d_model)
        if self.precision == "fp8" and is_fp8_head:
            return "chunked"
        if self.kernels == "reference":
            return "plain"
        if self.head != "auto":
            return self.head
        is_narrow = self.shape.d_model <= FUSED_HEAD_MAX_WIDTH
        return "fused" if is_narrow and self.precision == "bf16" else "chunked"


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
