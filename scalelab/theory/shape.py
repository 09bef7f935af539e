"""Shape of a decoder-only transformer, shared by counts, plan and trainer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scalelab.errors import SpecError, UsageError

VOCAB_MULTIPLE = 64
FF_MULTIPLE = 8
DEFAULT_FF_RATIO = 8 / 3
"""Hidden width over ``d_model``: a SwiGLU layer of this width has the parameters of an ordinary one
of 4 x ``d_model``."""
BASE_WIDTH = 64
BASE_HEAD = 16
BASE_DEPTH = 2
"""Width, head size and depth at which the parametrizations ``mup`` and ``completep`` equal
``standard``: a learning rate that was tuned at this shape applies to all shapes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Shape of a pre-norm decoder with RMSNorm, RoPE and SwiGLU.

    Attributes
    ----------
    n_layers : int
        Blocks.
    d_model : int
        Width of the residual stream.
    n_heads : int
        Query heads.
    d_head : int
        Size of a head, even (RoPE rotates pairs).
    d_ff : int
        Width of the SwiGLU hidden layer (each of its two input matrices), or of one routed expert.
    vocab_size : int
        Tokens that occur. The head is padded to a multiple of 64 in memory; counts use this number.
    n_kv_heads : int
        Key and value heads; divides ``n_heads``. 0 means as many as ``n_heads``.
    is_tied : bool
        Whether the output head is the embedding matrix.
    has_qk_norm : bool
        Whether queries and keys are RMS-normalised per head.
    n_experts : int
        Routed SwiGLU experts in each block; 0 is a dense model.
    n_active_experts : int
        Experts that each token passes through; 0 in a dense model.
    d_shared_expert : int
        Width of a SwiGLU expert that every token passes through beside the routed ones; 0 for none.

    Raises
    ------
    SpecError
        If the numbers do not describe a valid model.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_ff: int
    vocab_size: int
    n_kv_heads: int = 0
    is_tied: bool = False
    has_qk_norm: bool = True
    n_experts: int = 0
    n_active_experts: int = 0
    d_shared_expert: int = 0

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_model", "n_heads", "d_head", "d_ff", "vocab_size"):
            if getattr(self, name) < 1:
                raise SpecError(
                    f"{name} = {getattr(self, name)}",
                    "a whole number from 1",
                    f"Use {name} = 1 or more.",
                )
        if self.d_head % 2:
            raise SpecError(
                f"d_head = {self.d_head}",
                "an even number",
                "Change d_model or n_heads so that d_model / n_heads is even, for example 64d-2h.",
            )
        if self.n_heads % self.kv_heads:
            raise SpecError(
                f"n_kv_heads = {self.n_kv_heads} with n_heads = {self.n_heads}",
                "a divisor of n_heads",
                f"Use n_kv_heads = {self.n_heads}.",
            )
        if not 0 <= self.n_active_experts <= self.n_experts or (
            self.n_experts > 0 and self.n_active_experts == 0
        ):
            raise SpecError(
                f"{self.n_active_experts} active of {self.n_experts} experts",
                "1 to n_experts active experts, or 0 of both",
                "Set n_active_experts between 1 and n_experts.",
            )
        if self.d_shared_expert < 0 or (self.d_shared_expert and not self.n_experts):
            raise SpecError(
                f"d_shared_expert = {self.d_shared_expert} with {self.n_experts} experts",
                "a width from 1 in a mixture of experts, or 0",
                "Set n_experts too, or use d_shared_expert = 0.",
            )

    @property
    def kv_heads(self) -> int:
        """Key and value heads, with the default resolved."""
        return self.n_kv_heads or self.n_heads

    @property
    def d_attention(self) -> int:
        """Width of all query heads together, ``n_heads * d_head``."""
        return self.n_heads * self.d_head

    @property
    def d_kv(self) -> int:
        """Width of all key heads together."""
        return self.kv_heads * self.d_head

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding and head in memory: ``vocab_size`` up to a multiple of 64."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def experts(self) -> tuple[int, ...]:
        """Numbers and widths of the experts; empty for a dense model."""
        if not self.n_experts:
            return ()
        return (self.n_experts, self.n_active_experts, self.d_ff, self.d_shared_expert)

    @property
    def granularity(self) -> float:
        """Width of a dense layer, ``8/3 d_model``, over that of a routed expert; 1 if dense.

        Krajewski et al. 2024, arXiv:2402.07871, section 3.1, for SwiGLU layers.
        """
        return DEFAULT_FF_RATIO * self.d_model / self.d_ff if self.n_experts else 1.0

    def tensor_part(self, degree: int, index: int) -> ModelShape:
        """Return the shape of one of ``degree`` parts of every block.

        A part has its share of the key and value heads, with their query heads, and of the hidden
        units of the feed-forward layer (of every expert, shared or routed); if they do not divide
        evenly, the first parts have one more. Width, depth and vocabulary are the whole model's.

        Raises
        ------
        UsageError
            If there are more parts than heads or hidden units.
        """
        sizes = {"n_kv_heads": self.kv_heads, "d_ff": self.d_ff}
        if self.d_shared_expert:
            sizes["d_shared_expert"] = self.d_shared_expert
        for name, size in sizes.items():
            if size < degree:
                raise UsageError(
                    f"tensor_parallel = {degree} for a model with {name} = {size}",
                    f"1 to {size}",
                    f"Use tensor_parallel = {size} or less.",
                )
        kv_heads = _share(self.kv_heads, degree, index)
        return replace(
            self,
            n_heads=self.n_heads // self.kv_heads * kv_heads,
            n_kv_heads=kv_heads if self.n_kv_heads else 0,
            d_ff=_share(self.d_ff, degree, index),
            d_shared_expert=_share(self.d_shared_expert, degree, index),
        )

    def label(self) -> str:
        """Return a short name such as ``4L-64d-2h``, or ``4L-64d-8h-2kv-tied``."""
        shared = f"-{self.kv_heads}kv" if self.kv_heads != self.n_heads else ""
        tied = "-tied" if self.is_tied else ""
        experts = f"-{self.n_active_experts}of{self.n_experts}e" if self.n_experts else ""
        experts += "+s" if self.d_shared_expert else ""
        return f"{self.n_layers}L-{self.d_model}d-{self.n_heads}h{shared}{experts}{tied}"


def _share(size: int, degree: int, index: int) -> int:
    return size // degree + (index < size % degree)
