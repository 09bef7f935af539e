"""The trainer's optimizer over batched runs: kernels as references, and batched as alone."""

from __future__ import annotations

import pytest
import torch
from scalelab_kernels.operations import get_operations

from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.shape import ModelShape
from scalelab.train import muon
from scalelab.train.optimizer import Optimizer
from scalelab.train.parameters import lay_out

SHAPE = ModelShape(
    n_layers=1, d_model=16, n_heads=2, n_kv_heads=1, d_head=8, d_ff=24, vocab_size=29
)


def make_specs(fields):
    return [
        RunSpec(
            shape=SHAPE, seq_len=8, batch_seqs=2, n_steps=9, lr=lr, warmup_steps=0, seed=1,
            data_fingerprint="", eval_fingerprint="", tokenizer="bytes", grad_clip=clip, **fields,
        )
        for lr, clip in ((0.01, 1e9), (0.02, 1.0))
    ]  # fmt: skip


def take_step(implementation, specs, rows, *, is_half):
    """Return the buffers after a step of the given rows of a random state, as (K, P)."""
    layout = lay_out(SHAPE)
    generator = torch.Generator().manual_seed(0)

    def normal(scale):
        return torch.randn(2, layout.n_values, generator=generator)[rows].squeeze(0) * scale

    master, exp_avg = normal(0.1), normal(0.01)
    exp_avg_sq = normal(0.01).square()
    copy = torch.zeros_like(master, dtype=torch.bfloat16) if is_half else None
    operations = get_operations(implementation, "cpu")
    own = [specs[row] for row in rows]
    optimizer = Optimizer(own, layout, master, exp_avg, exp_avg_sq, copy, operations)
    rates = torch.tensor([spec.lr for spec in own], dtype=torch.float64)
    norms = optimizer.step(normal(1.0), torch.full((len(rows),), 3), rates)
    found = {"master": master, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "norms": norms}
    if copy is not None:
        found["copy"] = copy
    return {name: value.view(len(rows), -1) for name, value in found.items()}


FIELDS = [
    {"parametrization": "mup"},
    {"parametrization": "completep", "optimizer": "muon"},
    {"optimizer": "muon"},
]


@pytest.mark.parametrize("is_half", [False, True])
@pytest.mark.parametrize("fields", FIELDS)
def test_batched_runs_with_kernels_have_the_state_of_the_references(monkeypatch, fields, is_half):
    monkeypatch.setattr(muon, "NEWTON_SCHULZ_STEPS", 2)
    specs = make_specs(fields)
    found = take_step("triton", specs, [0, 1], is_half=is_half)
    expected = take_step("reference", specs, [0, 1], is_half=is_half)
    for name in found:
        tolerance = 1e-2 if name == "copy" else 1e-5
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_each_batched_run_has_the_bits_of_the_run_alone(implementation):
    specs = make_specs({"parametrization": "mup"})
    batched = take_step(implementation, specs, [0, 1], is_half=True)
    for row in range(2):
        alone = take_step(implementation, specs, [row], is_half=True)
        for name, value in alone.items():
            assert torch.equal(batched[name][row], value[0]), name
