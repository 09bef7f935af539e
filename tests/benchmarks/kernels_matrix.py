"""Every class of shapes that a sweep can plan, by operation.

The settings of a kernel depend on its shape only through `scalelab_kernels.configs`, and on whether
rows are whole multiples of 16 bytes. Shapes of the shape tables with the same settings compile to
the same machine code; one of them, the widest, stands for its class.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from scalelab_kernels import configs, reference

from scalelab.sweep import shape_rule, shapes
from scalelab.theory.shape import ModelShape

VOCABULARIES = (256, 257, 1024, 4096, 32_000, 50_257, 50_304)
# Heads of the shape tables, and one of a shape that is written by hand; with ``every``, more.
HEAD_SIZES = (8, 12, 32, 64, 128)
MORE_HEAD_SIZES = (16, 20)
# Widths of both tables: usually, and with ``every``. RMSNorm spills registers beyond 8192.
COMMON_WIDTH, LARGEST_WIDTH = 2048, 8192


@dataclass(frozen=True, slots=True)
class Case:
    """One class of shapes of an operation.

    Attributes
    ----------
    name : str
        Operation, shape and dtype.
    load_bits : int
        Bits that a thread can load at a time, by the alignment of rows: at most 128.
    smallest_n : int
        Smallest N of a matrix product on Hopper that the shape allows, up to 64; 0 if the matrix
        units are not used.
    run : callable
        Calls the operation forward and backward.
    """

    name: str
    load_bits: int
    smallest_n: int
    run: Callable[[], None]


def _op(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"scalelab_kernels.{module}"), name)


def _leaf(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype, requires_grad=True)


@functools.cache
def table_shapes() -> tuple[ModelShape, ...]:
    """Return the shapes of both tables; the vocabulary does not change them."""
    rules = [shape_rule.ShapeRule(table=table) for table in shape_rule.SHAPES]
    return tuple(s for rule in rules for s in shapes.shape_table(VOCABULARIES[0], rule).shapes)


def _classes(values: Iterable[int], key: Callable[[int], Hashable]) -> list[int]:
    """Return the largest value of each class, smallest first."""
    return sorted({key(value): value for value in sorted(values)}.values())


def _load_bits(n: int, dtype: torch.dtype) -> int:
    return 8 * math.gcd(16, n * dtype.itemsize)


def _smallest_n(n: int, dtype: torch.dtype) -> int:
    return min(64, max(16, configs.power_of_two(n))) if dtype.itemsize == 2 else 0


def _norms(architecture: str, dtype: torch.dtype, widths: set[int]) -> Iterator[Case]:
    def run(d: int, has_add: bool) -> None:
        if has_add:
            out = _op("rms_norm", "add_rms_norm")(
                _leaf(64, d, dtype=dtype), _leaf(64, d, dtype=dtype), _leaf(d, dtype=dtype)
            )
            (out[0].sum() + out[1].sum()).backward()
        else:
            out = _op("rms_norm", "rms_norm")(_leaf(64, d, dtype=dtype), _leaf(d, dtype=dtype))
            out.sum().backward()

    found = _classes(widths, lambda d: (configs.row_config(architecture, d), _load_bits(d, dtype)))
    for d in found:
        # Without the addition there are fewer loads: it is checked at the widest rows.
        for has_add in (True, False) if d == found[-1] else (True,):
            name = f"rms_norm d={d} add={has_add}"
            yield Case(name, _load_bits(d, dtype), 0, functools.partial(run, d, has_add))


def _gates(architecture: str, dtype: torch.dtype, widths: set[int]) -> Iterator[Case]:
    def run(d_ff: int) -> None:
        _op("swiglu", "swiglu")(_leaf(64, 2 * d_ff, dtype=dtype)).sum().backward()

    hidden = {shape.d_ff for shape in table_shapes() if shape.d_model in widths}
    for d_ff in _classes(
        hidden, lambda n: (configs.tile_config(architecture, n), _load_bits(n, dtype))
    ):
        bits = _load_bits(d_ff, dtype)
        yield Case(f"swiglu f={d_ff}", bits, 0, functools.partial(run, d_ff))


def _heads(dtype: torch.dtype, sizes: tuple[int, ...]) -> Iterator[Case]:
    def run(d_head: int, has_norm: bool) -> None:
        cos, sin = reference.rope_tables(64, d_head)
        gains = [_leaf(d_head, dtype=dtype) if has_norm else None for _ in range(2)]
        qkv = _leaf(2, 64, 8 * d_head, dtype=dtype)
        parts = _op("qk_norm_rope", "qk_norm_rope")(qkv, *gains, cos, sin, 4, 2)
        sum(p.sum() for p in parts).backward()

    for d_head in sizes:
        for has_norm in (True, False) if d_head == 64 else (True,):
            name = f"qk_norm_rope D={d_head} norm={has_norm}"
            bits = _load_bits(d_head // 2, dtype)
            yield Case(name, bits, 0, functools.partial(run, d_head, has_norm))


def _attentions(dtype: torch.dtype, sizes: tuple[int, ...]) -> Iterator[Case]:
    def run(d_head: int, has_documents: bool) -> None:
        q, k, v = (_leaf(1, 256, heads, d_head, dtype=dtype).transpose(1, 2) for heads in (2, 1, 1))
        starts = torch.zeros(1, 256, dtype=torch.int32) if has_documents else None
        _op("attention", "causal_attention")(q, k, v, starts=starts).sum().backward()

    for d_head in sizes:
        for has_documents in (False, True) if d_head >= 64 else (False,):
            name = f"attention D={d_head} documents={has_documents}"
            smallest_n = _smallest_n(d_head, dtype)
            bits = _load_bits(d_head, dtype)
            yield Case(name, bits, smallest_n, functools.partial(run, d_head, has_documents))


def _entropies(architecture: str, dtype: torch.dtype, widths: set[int]) -> Iterator[Case]:
    def run(d: int, n_vocab: int, name: str) -> None:
        targets = torch.zeros(4, 64, dtype=torch.int64)
        hidden, weight = _leaf(4, 64, d, dtype=dtype), _leaf(n_vocab, d, dtype=dtype)
        _op("linear_cross_entropy", name)(hidden, weight, targets).sum().backward()

    def key(d: int) -> Hashable:
        is_tiled = configs.recomputes_tiles(architecture, d, dtype.itemsize)
        return is_tiled and (configs.cross_entropy_config(architecture, d, 256), d % 16)

    wide = 256
    for d in _classes(widths, key):
        if configs.recomputes_tiles(architecture, d, dtype.itemsize):
            name = f"cross-entropy by tiles d={d}"
            yield Case(
                name, _load_bits(d, dtype), _smallest_n(d, dtype),
                functools.partial(run, d, 50_257, "linear_cross_entropy"),
            )  # fmt: skip
    # Rows of logits are padded in memory: their loads are wide for all vocabularies.
    for n_vocab in _classes(
        VOCABULARIES, lambda v: (configs.logits_config(architecture, v), v % 2)
    ):
        # The losses of single tokens differ by one load; they are checked at one size.
        names = ("linear_cross_entropy_sum", "linear_cross_entropy")
        for name in names if n_vocab == VOCABULARIES[-1] else names[:1]:
            yield Case(
                f"{name} by chunks V={n_vocab}", 128, 0,
                functools.partial(run, wide, n_vocab, name),
            )  # fmt: skip


def _mixtures(dtype: torch.dtype) -> Iterator[Case]:
    def run(d: int) -> None:
        way = _op("moe", "route")(torch.zeros(32, 2, dtype=torch.int64), 4)
        rows = _op("moe", "permute")(_leaf(32, d, dtype=dtype), way)
        weights = _leaf(32, 2, dtype=torch.float32)
        _op("moe", "unpermute")(rows, weights, way).sum().backward()

    for d in (128, 1024):
        yield Case(f"mixture of experts d={d}", 128, 0, functools.partial(run, d))


def _products(dtype: torch.dtype) -> Iterator[Case]:
    def run(n_rows: int, n_cols: int) -> None:
        product = _op("gram", "gram")(torch.zeros(2, n_rows, n_cols, dtype=dtype))
        _op("gram", "gram_polynomial")(product, 1.0, 1.0)

    # Matrices of both tile sizes; 216 is a multiple of 8 but not of 16.
    for n_rows, n_cols in ((128, 216), (768, 3072)):
        bits = _load_bits(math.gcd(n_rows, n_cols), dtype)
        name = f"symmetric product {n_rows} x {n_cols}"
        yield Case(name, bits, _smallest_n(n_rows, dtype), functools.partial(run, n_rows, n_cols))


def _optimizers() -> Iterator[Case]:
    def run(n_runs: int, has_all: bool) -> None:
        state = [torch.zeros(n_runs, 4096) for _ in range(4)]
        extra = {"copy": torch.zeros(n_runs, 4096, dtype=torch.bfloat16)}
        if has_all:
            extra["ema"] = torch.zeros(n_runs, 4096)
        hyper = reference.hyper_table(lr=0.1, n_runs=n_runs)
        step = _op("adamw", "adamw_step_")
        step(*state, torch.tensor(3), hyper, n_decay=128, **extra)

    for n_runs, has_all in ((1, False), (2, True)):
        yield Case(f"adamw K={n_runs}", 128, 0, functools.partial(run, n_runs, has_all))


def cases(architecture: str, *, every: bool) -> Iterator[Case]:
    """Yield the classes to compile: in bf16 up to `COMMON_WIDTH`, or all with ``every``."""
    limit = LARGEST_WIDTH if every else COMMON_WIDTH
    widths = {s.d_model for s in table_shapes() if s.d_model <= limit}
    sizes = HEAD_SIZES + (MORE_HEAD_SIZES if every else ())
    for dtype in (torch.bfloat16, torch.float32) if every else (torch.bfloat16,):
        yield from _norms(architecture, dtype, widths)
        yield from _gates(architecture, dtype, widths)
        yield from _heads(dtype, sizes)
        yield from _attentions(dtype, sizes)
        yield from _entropies(architecture, dtype, widths)
        yield from _mixtures(dtype)
        yield from _products(dtype)
    yield from _optimizers()
