"""Training in fp8: whether its products are right on this GPU, and what it changes beside bf16."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scalelab_kernels import fp8

from gpu_cases.steps import execution_of, model_spec
from gpu_cases.timing import device, synchronize
from scalelab.sweep.run_spec import RunSpec
from scalelab.train.engine import Engine
from scalelab.train.host import torch_settings
from scalelab.train.precision import require_precision_here
from scalelab.units import plural

PRODUCTS = ((1003, 768, 2304), (4096, 2048, 768), (16, 128, 128))
"""Rows, inputs and outputs of a linear layer."""
ROUNDING = 2.0**-7
"""Error of the products beside exact ones of the same fp8 numbers: bf16 results and, forward, sums
in the matrix units' own precision."""
N_STEPS = 200
LAST = 40
"""Steps over which the final losses are averaged."""


def products(*, is_tiny: bool) -> dict[str, Any]:
    """Check a linear layer and its gradients against exact products of the same fp8 numbers."""
    found: dict[str, Any] = {"errors": {}, "problems": []}
    for n_rows, n_in, n_out in PRODUCTS[-1:] if is_tiny else PRODUCTS:
        torch.manual_seed(0)
        x = torch.randn(n_rows, n_in, device=device()).bfloat16().requires_grad_()
        weight = torch.randn(n_out, n_in, device=device()).bfloat16().requires_grad_()
        grad = 1e-5 * torch.randn(n_rows, n_out, device=device()).bfloat16()
        out = fp8.linear(x, weight)
        values = out.detach(), *torch.autograd.grad(out, (x, weight), grad)
        wide = [
            rounded.double() * inverse.double()
            for rounded, inverse in (
                fp8.quantize(part.detach(), dtype)
                for part, dtype in ((x, fp8.E4M3), (weight, fp8.E4M3), (grad, fp8.E5M2))
            )
        ]
        exact = wide[0] @ wide[1].T, wide[2] @ wide[1], wide[2].T @ wide[0]
        for name, value, other in zip(("out", "grad x", "grad weight"), values, exact, strict=True):
            error = float((value.double() - other).norm() / other.norm())
            key = f"{n_rows} x {n_in} x {n_out}: {name}"
            found["errors"][key] = error
            if not error <= ROUNDING:
                found["problems"].append(f"{key} has a relative error of {error:.2g}")
    found["says"] = f"largest error {max(found['errors'].values()):.1e}"
    return found


def losses(*, is_tiny: bool, name: str, seq_len: int) -> dict[str, Any]:
    """Train one shape in bf16 and in fp8 on the same text, and in bf16 from another seed.

    The difference of the final losses between precisions matters beside the one between seeds. The
    text is a random Markov chain.
    """
    n_steps = 2 if is_tiny else N_STEPS
    settings: dict[str, Any] = {"n_steps": n_steps, "lr": 1e-3, "warmup_steps": n_steps // 10}
    found: dict[str, Any] = {"n_steps": n_steps, "final_loss_nats": {}, "step_ms": {}}
    found["curves_nats"] = {}
    spec = model_spec(name, seq_len, is_tiny=is_tiny, precision="fp8", **settings)
    if not is_tiny:
        require_precision_here(spec, "cuda")
    text = batches(spec, n_steps)
    runs = {
        "bf16": replace(spec, precision="bf16"),
        "fp8": spec,
        "bf16, another seed": replace(spec, precision="bf16", seed=spec.seed + 1),
    }
    for kind, run in runs.items():
        curve, step_s = train(run, text, is_tiny=is_tiny)
        found["final_loss_nats"][kind] = float(curve[-LAST:].mean())
        found["step_ms"][kind] = 1e3 * step_s
        found["curves_nats"][kind] = curve[:: max(1, n_steps // 20)].tolist()
    bf16, in_fp8, other = found["final_loss_nats"].values()
    found["fp8_minus_bf16_nats"], found["seed_difference_nats"] = in_fp8 - bf16, other - bf16
    found["speedup"] = found["step_ms"]["bf16"] / found["step_ms"]["fp8"]
    found["says"] = (
        f"fp8 - bf16 {in_fp8 - bf16:+.4f} nats after {plural(n_steps, 'step')} (another seed "
        f"{other - bf16:+.4f}); {found['speedup']:.2f}x the speed of bf16"
    )
    return found


def batches(spec: RunSpec, n_steps: int) -> NDArray[np.int64]:
    """Return the tokens of all steps, shape (steps, B, T + 1): each token has four successors."""
    rng = np.random.default_rng(1)
    follows = rng.integers(0, spec.shape.vocab_size, (spec.shape.vocab_size, 4))
    tokens = np.empty((n_steps, spec.batch_seqs, spec.seq_len + 1), dtype=np.int64)
    tokens[..., 0] = rng.integers(0, spec.shape.vocab_size, tokens.shape[:-1])
    for i in range(1, spec.seq_len + 1):
        choice = rng.integers(0, 4, tokens.shape[:-1])
        tokens[..., i] = follows[tokens[..., i - 1], choice]
    return tokens


def train(
    spec: RunSpec, text: NDArray[np.int64], *, is_tiny: bool
) -> tuple[NDArray[np.float32], float]:
    """Return the loss of each step, and the mean seconds of a step in the second half."""
    execution = execution_of(spec, is_tiny=is_tiny)
    with torch_settings(execution):
        engine = Engine([spec], execution)
        engine.initialize(0)
        curve = []
        for step, tokens in enumerate(text):
            if step == len(text) // 2:
                synchronize()
                started = time.perf_counter()
            engine.step(tokens)
            if engine.n_pending == execution.metrics_interval_steps or step == len(text) - 1:
                curve.append(engine.read().losses[:, 0])
        seconds = time.perf_counter() - started
    return np.concatenate(curve), seconds / (len(text) - len(text) // 2)
