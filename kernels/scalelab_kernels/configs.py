"""Launch settings of the kernels, by architecture and shape class, without tuning at run time.

`scalelab_kernels.runtime.ARCHITECTURES` names the architecture of a device. ``interpreter`` has
small blocks, so that small tests cross block borders. Settings change the speed and the order of
sums (hence bits), but not the formula. A kind of device always uses the same settings.

The settings were chosen by ahead-of-time compilation (``tests/benchmarks/kernels_compile.py``):
nothing spills, loads are 16 bytes wide, and products on Hopper have N >= 64 where the shape allows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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


# Multiprocessors of an H200, an A100, an RTX 4090 and a B200.
_MULTIPROCESSORS = {"hopper": 132, "ampere": 108, "ada": 128, "blackwell": 148}


def _programs(architecture: str, num_warps: int) -> int:
    """Return the programs of a reduction: 24 warps for each multiprocessor, at least 2 programs.

    With 80 registers a thread, as many warps run at the same time. Each has several 16-byte loads
    in flight, together more than the 20 KB for each multiprocessor that keep the memory busy.
    """
    if architecture == "interpreter":
        return 3
    return _MULTIPROCESSORS[architecture] * max(2, 24 // num_warps)


def row_config(architecture: str, n_cols: int) -> RowConfig:
    """Return the settings of RMSNorm for rows of ``n_cols``.

    A tile has about 2048 elements (in bf16 with 4 warps, a thread loads 16 bytes at a time), so
    narrow rows share a program. Wide rows use one warp for each 256 elements.
    """
    cols = power_of_two(n_cols)
    tile = 256 if architecture == "interpreter" else 2048
    num_warps = min(32, max(4, cols // 256))
    return RowConfig(
        rows=max(1, tile // cols),
        cols=cols,
        programs=_programs(architecture, num_warps),
        num_warps=num_warps,
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
        programs=_programs(architecture, 4),
        num_warps=4,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class WalkConfig:
    """Launch settings of a kernel whose programs keep one block and loop over others.

    Attributes
    ----------
    rows, cols : int
        Rows of a program's block, and of the block of one loop step.
    width : int
        Columns of both blocks: head size or width of the activations, padded to a power of two.
    num_warps, num_stages : int
        Warps in a program; depth of the software pipeline over the loop.
    """

    rows: int
    cols: int
    width: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossEntropyConfig:
    """Settings of linear + cross-entropy with recomputed tiles.

    Attributes
    ----------
    tokens : WalkConfig
        Of the kernels that keep tokens and loop over the vocabulary.
    vocab : WalkConfig
        Of the kernel that keeps a part of the vocabulary and loops over tokens.
    programs : int
        Number of programs to reach by splitting the loop into shares.
    """

    tokens: WalkConfig
    vocab: WalkConfig
    programs: int


def cross_entropy_config(architecture: str, d: int, n_vocab: int) -> CrossEntropyConfig:
    """Return the settings of linear + cross-entropy by tiles; see `recomputes_tiles`.

    A pipeline stage holds a block of ``cols * d`` elements. With the program's own block, it uses
    less than 100 KB of shared memory and fits all devices since Ampere. The kernel over tokens
    has two accumulators and the softmax in registers: 64 tokens at a time do not spill.
    """
    width = max(16, power_of_two(d))
    if architecture == "interpreter":
        small = WalkConfig(rows=8, cols=8, width=width, num_warps=4, num_stages=1)
        cols = 16 if n_vocab < 512 else 4096
        return CrossEntropyConfig(
            tokens=replace(small, cols=cols), vocab=replace(small, rows=cols), programs=6
        )
    return CrossEntropyConfig(
        tokens=WalkConfig(
            rows=128,
            cols=128 if architecture == "hopper" else 64,
            width=width,
            num_warps=8,
            num_stages=2,
        ),
        vocab=WalkConfig(rows=128, cols=64, width=width, num_warps=8, num_stages=3),
        programs=2 * _MULTIPROCESSORS[architecture],
    )


NARROW = 128
"""Largest width of a head for which recomputed tiles of logits are faster than stored ones."""


def recomputes_tiles(architecture: str, d: int, element_size: int) -> bool:
    """Return whether a head of width ``d`` recomputes tiles of logits instead of storing them.

    Tiles take 10 V d' FLOPs for each token, with d' the power of two above d; stored logits take
    6 V d FLOPs and 10 V bytes in bf16. At 450 and 790 TFLOP/s and 3.7 TB/s both take about 2.8 ps
    for each logit at d = 128. From there on stored logits win, and in fp32 at all widths, because
    cuBLAS has larger tiles. ``results/tables/roofline.md`` has both times by the model of
    `scalelab.theory.roofline`, which counts these routes.
    """
    return d <= NARROW and (element_size == 2 or architecture == "interpreter")


# Chunks of logits up to this size stay in the L2 cache (40 MB on an A100, 50 MB on an H200).
_CACHED_BYTES = 2**24
_MIN_CACHED_ROWS = 4096
_MAX_ROWS = 8192
_LARGE_MEMORY = ("hopper", "blackwell")


def chunk_rows(architecture: str, n_cols: int, element_size: int) -> int:
    """Return how many rows of ``n_cols`` logits are in memory at a time, a power of two.

    Each chunk of a run updates its weight gradient: 8 V d bytes for 6 V d FLOPs a row, 7 % of the
    time of the matmuls with 4096 rows on an H200. So a chunk has that many rows or more: as many as
    the cache holds if these are enough, else as many as fit in 1 GiB on devices with 80 GB, and in
    512 MiB on others. At a vocabulary of 50,304 in bf16, a chunk has 8192 and 4096 rows.
    """
    if architecture == "interpreter":
        return 6
    row = n_cols * element_size
    cached = _CACHED_BYTES // row
    if cached >= _MIN_CACHED_ROWS:
        return 1 << (cached.bit_length() - 1)
    budget = 2**30 if architecture in _LARGE_MEMORY else 2**29
    return 1 << (min(_MAX_ROWS, max(1, budget // row)).bit_length() - 1)


def logits_config(architecture: str, n_vocab: int) -> TileConfig:
    """Return the settings of the kernel whose programs each read a row of logits block by block.

    A thread has 8 columns of each of ``rows`` blocks of ``cols`` columns, and rescales their sum
    once. At 16 warps two programs fit on a multiprocessor, so that the rows in progress (26 MB at
    a vocabulary of 50,304) are still in the L2 cache when they are read again.
    """
    if architecture == "interpreter":
        return TileConfig(rows=2, cols=32 if n_vocab < 512 else 2048, num_warps=4)
    cols = min(4096, max(256, power_of_two(n_vocab) // 4))
    return TileConfig(rows=4, cols=cols, num_warps=cols // 256)


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
    return FlatConfig(block=1024, programs=_programs(architecture, 4), num_warps=4)


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
    if architecture in ("ampere", "ada"):
        tiles = ((128, 32), (64, 64), (64, 64)) if is_wide else ((128, 64), (128, 32), (128, 64))
        forward, key, query = (
            WalkConfig(rows=rows, cols=cols, width=width, num_warps=8, num_stages=2)
            for rows, cols in tiles
        )
        return AttentionConfig(forward=forward, key=key, query=query)
    # Two warpgroups with 64 rows each; both accumulators of a key block stay in registers.
    walk = WalkConfig(rows=128, cols=64, width=width, num_warps=8, num_stages=2)
    is_hopper = architecture == "hopper"
    return AttentionConfig(
        forward=replace(walk, num_warps=8 if is_wide else 4, num_stages=3) if is_hopper else walk,
        key=walk if is_hopper or not is_wide else replace(walk, rows=64),
        query=replace(walk, num_stages=3 if is_hopper else 2),
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
