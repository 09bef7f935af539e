"""Checks of each kernel at the sizes of a model, for the rule of `scalelab_kernels.accuracy`.

`shape_checks` gives the checks of all kernels for one model (`Sizes`); the methods of `Checks` give
one check each, at sizes of the caller's choice. Numbers of rows and positions are odd by default,
so that the last tile is never full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scalelab_kernels import operations, reference, reference_gram, reference_moe
from scalelab_kernels.accuracy import Check
from scalelab_kernels.operations import Operations

IGNORED_EVERY = 7
"""In checks of the head, every seventh label is masked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Sizes of a model that select kernels and tiles.

    Attributes
    ----------
    d_model, d_ff, n_heads, n_kv_heads, d_head, vocab_size : int
        As in a decoder's shape.
    n_experts, n_active_experts : int
        Of a mixture of experts; 0 is a dense model.
    d_shared_expert : int
        Width of the expert that all tokens pass; 0 for none.
    n_runs : int
        Batched runs K; with several, weights have a leading dimension.
    has_qk_norm : bool
        Whether queries and keys are normalized.
    """

    d_model: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    vocab_size: int
    n_experts: int = 0
    n_active_experts: int = 0
    d_shared_expert: int = 0
    n_runs: int = 1
    has_qk_norm: bool = True


class Checks:
    """Makes checks of one implementation on one device, in one dtype.

    Parameters
    ----------
    device : torch.device or str
        Device of the tensors.
    dtype : torch.dtype
        Of activations and half-precision weights.
    ops : Operations, optional
        The kernels under test; default Triton's.
    """

    def __init__(
        self, device: torch.device | str, dtype: torch.dtype, ops: Operations | None = None
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.ops = ops or operations.get_operations("triton", self.device)

    def rms_norm(self, n_rows: int, d: int, n_runs: int = 1) -> Check:
        """Check the norm of rows with fp32 gains."""

        def make() -> list[Any]:
            return [self._randn(*self._lead(n_runs), n_rows, d), self._gain(n_runs, d)]

        return self._check("rms_norm", (n_rows, d), n_runs, make)

    def add_rms_norm(self, n_rows: int, d: int, n_runs: int = 1) -> Check:
        """Check the norm of a sum."""

        def make() -> list[Any]:
            x, residual = (self._randn(*self._lead(n_runs), n_rows, d) for _ in range(2))
            return [x, residual, self._gain(n_runs, d)]

        return self._check("add_rms_norm", (n_rows, d), n_runs, make)

    def swiglu(self, n_rows: int, d_ff: int) -> Check:
        """Check the gated unit."""
        return self._check("swiglu", (n_rows, d_ff), 1, lambda: [self._randn(n_rows, 2 * d_ff)])

    def qk_norm_rope(
        self,
        n_seqs: int,
        n_positions: int,
        n_heads: int,
        n_kv_heads: int,
        d_head: int,
        n_runs: int = 1,
        *,
        has_qk_norm: bool = True,
    ) -> Check:
        """Check norm and rotation of the heads."""
        width = (n_heads + 2 * n_kv_heads) * d_head

        def bound(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(qkv: Tensor, *gains: Tensor) -> Any:
                wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32
                cos, sin = reference.rope_tables(n_positions, d_head, device=self.device)
                q_gain, k_gain = gains or (None, None)
                tables = cos.to(wide), sin.to(wide)
                return function(qkv, q_gain, k_gain, *tables, n_heads, n_kv_heads)

            return call

        def make() -> list[Any]:
            qkv = self._randn(*self._lead(n_runs), n_seqs, n_positions, width)
            return [qkv, *(self._gain(n_runs, d_head) for _ in range(2 * has_qk_norm))]

        size = (n_seqs, n_positions, n_heads, n_kv_heads, d_head)
        return self._check("qk_norm_rope", size, n_runs, make, bound)

    def attention(
        self,
        n_seqs: int,
        n_positions: int,
        n_heads: int,
        n_kv_heads: int,
        d_head: int,
        *,
        document_share: float = 0.0,
    ) -> Check:
        """Check our causal attention, against SDPA's error; optionally with documents.

        ``document_share`` is the share of positions that begin a document.
        """
        starts = None
        if document_share:
            ids = torch.rand(n_seqs, n_positions, device=self.device).lt(document_share).cumsum(1)
            starts = reference.document_starts(ids)
        attend = operations.get_attention("triton", self.device)

        def plain(path: Any) -> Callable[..., Tensor]:
            return lambda *qkv: reference.causal_attention(*qkv, starts=starts, path=path)

        def make() -> list[Any]:
            heads = (n_heads, n_kv_heads, n_kv_heads)
            return [self._randn(n_seqs, n, n_positions, d_head) for n in heads]

        size = (n_seqs, n_positions, n_heads, n_kv_heads, d_head)
        return Check(
            op="attention" + " with documents" * bool(document_share),
            size=" x ".join(map(str, size)),
            dtype=self.dtype,
            make=make,
            kernel=lambda *qkv: attend(*qkv, starts=starts),
            plain=plain("explicit"),
            own=plain("sdpa"),
        )

    def linear_cross_entropy(
        self, n_rows: int, d: int, vocab_size: int, n_runs: int = 1, *, is_sum: bool = False
    ) -> Check:
        """Check the head with its loss: each token's, or with ``is_sum`` the sum of a step."""

        def make() -> list[Any]:
            lead = self._lead(n_runs)
            targets = torch.randint(0, vocab_size, (*lead, n_rows), device=self.device)
            targets[..., ::IGNORED_EVERY] = reference.IGNORE_INDEX
            head = self._randn(*lead, vocab_size, d, scale=3 / d**0.5)
            return [self._randn(*lead, n_rows, d), head, targets]

        name = "linear_cross_entropy" + "_sum" * is_sum
        return self._check(name, (n_rows, d, vocab_size), n_runs, make)

    def moe(self, n_tokens: int, d: int, n_choices: int, n_experts: int) -> Check:
        """Check moving tokens to experts and back."""

        def make() -> list[Any]:
            experts = torch.rand(n_tokens, n_experts, device=self.device).topk(n_choices, 1).indices
            weights = torch.rand(n_tokens, n_choices, device=self.device)
            return [self._randn(n_tokens, d), weights, experts]

        def both_ways(module: Any) -> Callable[..., Any]:
            def call(x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
                way = reference_moe.route(experts, n_experts)
                moved: Tensor = module.unpermute(module.permute(x, way), weights, way)
                return moved

            return call

        return Check(
            op="permute and unpermute",
            size=f"{n_tokens} x {d}, {n_choices} of {n_experts}",
            dtype=self.dtype,
            make=make,
            kernel=both_ways(self.ops),
            plain=both_ways(reference_moe),
            own=both_ways(reference_moe),
        )

    def grouped_linear(
        self, n_tokens: int, d: int, width: int, n_choices: int, n_experts: int
    ) -> Check:
        """Check the experts' matrix products."""

        def make() -> list[Any]:
            experts = torch.rand(n_tokens, n_experts, device=self.device).topk(n_choices, 1).indices
            weight = self._randn(n_experts, width, d, scale=d**-0.5)
            return [self._randn(n_tokens * n_choices, d), weight, experts]

        def bound(module: Any) -> Callable[..., Any]:
            def call(x: Tensor, weight: Tensor, experts: Tensor) -> Tensor:
                way = reference_moe.route(experts, n_experts)
                product: Tensor = module.grouped_linear(x, weight, way)
                return product

            return call

        return Check(
            op="grouped_linear",
            size=f"{n_tokens} x {d} x {width}, {n_choices} of {n_experts}",
            dtype=self.dtype,
            make=make,
            kernel=bound(self.ops),
            plain=bound(reference_moe),
            own=bound(reference_moe),
        )

    def adamw(self, n_runs: int, n: int, grad_dtype: torch.dtype = torch.float32) -> Check:
        """Check an optimizer step of fp32 weights, with clipping, average and half-precision copy.

        ``n`` is the number of weights of each run.
        """
        shape = (n_runs, n)
        rates = [1e-3 * 3**run for run in range(n_runs)]

        def make() -> list[Any]:
            hyper = reference.hyper_table(
                lr=rates, max_norm=1.0, ema_decay=0.99, n_runs=n_runs, device=self.device
            )
            fp32 = [torch.randn(shape, device=self.device) for _ in range(4)]
            grad = torch.randn(shape, device=self.device).to(grad_dtype)
            param, exp_avg, exp_avg_sq, ema = fp32
            return [param, grad, 0.1 * exp_avg, 0.1 * exp_avg_sq.square(), ema, hyper]

        def bound(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*inputs: Tensor) -> tuple[Tensor, ...]:
                *buffers, hyper = inputs
                param, grad, exp_avg, exp_avg_sq, ema = (t.clone() for t in buffers)
                step = torch.tensor(7, device=self.device)
                copy = torch.empty_like(param, dtype=torch.bfloat16)
                norm = function(
                    param, grad, exp_avg, exp_avg_sq, step, hyper, n_decay=n // 2, copy=copy,
                    ema=ema,
                )  # fmt: skip
                return param, exp_avg, exp_avg_sq, ema, norm

            return call

        return Check(
            op="adamw",
            size=f"{n_runs} x {n}",
            dtype=grad_dtype,
            make=make,
            kernel=bound(self.ops.adamw_step_),
            plain=bound(reference.adamw_step_),
            own=bound(reference.adamw_step_),
            is_differentiated=False,
        )

    def gram(self, n_matrices: int, n_rows: int, n_cols: int) -> Check:
        """Check the symmetric products of Muon's Newton-Schulz steps."""

        def bound(module: Any) -> Callable[..., Any]:
            def call(x: Tensor) -> tuple[Tensor, Tensor]:
                product = module.gram(x)
                return product, module.gram_polynomial(product, -4.8, 2.0)

            return call

        return Check(
            op="gram",
            size=f"{n_matrices} x {n_rows} x {n_cols}",
            dtype=self.dtype,
            make=lambda: [self._randn(n_matrices, n_rows, n_cols, scale=n_cols**-0.5)],
            kernel=bound(self.ops),
            plain=bound(reference_gram),
            own=bound(reference_gram),
            is_differentiated=False,
        )

    def _check(
        self,
        name: str,
        size: tuple[int, ...],
        n_runs: int,
        make: Callable[[], list[Any]],
        bound: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
    ) -> Check:
        plain = bound(getattr(reference, name))
        runs = f"{n_runs} runs of " if n_runs > 1 else ""
        return Check(
            op=name,
            size=runs + " x ".join(map(str, size)),
            dtype=self.dtype,
            make=make,
            kernel=bound(getattr(self.ops, name)),
            plain=plain,
            own=plain,
        )

    def _randn(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, device=self.device) * scale).to(self.dtype)

    def _gain(self, n_runs: int, n: int) -> Tensor:
        """Return gains of a norm, which stay fp32 in a training step."""
        return 1 + torch.randn(*self._lead(n_runs), n, device=self.device)

    @staticmethod
    def _lead(n_runs: int) -> tuple[int, ...]:
        return () if n_runs == 1 else (n_runs,)


def shape_checks(
    sizes: Sizes,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    n_rows: int = 1003,
    n_positions: int = 257,
    n_weights: int = 100_003,
) -> Iterator[Check]:
    """Yield the checks of every kernel that a model with these sizes uses, cheapest first.

    Parameters
    ----------
    sizes : Sizes
    device : torch.device or str
    dtype : torch.dtype
        Of the activations.
    n_rows, n_positions, n_weights : int
        Rows of the activations, positions of a sequence and weights in the optimizer's buffers.
        Use a few of each with interpreted kernels.

    Raises
    ------
    KernelUnavailableError
        If the kernels cannot run on the device.
    """
    checks = Checks(device, dtype)
    n_runs = sizes.n_runs
    heads = (sizes.n_heads, sizes.n_kv_heads, sizes.d_head)
    yield checks.rms_norm(n_rows, sizes.d_model, n_runs)
    yield checks.add_rms_norm(n_rows, sizes.d_model, n_runs)
    for width in filter(None, (sizes.d_ff, sizes.d_shared_expert)):
        yield checks.swiglu(n_rows, width)
    yield checks.qk_norm_rope(3, n_positions, *heads, n_runs, has_qk_norm=sizes.has_qk_norm)
    yield checks.adamw(n_runs, n_weights)
    if dtype != torch.float32:
        # Muon uses torch's products in fp32.
        yield checks.gram(2, sizes.d_model, sizes.d_ff)
    if sizes.n_experts:
        choice = (sizes.n_active_experts, n_runs * sizes.n_experts)
        yield checks.moe(n_rows, sizes.d_model, *choice)
        for d, width in ((sizes.d_model, 2 * sizes.d_ff), (sizes.d_ff, sizes.d_model)):
            yield checks.grouped_linear(n_rows, d, width, *choice)
    yield checks.attention(3, n_positions, *heads)
    for is_sum in (False, True):
        yield checks.linear_cross_entropy(
            n_rows, sizes.d_model, sizes.vocab_size, n_runs, is_sum=is_sum
        )
