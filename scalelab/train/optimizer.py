"""Optimizers over the flat buffers of K runs: AdamW, or Muon for the blocks' matrices.

When all weights have the same learning rate, one call of `adamw_step_` clips and updates them (on a
CPU, torch's fused AdamW does). With Muon, muP or CompleteP, the gradients are clipped together, and
then each part of the buffer with equal factors is updated.

References
----------
Loshchilov and Hutter 2019, arXiv:1711.05101 (AdamW).
Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/ (Muon).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from scalelab_kernels.operations import Operations
from scalelab_kernels.reference_adamw import HYPER, hyper_table
from torch import Tensor

from scalelab.sweep.run_spec import RunSpec
from scalelab.train.muon import muon_scale, orthogonalize
from scalelab.train.parameters import BUFFER_MULTIPLE, Entry, Layout
from scalelab.train.parametrization import UpdateFactors, update_factors

MUON_MOMENTUM = 0.95
CLIP_EPSILON = 1e-6
_LR, _DECAY, _EPSILON = (HYPER.index(name) for name in ("lr", "weight_decay", "eps"))
_MAX_NORM = HYPER.index("max_norm")
_GRAD_SCALE = HYPER.index("grad_scale")


class Optimizer:
    """Updates the buffers of K runs in place, on a GPU without synchronising with the host.

    Parameters
    ----------
    specs : sequence of RunSpec
        One for each run, all with the same shape, optimizer and parametrization.
    layout : Layout
        Layout of a run's buffer.
    master, exp_avg, exp_avg_sq : Tensor, shape (P,) or (K, P)
        Weights and moments; ``exp_avg`` also holds Muon's momentum.
    copy : Tensor or None
        Receives the rounded weights.
    ops : Operations
        Reference or Triton operations.
    """

    def __init__(
        self,
        specs: Sequence[RunSpec],
        layout: Layout,
        master: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        copy: Tensor | None,
        ops: Operations,
    ) -> None:
        first = specs[0]
        self.layout = layout
        self.ops = ops
        self.master, self.exp_avg, self.exp_avg_sq, self.copy = master, exp_avg, exp_avg_sq, copy
        self.is_muon = first.optimizer == "muon"
        self.is_half = first.precision != "fp32"
        self.parts = _parts_of(first, layout)
        self.hyper = hyper_table(
            lr=0.0,
            beta1=[spec.beta1 for spec in specs],
            beta2=[spec.beta2 for spec in specs],
            eps=[spec.epsilon for spec in specs],
            weight_decay=[spec.weight_decay for spec in specs],
            max_norm=[spec.grad_clip for spec in specs],
            n_runs=len(specs),
            device=master.device,
        )
        self._matrices = _by_shape(layout) if self.is_muon else {}
        self.is_plain = not self.is_muon and len(self.parts) == 1
        is_on_cpu = master.device.type == "cpu" and ops.implementation == "reference"
        self._is_on_host = self.is_plain and copy is None and is_on_cpu
        self._specs = tuple(specs)
        self._of_grad: Tensor | None = None
        self._host_rows: list[tuple[Any, ...]] = []

    def step(self, grad: Tensor, steps: Tensor, rates: Tensor) -> Tensor:
        """Take a step and return the gradient norms before clipping, shape (K,).

        Parameters
        ----------
        grad : Tensor, shape (P,) or (K, P)
        steps : Tensor of int64, shape (K,)
            Number of this step, 1 for the first.
        rates : Tensor of float64, shape (K,)
            Learning rates of this step.
        """
        if self._is_on_host:
            return self._host_adamw(grad, steps, rates)
        if self.is_plain:
            self.hyper[:, _LR] = rates
            return self._adamw(grad, steps, self.hyper, 0, self.layout.n_values)
        norm = row_norms(grad)
        clip = torch.clamp(self.hyper[:, _MAX_NORM] / (norm.double() + CLIP_EPSILON), max=1.0)
        hyper = self.hyper.clone()
        hyper[:, _MAX_NORM] = torch.inf
        # A NaN factor makes every part skip a run whose gradient norm is not finite.
        hyper[:, _GRAD_SCALE] = torch.where(norm.isfinite(), clip, torch.nan)
        for start, end, factors in self.parts:
            part = hyper.clone()
            part[:, _LR] = rates * factors.rate
            part[:, _DECAY] *= factors.decay
            part[:, _EPSILON] *= factors.epsilon
            if self.is_muon and end <= self.layout.n_muon:
                self._muon(grad, part)
            else:
                self._adamw(grad, steps, part, start, end)
        return norm

    def _adamw(self, grad: Tensor, steps: Tensor, hyper: Tensor, start: int, end: int) -> Tensor:
        def part(flat: Tensor) -> Tensor:
            return flat.narrow(-1, start, end - start)

        return self.ops.adamw_step_(
            part(self.master),
            part(grad),
            part(self.exp_avg),
            part(self.exp_avg_sq),
            steps,
            hyper,
            n_decay=min(max(self.layout.n_decay - start, 0), end - start),
            copy=None if self.copy is None else part(self.copy),
        )

    def _host_adamw(self, grad: Tensor, steps: Tensor, rates: Tensor) -> Tensor:
        """Take a step with torch's fused AdamW on a CPU, where reading a value costs nothing."""
        norms = row_norms(grad)
        if self._of_grad is not grad:
            self._of_grad, self._host_rows = grad, self._rows_of(grad)
        numbers = zip(norms.tolist(), rates.tolist(), steps.float(), strict=True)
        for spec, row, (norm, rate, step) in zip(
            self._specs, self._host_rows, numbers, strict=True
        ):
            if not math.isfinite(norm):
                continue
            if norm > spec.grad_clip:
                row[0].mul_(spec.grad_clip / (norm + CLIP_EPSILON))
            for parts, weight_decay in zip(row[1:], (spec.weight_decay, 0.0), strict=True):
                param, gradient, exp_avg, exp_avg_sq = parts
                torch._fused_adamw_(
                    param,
                    gradient,
                    exp_avg,
                    exp_avg_sq,
                    [],
                    [step],
                    lr=rate,
                    beta1=spec.beta1,
                    beta2=spec.beta2,
                    weight_decay=weight_decay,
                    eps=spec.epsilon,
                    amsgrad=False,
                    maximize=False,
                )
        return norms

    def _rows_of(self, grad: Tensor) -> list[tuple[Any, ...]]:
        """Return each run's gradient and the lists of views that fused AdamW takes.

        The first lists are of the part with weight decay, the second of the rest.
        """
        flats = (self.master, grad, self.exp_avg, self.exp_avg_sq)
        n = self.layout.n_decay
        return [
            (row[1], [[flat[:n]] for flat in row], [[flat[n:]] for flat in row])
            for row in zip(*(flat.view(len(self._specs), -1) for flat in flats), strict=True)
        ]

    def _muon(self, grad: Tensor, hyper: Tensor) -> None:
        n_runs = hyper.shape[0]
        scale = hyper[:, _GRAD_SCALE]
        is_finite = scale.isfinite()
        rate = torch.where(is_finite, hyper[:, _LR], 0.0)
        decay = 1 - rate * hyper[:, _DECAY]
        n = self.layout.n_muon
        flat = grad.view(n_runs, -1)[:, :n] * scale.float().unsqueeze(1)
        flat = torch.where(is_finite.unsqueeze(1), flat, 0.0)
        momentum = self.exp_avg.view(n_runs, -1)[:, :n]
        share = torch.where(is_finite, 1 - MUON_MOMENTUM, 0.0).float().unsqueeze(1)
        momentum.lerp_(flat, share)
        update = flat.lerp_(momentum, MUON_MOMENTUM)
        weights = self.master.view(n_runs, -1)
        weights[:, :n].mul_(decay.float().unsqueeze(1))
        for (n_rows, n_columns), starts in self._matrices.items():
            size = n_rows * n_columns
            stacked = torch.stack([update[:, at : at + size] for at in starts])
            turned = orthogonalize(
                stacked.view(-1, n_rows, n_columns), self.ops, is_half=self.is_half
            )
            change = turned.reshape(len(starts), n_runs, size) * (
                muon_scale(n_rows, n_columns) * rate.float().view(1, -1, 1)
            )
            for at, part in zip(starts, change, strict=True):
                weights[:, at : at + size].sub_(part)
        if self.copy is not None:
            self.copy.view(n_runs, -1)[:, :n].copy_(weights[:, :n])


def row_norms(flat: Tensor) -> Tensor:
    """Return the norm of a buffer (P,) or of each row of (K, P), shape (1,) or (K,).

    Sums chunks of fixed size, so the number of threads does not change the bits.
    """
    rows = flat.view(
        -1 if flat.ndim == 2 else 1, flat.shape[-1] // BUFFER_MULTIPLE, BUFFER_MULTIPLE
    )
    norms: Tensor = torch.linalg.vector_norm(torch.linalg.vector_norm(rows, dim=2), dim=1)
    return norms


def _parts_of(spec: RunSpec, layout: Layout) -> list[tuple[int, int, UpdateFactors]]:
    """Return the consecutive parts of the buffer with the same factors, as (start, end, factors).

    Muon's matrices are a part.
    """
    found: list[tuple[int, UpdateFactors]] = []
    for entry in layout.entries:
        factors = update_factors(spec, entry)
        is_after_muon = spec.optimizer == "muon" and entry.start == layout.n_muon
        if not found or factors != found[-1][1] or is_after_muon:
            found.append((entry.start, factors))
    ends = [*(start for start, _ in found[1:]), layout.n_values]
    return [(start, end, factors) for (start, factors), end in zip(found, ends, strict=True)]


def _by_shape(layout: Layout) -> dict[tuple[int, int], list[int]]:
    """Return the offsets of the matrices by shape; fused matrices and experts are separate."""
    found: dict[tuple[int, int], list[int]] = {}
    for entry in layout.entries:
        if entry.start >= layout.n_muon:
            break
        for start, n_rows in _parts(entry):
            found.setdefault((n_rows, entry.shape[-1]), []).append(start)
    return found


def _parts(entry: Entry) -> list[tuple[int, int]]:
    rows = [n for _ in range(entry.n_stacked) for n in entry.split_rows]
    starts = [entry.start]
    for n in rows[:-1]:
        starts.append(starts[-1] + n * entry.shape[-1])
    return list(zip(starts, rows, strict=True))
