"""Launch settings of the kernels, by architecture and shape class, without tuning at run time.

The kernels are written for ``hopper`` and ``ampere``; other devices use ``generic``.
``interpreter`` has small blocks, so that small tests cross block borders. Settings change
the speed and the order of sums (hence bits), but not the formula. A kind of device always uses the
same settings.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalelab_kernels.runtime import power_of_two


@dataclass(frozen=True, kw_only=True, slots=True)
class RowConfig:
    """Launch settings of a kernel that reduces along rows.

    Attributes
    ----------
    rows, cols : int
        Tile of one program step; ``cols`` covers a whole row.
    programs : int
        Programs of the backward pass for each batched run; each sums the weight gradient of its
        rows.
    num_warps : int
        Warps in a program.
    """

    rows: int
    cols: int
    programs: int
    num_warps: int


# Two programs for each multiprocessor (132 on an H200, 108 on an A100).
_PROGRAMS = {"hopper": 264, "ampere": 216, "generic": 128, "interpreter": 3}


def row_config(architecture: str, n_cols: int) -> RowConfig:
    """Return the settings of RMSNorm for rows of ``n_cols``.

    A tile has about 2048 elements (in bf16 with 4 warps, a thread loads 16 bytes at a time), so
    narrow rows share a program. Wide rows use one warp for each 512 elements.
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
    """Launch settings of a kernel without reductions.

    Attributes
    ----------
    rows, cols : int
        Tile of one program.
    num_warps : int
        Warps in a program.
    """

    rows: int
    cols: int
    num_warps: int


def tile_config(architecture: str, n_cols: int) -> TileConfig:
    """Return the tile of an elementwise kernel over rows of ``n_cols``.

    Selects the widest tile that wastes at most 7 % of a row: 5504 columns are 43 blocks of 128, but
    5.4 blocks of 1024. A tile has 2048 elements, 16 for each thread, so several 16-byte loads are
    in flight before the first use.
    """
    if architecture == "interpreter":
        return TileConfig(rows=8, cols=32, num_warps=4)
    widths = (1024, 512, 256, 128)
    fitting = (w for w in widths if -(-n_cols // w) * w <= 1.07 * n_cols)
    cols = next(fitting, min(128, power_of_two(n_cols)))
    return TileConfig(rows=max(1, 2048 // cols), cols=cols, num_warps=4)


def head_config(architecture: str, half: int) -> RowConfig:
    """Return the settings of QK-norm with RoPE for heads of ``2 * half``; a row is one head.

    Both halves of a tile are in registers at the same time, so a half has 1024 elements.
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
    """Launch settings of linear + cross-entropy with recomputed tiles.

    Attributes
    ----------
    tokens, vocab, cols : int
        Tile of logits, and the width of the activations.
    programs : int
        Number of programs to reach by splitting the other axis into shares.
    num_warps, num_stages : int
        Warps in a program; depth of the software pipeline over blocks.
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

    A pipeline stage holds a block of weights with ``vocab * d`` elements. Together with the
    activations, a tile uses less than 100 KB of shared memory in bf16 and fits all devices since
    Ampere.
    """
    cols = max(16, power_of_two(d))
    programs = _PROGRAMS[architecture]
    if architecture == "interpreter":
        vocab = 16 if n_vocab < 512 else 4096
        return CrossEntropyConfig(
            tokens=8, vocab=vocab, cols=cols, programs=6, num_warps=4, num_stages=1
        )
    if element_size > 2:
        # fp32 products do not use the matrix units; larger tiles would spill registers.
        tokens, vocab = (32, 32) if cols <= 64 else (16, 16)
        return CrossEntropyConfig(
            tokens=tokens, vocab=vocab, cols=cols, programs=programs, num_warps=4, num_stages=1
        )
    block = 64 if cols > 128 else 128
    return CrossEntropyConfig(
        tokens=block, vocab=block, cols=cols, programs=programs, num_warps=8, num_stages=2
    )


def chunk_tokens(architecture: str) -> int:
    """Return the number of tokens (of all batched runs) whose logits are in memory at a time.

    With 4096 rows, a matmul with d >= 512 is compute-bound. At a vocabulary of 50,304 in bf16 their
    logits take 412 MB, 1/16 of those of 65,536 tokens.
    """
    return 6 if architecture == "interpreter" else 4096


def logits_config(architecture: str) -> TileConfig:
    """Return the settings of the kernel whose programs each read a row of logits block by block."""
    if architecture == "interpreter":
        return TileConfig(rows=1, cols=4096, num_warps=4)
    return TileConfig(rows=1, cols=4096, num_warps=8)


@dataclass(frozen=True, kw_only=True, slots=True)
class FlatConfig:
    """Launch settings of a kernel over a flat buffer.

    Attributes
    ----------
    block : int
        Elements of a program step.
    programs : int
        Programs of a reduction over a run's buffer.
    num_warps : int
        Warps in a program.
    """

    block: int
    programs: int
    num_warps: int


def flat_config(architecture: str) -> FlatConfig:
    """Return the settings of the optimizer step.

    A thread has 8 fp32 elements: two 16-byte loads of each of four buffers before the first use.
    """
    if architecture == "interpreter":
        return FlatConfig(block=256, programs=3, num_warps=4)
    return FlatConfig(block=1024, programs=2 * _PROGRAMS[architecture], num_warps=4)


@dataclass(frozen=True, kw_only=True, slots=True)
class WalkConfig:
    """Launch settings of an attention kernel that loops over queries or keys.

    Attributes
    ----------
    rows, cols : int
        Block of a program, and block of one loop step; ``rows`` is a multiple of ``cols``.
    width : int
        Head size padded to a power of two.
    num_warps, num_stages : int
        Warps in a program; depth of the software pipeline over the loop.
    """

    rows: int
    cols: int
    width: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionConfig:
    """Settings of the forward kernel, and of the backward kernels by key and by query block."""

    forward: WalkConfig
    key: WalkConfig
    query: WalkConfig


def attention_config(architecture: str, head_dim: int, element_size: int) -> AttentionConfig:
    """Return the settings of causal attention.

    A pipeline stage holds two blocks of ``cols * width`` elements in shared memory. Blocks of fp32
    are small for the reason in `cross_entropy_config`.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class GramConfig:
    """Launch settings of the symmetric product.

    Attributes
    ----------
    rows, cols : int
        Side of a square tile of the result, and block of one step along the summed axis.
    num_warps, num_stages : int
        Warps in a program; depth of the software pipeline.
    """

    rows: int
    cols: int
    num_warps: int
    num_stages: int


def gram_config(architecture: str, n_rows: int, element_size: int) -> GramConfig:
    """Return the settings of the symmetric product of matrices with ``n_rows`` rows.

    A pipeline stage holds two blocks of ``rows * cols`` elements: 32 KiB in bf16 for the large
    tile. Below 512 rows, small tiles waste less on the diagonal and give more programs.
    """
    if architecture == "interpreter" or element_size > 2:
        # Blocks of fp32 are small for the reason in `cross_entropy_config`.
        return GramConfig(rows=32, cols=32, num_warps=4, num_stages=1)
    if n_rows < 512:
        return GramConfig(rows=64, cols=64, num_warps=4, num_stages=3)
    stages = {"hopper": 4, "ampere": 3}.get(architecture, 2)
    return GramConfig(rows=128, cols=64, num_warps=8, num_stages=stages)
