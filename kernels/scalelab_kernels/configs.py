"""Launch settings of every kernel, by architecture and shape class; nothing is tuned at run time.

``hopper`` and ``ampere`` are what the kernels are written for; ``generic`` is what every other
device gets; ``interpreter`` has small blocks, so that small tests still cross block borders. A
setting changes speed and the order of sums, hence bits, never what is computed: the same device
kind always takes the same one.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalelab_kernels.runtime import power_of_two


@dataclass(frozen=True, kw_only=True, slots=True)
class RowConfig:
    """How a kernel that reduces along rows is launched.

    Attributes
    ----------
    rows, cols : int
        Tile of one program step; ``cols`` covers a whole row.
    programs : int
        Programs of the backward pass a packed run; each sums the weight gradient of its rows.
    num_warps : int
        Warps a program.
    """

    rows: int
    cols: int
    programs: int
    num_warps: int


# Programs that fill a device twice: two a multiprocessor (132 on an H200, 108 on an A100).
_PROGRAMS = {"hopper": 264, "ampere": 216, "generic": 128, "interpreter": 3}


def row_config(architecture: str, n_cols: int) -> RowConfig:
    """Return the settings of RMSNorm for rows of ``n_cols``.

    A tile is about 2048 elements (16 bytes a thread and load in bf16 at 4 warps), so narrow rows
    share a program; wide rows take one warp for each 512 elements.
    """
    cols = power_of_two(n_cols)
    tile = 256 if architecture == "interpreter" else 2048
    return RowConfig(
        rows=max(1, tile // cols),
        cols=cols,
        programs=_PROGRAMS[architecture],
        num_warps=min(16, max(4, cols // 512)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TileConfig:
    """How a kernel without reductions is launched.

    Attributes
    ----------
    rows, cols : int
        Tile of one program.
    num_warps : int
        Warps a program.
    """

    rows: int
    cols: int
    num_warps: int


def tile_config(architecture: str, n_cols: int) -> TileConfig:
    """Return the tile of an elementwise kernel over rows of ``n_cols``.

    The widest tile that wastes little of the last block of a row: 5504 columns are 43 blocks of 128
    but five and a third of 1024. A tile is 2048 elements, 16 a thread, so that several 16-byte
    loads are in flight before the first use.
    """
    if architecture == "interpreter":
        return TileConfig(rows=8, cols=32, num_warps=4)
    widths = (1024, 512, 256, 128)
    fitting = (w for w in widths if -(-n_cols // w) * w <= 1.07 * n_cols)
    cols = next(fitting, min(128, power_of_two(n_cols)))
    return TileConfig(rows=max(1, 2048 // cols), cols=cols, num_warps=4)


def head_config(architecture: str, half: int) -> RowConfig:
    """Return the settings of QK-norm with RoPE for heads of ``2 * half``; a row is one head.

    Both halves of a tile are in registers at once, so a half is 1024 elements.
    """
    cols = power_of_two(half)
    tile = 128 if architecture == "interpreter" else 1024
    return RowConfig(
        rows=max(1, tile // cols),
        cols=cols,
        programs=2 * _PROGRAMS[architecture],
        num_warps=4,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossEntropyConfig:
    """How linear + cross-entropy by recomputed tiles is launched.

    Attributes
    ----------
    tokens, vocab, cols : int
        Tile of logits, and the width of the activations.
    programs : int
        Programs that the shares of the split axis should reach.
    num_warps, num_stages : int
        Warps a program; depth of the software pipeline over blocks.
    """

    tokens: int
    vocab: int
    cols: int
    programs: int
    num_warps: int
    num_stages: int


def cross_entropy_config(
    architecture: str, d: int, n_vocab: int, element_size: int
) -> CrossEntropyConfig:
    """Return the settings of linear + cross-entropy by tiles, for ``d`` up to 256.

    One block of weights is ``vocab * d`` elements a pipeline stage; with the activations beside it
    a tile stays below 100 KB of shared memory in bf16, so that it fits every device since Ampere.
    """
    cols = max(16, power_of_two(d))
    programs = _PROGRAMS[architecture]
    if architecture == "interpreter":
        vocab = 16 if n_vocab < 512 else 4096
        return CrossEntropyConfig(
            tokens=8, vocab=vocab, cols=cols, programs=6, num_warps=4, num_stages=1
        )
    if element_size > 2:
        # fp32 as fp32 runs outside the matrix units, with operands in registers: more would spill.
        tokens, vocab = (32, 32) if cols <= 64 else (16, 16)
        return CrossEntropyConfig(
            tokens=tokens, vocab=vocab, cols=cols, programs=programs, num_warps=4, num_stages=1
        )
    block = 64 if cols > 128 else 128
    return CrossEntropyConfig(
        tokens=block, vocab=block, cols=cols, programs=programs, num_warps=8, num_stages=2
    )


def chunk_tokens(architecture: str) -> int:
    """Return how many tokens (of all packed runs together) have logits at a time.

    4096 rows keep a matmul with d >= 512 compute-bound; their logits at a vocabulary of 50,304 in
    bf16 take 412 MB, a sixteenth of those of 65,536 tokens.
    """
    return 6 if architecture == "interpreter" else 4096


def logits_config(architecture: str) -> TileConfig:
    """Return the settings of the kernel that reads one row of logits a program, block by block."""
    if architecture == "interpreter":
        return TileConfig(rows=1, cols=4096, num_warps=4)
    return TileConfig(rows=1, cols=4096, num_warps=8)


@dataclass(frozen=True, kw_only=True, slots=True)
class FlatConfig:
    """How a kernel over a flat buffer is launched.

    Attributes
    ----------
    block : int
        Elements of a program step.
    programs : int
        Programs of a reduction over a run's buffer.
    num_warps : int
        Warps a program.
    """

    block: int
    programs: int
    num_warps: int


def flat_config(architecture: str) -> FlatConfig:
    """Return the settings of the optimizer step.

    Eight fp32 elements a thread: two 16-byte loads of each of four buffers before the first use.
    """
    if architecture == "interpreter":
        return FlatConfig(block=256, programs=3, num_warps=4)
    return FlatConfig(block=1024, programs=2 * _PROGRAMS[architecture], num_warps=4)


@dataclass(frozen=True, kw_only=True, slots=True)
class WalkConfig:
    """How a kernel that walks over the other axis of attention is launched.

    Attributes
    ----------
    rows, cols : int
        Block that a program owns, and block of a step of the walk; ``rows`` is a multiple.
    width : int
        Head size padded to a power of two.
    num_warps, num_stages : int
        Warps a program; depth of the software pipeline over the walk.
    """

    rows: int
    cols: int
    width: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionConfig:
    """Settings of the three walks: queries forward; keys and queries backward."""

    forward: WalkConfig
    key: WalkConfig
    query: WalkConfig


def attention_config(architecture: str, head_dim: int, element_size: int) -> AttentionConfig:
    """Return the settings of causal attention.

    A step of the walk holds two blocks of ``cols * width`` elements in shared memory a stage.
    Blocks of fp32 are small for the reason given in `cross_entropy_config`.
    """
    width = max(16, power_of_two(head_dim))
    if architecture == "interpreter":
        small = WalkConfig(rows=16, cols=8, width=width, num_warps=4, num_stages=1)
        return AttentionConfig(forward=small, key=small, query=small)
    if element_size > 2:
        rows, cols = (32, 32) if width <= 32 else (16, 16)
        walk = WalkConfig(rows=rows, cols=cols, width=width, num_warps=4, num_stages=1)
        return AttentionConfig(forward=walk, key=walk, query=walk)
    is_wide = width > 64
    is_hopper = architecture == "hopper"
    return AttentionConfig(
        forward=WalkConfig(
            rows=128,
            cols=64,
            width=width,
            num_warps=4 if is_hopper and not is_wide else 8,
            num_stages=3 if is_hopper else 2,
        ),
        key=WalkConfig(
            rows=64 if is_wide else 128,
            cols=32 if is_wide else 64,
            width=width,
            num_warps=8,
            num_stages=2,
        ),
        query=WalkConfig(
            rows=128, cols=32 if is_wide else 64, width=width, num_warps=8, num_stages=2
        ),
    )
