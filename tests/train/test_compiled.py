"""Each engine with ``step = compiled`` has its own compilations, however many there were before."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo

from scalelab.sweep.execution import ExecutionSpec
from scalelab.theory.shape import ModelShape
from scalelab.train.calibrate import synthetic_run
from scalelab.train.engine import Engine, batch_shape
from scalelab.train.gradients import Autograd

# Dynamo itself instantiates the class that it traces.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

SHAPE = ModelShape(n_layers=1, d_model=16, n_heads=2, d_head=8, d_ff=24, vocab_size=61)
LIMIT = 2


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Compile with a backend that runs the graph as it is; return the graphs."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    with torch._dynamo.config.patch(recompile_limit=LIMIT):
        yield graphs


def engine_of(d_model: int) -> Engine:
    spec = synthetic_run(replace(SHAPE, d_model=d_model), seq_len=8, batch_seqs=2)
    engine = Engine([spec], ExecutionSpec(step="compiled"))
    engine.initialize(0)
    return engine


@pytest.mark.slow
def test_every_shape_of_a_process_is_compiled_once(compilations: list[Any]) -> None:
    for n_before in range(LIMIT + 2):
        engine = engine_of(16 + 8 * n_before)
        for _ in range(2):
            engine.step(np.zeros(batch_shape(engine.specs), dtype=np.int64))
        assert len(compilations) == n_before + 1


@pytest.mark.slow
def test_a_step_that_would_no_longer_be_compiled_is_an_error(compilations: list[Any]) -> None:
    gradients = engine_of(16).gradients
    assert isinstance(gradients, Autograd)
    for n_seqs in range(LIMIT):
        gradients._loss_sums(torch.zeros(1 + n_seqs, 9, dtype=torch.int64), 0.0)
    with pytest.raises(Exception, match="recompile_limit") as caught:
        gradients._loss_sums(torch.zeros(9, 9, dtype=torch.int64), 0.0)
    assert len(compilations) == LIMIT
    assert "RecompileLimit" in type(caught.value).__name__
