"""The roofline's counts against the operations that torch executes in a real training step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
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

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.__name__.partition(".")[0] not in FREE:
            tensors = [t for t in tree_leaves((args, kwargs, found)) if isinstance(t, torch.Tensor)]
            self.n_bytes += sum(
                min(t.untyped_storage().nbytes(), t.numel() * t.element_size()) for t in tensors
            )
            self.n_launches += 1
        return found


def take_step(specs: list[Any], execution: ExecutionSpec, mode: Any) -> Any:
    """Take a step under the mode, after one without it; return the mode."""
    engine = Engine(specs, execution)
    for run in range(len(specs)):
        engine.initialize(run)
    tokens = np.random.default_rng(0).integers(0, SHAPE.vocab_size, batch_shape(specs))
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
