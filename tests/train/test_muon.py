"""Orthogonalization of Muon's updates, in fp32 and in bf16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scalelab_kernels.operations import get_operations
from torch import Tensor

from scalelab.corpus.dataset import Dataset
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.shape import ModelShape
from scalelab.train import muon, optimizer
from scalelab.train.engine import Engine

OPS = get_operations("reference", "cpu")


@pytest.mark.parametrize("is_half", [False, True])
def test_orthogonalized_matrices_keep_their_singular_vectors(is_half: bool) -> None:
    """Singular values from 0.05 to 1 of the norm become close to 1; the vectors stay."""
    torch.manual_seed(0)
    values = torch.linspace(0.05, 1.0, 12)
    for rows, columns in ((12, 40), (40, 12), (12, 12)):
        u, _ = torch.linalg.qr(torch.randn(3, rows, 12))
        v, _ = torch.linalg.qr(torch.randn(3, columns, 12))
        turned = muon.orthogonalize(u * values @ v.transpose(1, 2), OPS, is_half=is_half)
        assert turned.dtype == (torch.bfloat16 if is_half else torch.float32)
        inside = u.transpose(1, 2) @ turned.float() @ v
        found = torch.diagonal(inside, dim1=1, dim2=2)
        assert ((found > 0.6) & (found < 1.3)).all()
        atol = 0.03 if is_half else 1e-4
        torch.testing.assert_close(inside, torch.diag_embed(found), atol=atol, rtol=0)


def train(spec: RunSpec, execution: ExecutionSpec, dataset: Dataset) -> tuple[Engine, list[float]]:
    engine = Engine([spec], replace(execution, metrics_interval_steps=spec.n_steps))
    engine.initialize(0)
    for step in range(spec.n_steps):
        engine.step(dataset.batch(spec.seed, step, spec.batch_seqs, spec.seq_len))
    return engine, engine.read().losses[:, 0].tolist()


@pytest.fixture
def run(spec: RunSpec) -> RunSpec:
    shape = ModelShape(n_layers=2, d_model=64, n_heads=2, d_head=32, d_ff=120, vocab_size=61)
    return replace(spec, shape=shape, optimizer="muon", precision="bf16")


def updates(engine: Engine) -> list[Tensor]:
    """Return the momentum of each matrix, in which small singular values are frequent."""
    return [
        part.unsqueeze(0)
        for entry in engine.layout.entries
        if entry.start < engine.layout.n_muon
        for part in entry.view(engine.exp_avg).split(entry.split_rows)
    ]


def test_bf16_orthogonalizes_the_updates_of_a_run_as_fp32_does(
    run: RunSpec, execution: ExecutionSpec, dataset: Dataset
) -> None:
    """Rounding is small beside the error that five steps leave in either precision."""
    engine, _ = train(run, execution, dataset)
    for matrix in updates(engine):
        u, _, vt = torch.linalg.svd(matrix[0].double(), full_matrices=False)
        wide, half = (muon.orthogonalize(matrix, OPS, is_half=h)[0].double() for h in (False, True))
        error = (wide - u @ vt).norm()
        assert (half - wide).norm() < 0.2 * error
        assert (half - u @ vt).norm() < 1.05 * error


def test_bf16_steps_change_the_losses_less_than_the_bf16_products_of_the_model_do(
    run: RunSpec, execution: ExecutionSpec, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(run, lr=0.003)
    _, losses = train(run, execution, dataset)
    _, wide = train(replace(run, precision="fp32"), execution, dataset)
    steps = muon.orthogonalize
    monkeypatch.setattr(
        optimizer,
        "orthogonalize",
        lambda matrices, ops, is_half: steps(matrices, ops, is_half=False),
    )
    _, exact = train(run, execution, dataset)
    of_steps = torch.tensor(losses) - torch.tensor(exact)
    of_model = torch.tensor(exact) - torch.tensor(wide)
    assert 0 < of_steps.abs().mean() < of_model.abs().mean()
    assert losses[-1] < losses[0] - 0.3
