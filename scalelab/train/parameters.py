"""Layout of a model's weights in one flat buffer, and their initial values.

With one buffer for all weights of a run, the optimizer, the gradient norm, checkpoints and batched
runs are single operations. Matrices with weight decay come first, then embeddings and norms.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.shape import ModelShape
from scalelab.train.parametrization import shape_factors

ALIGNMENT = 16
"""Entries start at multiples of this many values: 64 bytes in fp32, one cache line."""
BUFFER_MULTIPLE = 1024
"""The length of a run's buffer is a multiple of this, so that sums over it split evenly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One weight.

    Attributes
    ----------
    name : str
        Such as ``layers.0.qkv``.
    shape : tuple of int
        Shape in memory, ``(.., out, in)`` for a matrix.
    kind : str
        ``matrix``, ``residual`` (a matrix that writes to the residual stream), ``router``,
        ``head``, ``embedding`` or ``norm``.
    start : int
        Offset in the run's flat buffer.
    n_counted : int
        Values that are parameters; the rest pads the vocabulary.
    split_rows : tuple of int
        Rows of the matrices that are fused into this one: query, key and value, or gate and up.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    start: int
    n_counted: int
    split_rows: tuple[int, ...]

    @property
    def n_stacked(self) -> int:
        """Number of experts in this weight, 1 for a plain weight."""
        return math.prod(self.shape[:-2])

    @property
    def n_values(self) -> int:
        """Values in memory, padding included."""
        return math.prod(self.shape)

    @property
    def is_decayed(self) -> bool:
        """Whether weight decay applies."""
        return self.kind not in ("embedding", "norm")

    @property
    def is_hidden(self) -> bool:
        """Whether this is a block's matrix, routers excluded: both its sides grow with width."""
        return self.kind in ("matrix", "residual")

    @property
    def is_in_block(self) -> bool:
        """Whether this belongs to a block."""
        return self.name.startswith("layers.")

    def view(self, flat: Tensor) -> Tensor:
        """Return a view of this weight in ``flat``, shape (P,) or (K, P); keeps a leading K."""
        part = flat.narrow(-1, self.start, self.n_values)
        return part.view(*flat.shape[:-1], *self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """All weights of a shape and the size of their buffer.

    Attributes
    ----------
    entries : tuple of Entry
        Entries with weight decay first.
    n_values : int
        Length P of a run's flat buffer.
    n_decay : int
        Number of leading values with weight decay.
    n_muon : int
        Number of leading values that are the blocks' matrices, without routers.
    """

    entries: tuple[Entry, ...]
    n_values: int
    n_decay: int
    n_muon: int

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return each weight by name as a view of ``flat``."""
        return {entry.name: entry.view(flat) for entry in self.entries}


def lay_out(shape: ModelShape) -> Layout:
    """Return the layout of a shape's weights.

    A block has the matrices ``qkv`` (query, key and value heads), ``out``, ``gate_up`` and
    ``down``. In a mixture of experts, the last two have a leading expert dimension, and the block
    also has a ``router``; with a shared expert, also ``shared_gate_up`` and ``shared_down``.
    """
    d, d_head = shape.d_model, shape.d_head
    experts = (shape.n_experts,) if shape.n_experts else ()
    fused = {
        "qkv": (shape.d_attention, shape.d_kv, shape.d_kv),
        "gate_up": (shape.d_ff, shape.d_ff),
        "shared_gate_up": (shape.d_shared_expert, shape.d_shared_expert),
    }
    layers = [f"layers.{layer}." for layer in range(shape.n_layers)]
    weights: list[tuple[str, tuple[int, ...], str]] = []
    for prefix in layers:
        weights += [
            (prefix + "qkv", (sum(fused["qkv"]), d), "matrix"),
            (prefix + "out", (d, shape.d_attention), "residual"),
            (prefix + "gate_up", (*experts, sum(fused["gate_up"]), d), "matrix"),
            (prefix + "down", (*experts, d, shape.d_ff), "residual"),
        ]
        if shape.d_shared_expert:
            weights += [
                (prefix + "shared_gate_up", (sum(fused["shared_gate_up"]), d), "matrix"),
                (prefix + "shared_down", (d, shape.d_shared_expert), "residual"),
            ]
    if experts:
        weights += [(prefix + "router", (shape.n_experts, d), "router") for prefix in layers]
    if not shape.is_tied:
        weights.append(("head", (shape.padded_vocab, d), "head"))
    weights.append(("embedding", (shape.padded_vocab, d), "embedding"))
    for prefix in layers:
        weights += [(prefix + "attention_norm", (d,), "norm"), (prefix + "ff_norm", (d,), "norm")]
        if shape.has_qk_norm:
            weights += [(prefix + name, (d_head,), "norm") for name in ("q_norm", "k_norm")]
    weights.append(("final_norm", (d,), "norm"))

    entries: list[Entry] = []
    start = 0
    for name, dims, kind in weights:
        is_vocab = kind in ("embedding", "head")
        entry = Entry(
            name=name,
            shape=dims,
            kind=kind,
            start=start,
            n_counted=shape.vocab_size * d if is_vocab else math.prod(dims),
            split_rows=fused.get(name.rpartition(".")[2], dims[-2:-1]),
        )
        entries.append(entry)
        start = _round_up(start + entry.n_values, ALIGNMENT)

    def first_of(*kinds: str) -> int:
        return next(entry.start for entry in entries if entry.kind in kinds)

    return Layout(
        entries=tuple(entries),
        n_values=_round_up(start, BUFFER_MULTIPLE),
        n_decay=first_of("embedding", "norm"),
        n_muon=first_of("router", "head", "embedding"),
    )


def initialize_(flat: Tensor, layout: Layout, spec: RunSpec) -> None:
    """Fill one run's flat buffer, shape (P,), with its initial weights.

    Norm gains are 1. Embeddings are normal with standard deviation ``spec.init_std``, matrices with
    1/sqrt(fan_in). Matrices that write to the residual stream are divided by sqrt(2 n_layers), so
    that the stream's variance does not grow with depth (GPT-2, section 2.3). A parametrization
    changes head and residual matrices. Each weight has its own CPU generator, seeded by (seed,
    name), so it depends neither on the device nor on other weights.
    """
    flat.zero_()
    for entry in layout.entries:
        entry.view(flat).copy_(initial_values(entry, spec))


def initial_values(entry: Entry, spec: RunSpec) -> Tensor:
    """Return a weight's initial values, fp32 on the CPU, shape ``entry.shape``; padding is 0."""
    if entry.kind == "norm":
        return torch.ones(entry.shape)
    values = torch.zeros(entry.shape)
    n_rows = entry.n_counted // entry.shape[-1]
    generator = torch.Generator().manual_seed(_seed_of(spec.seed, entry.name))
    counted = values.view(-1, entry.shape[-1])[:n_rows]
    counted.normal_(generator=generator).mul_(initial_std(entry, spec))
    return values


def initial_std(entry: Entry, spec: RunSpec) -> float:
    """Return the standard deviation of a weight's initial values."""
    if entry.kind == "embedding":
        return spec.init_std
    factors = shape_factors(spec)
    std = 1 / math.sqrt(factors.head_fan_in if entry.kind == "head" else entry.shape[-1])
    return std / math.sqrt(2 * factors.init_depth) if entry.kind == "residual" else std


def _seed_of(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
