"""The roofline's counts against the operations that torch executes in a real training step."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.predicted import step_config
from scalelab.theory.shape import ModelShape
from scalelab.theory.step_counts import step_work
from scalelab.train.calibrate import synthetic_run
from scalelab.train.engine import Engine, batch_shape

EAGER = ExecutionSpec(device="cpu", step="eager", attention="explicit")
SHAPE = ModelShape(n_layers=2, d_model=64, n_heads=2, d_head=32, d_ff=176, vocab_size=512)
FREE = frozenset(
    (
        *("alias", "as_strided", "detach", "expand", "permute", "reshape", "select", "slice"),
        *("split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view"),
        *("_unsafe_view", "_reshape_alias", "empty", "empty_like", "empty_strided", "new_empty"),
        *("empty_permuted", "lift_fresh"),
    )
)
"""Operations that move no data."""


class Traffic(TorchDispatchMode):
    """Sums the bytes of the tensors that each operation reads and writes, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.n_bytes = self.n_launches = 0
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = (
            without_values(func, args)
            if func.namespace == "scalelab"
            else func(*args, **(kwargs or {}))
        )
        if func.__name__.partition(".")[0] not in FREE:
            tensors = [t for t in tree_leaves((args, kwargs, found)) if isinstance(t, torch.Tensor)]
            n_bytes = sum(
                min(t.untyped_storage().nbytes(), t.numel() * t.element_size()) for t in tensors
            )
            self.n_bytes += n_bytes
            self.n_launches += 1
            self.by_name[func.__name__.partition(".")[0]] += n_bytes
        return found


def without_values(kernel: Any, args: tuple[Any, ...]) -> Any:
    """Return zeros in the shapes that a Triton kernel returns, without interpreting it."""

    def on_meta(value: Any) -> Any:
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    def zeros(value: Any) -> Any:
        is_tensor = isinstance(value, torch.Tensor)
        return torch.zeros(value.shape, dtype=value.dtype) if is_tensor else value

    return tree_map(zeros, kernel(*(on_meta(value) for value in args)))


def take_step(specs: list[Any], execution: ExecutionSpec, mode: Any) -> Any:
    """Take a step under the mode, in plain torch after one without it; return the mode."""
    engine = Engine(specs, execution)
    for run in range(len(specs)):
        engine.initialize(run)
    tokens = np.random.default_rng(0).integers(0, SHAPE.vocab_size, batch_shape(specs))
    if execution.kernels == "reference":
        engine.step(tokens)
    with mode:
        engine.step(tokens)
    return mode


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("n_runs", [1, 2])
@pytest.mark.parametrize("change", [{}, {"n_kv_heads": 1}, {"is_tied": True}], ids=str)
def test_the_flops_are_those_of_torch(precision: str, n_runs: int, change: dict[str, Any]) -> None:
    spec = synthetic_run(replace(SHAPE, **change), seq_len=32, batch_seqs=4)
    spec = replace(spec, precision=precision)
    specs = [replace(spec, seed=seed) for seed in range(n_runs)]
    execution = replace(EAGER, micro_batch_seqs=3)
    counted = take_step(specs, execution, FlopCounterMode(display=False))
    work = step_work(step_config(spec, execution, n_runs=n_runs))
    assert sum(item.flops for item in work) == counted.get_total_flops()


def test_the_flops_of_experts_and_of_muon_are_those_of_torch() -> None:
    spec = synthetic_run(SHAPE, seq_len=32, batch_seqs=4)
    plain, muon = (
        sum(item.flops for item in step_work(step_config(replace(spec, optimizer=name), EAGER)))
        for name in ("adamw", "muon")
    )
    counted = take_step([replace(spec, optimizer="muon")], EAGER, FlopCounterMode(display=False))
    assert muon > plain
    assert counted.get_total_flops() == muon
    experts = replace(spec, shape=replace(SHAPE, n_experts=4, n_active_experts=2))
    counted = take_step([experts], EAGER, FlopCounterMode(display=False))
    work = step_work(step_config(experts, EAGER))
    assert sum(item.flops for item in work) == pytest.approx(counted.get_total_flops(), rel=0.01)


def test_the_bytes_and_launches_of_plain_torch_are_those_of_its_operations() -> None:
    spec = replace(synthetic_run(SHAPE, seq_len=64, batch_seqs=8), precision="bf16")
    traffic = take_step([spec], EAGER, Traffic())
    work = step_work(step_config(spec, EAGER))
    assert sum(item.n_bytes for item in work) == pytest.approx(traffic.n_bytes, rel=0.12)
    assert sum(item.n_launches for item in work) == pytest.approx(traffic.n_launches, rel=0.15)


def test_the_bytes_of_the_kernels_are_those_of_their_tensors() -> None:
    """The optimizer's kernel is left out: it writes its inputs, which a mode cannot see."""
    shape = replace(SHAPE, d_ff=192)
    spec = replace(synthetic_run(shape, seq_len=64, batch_seqs=8), precision="bf16")
    execution = replace(EAGER, kernels="triton", attention="triton")
    traffic = take_step([spec], execution, Traffic()).by_name
    work = step_work(step_config(spec, execution))
    counted = {
        "norms": ("rms_norm", "add_rms_norm", "rms_norm_backward", "add"),
        "qk_norm_rope": ("qk_norm_rope", "qk_norm_rope_backward"),
        "swiglu": ("swiglu", "swiglu_backward"),
        "triton": ("attention", "attention_backward"),
        "gradient copies": ("_foreach_copy_",),
    }
    for name, operations in counted.items():
        predicted = sum(item.n_bytes for item in work if item.name == name)
        # Statistics of rows, weights of norms and tables of angles are not counted.
        assert sum(traffic[each] for each in operations) == pytest.approx(predicted, rel=0.1), name
    products = sum(item.n_bytes for item in work if item.part == "matmul")
    assert traffic["mm"] == products
