"""muP: the coordinate check, and equality with the standard model at the base width."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from scalelab.corpus.dataset import Dataset
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.shape import ModelShape
from scalelab.train.engine import Engine
from scalelab.train.parametrization import BASE_HEAD, BASE_WIDTH

WIDTHS = (32, 64, 128, 256, 512)


def of_width(spec: RunSpec, d_model: int, parametrization: str) -> RunSpec:
    shape = ModelShape(
        n_layers=2,
        d_model=d_model,
        n_heads=d_model // BASE_HEAD,
        d_head=BASE_HEAD,
        d_ff=2 * d_model,
        vocab_size=61,
    )
    return replace(
        spec, shape=shape, parametrization=parametrization, lr=0.01, warmup_steps=0, init_std=1.0
    )


def logit_changes(spec: RunSpec, dataset: Dataset, execution: ExecutionSpec) -> list[float]:
    """Return the root mean square change of the logits after 1, 2 and 3 steps."""
    engine = Engine([spec], execution)
    engine.initialize(0)
    tokens = dataset.batch(spec.seed, 0, spec.batch_seqs, spec.seq_len)
    inputs = torch.from_numpy(tokens[:, :-1])

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return engine.gradients.model.hidden(inputs)[0] @ engine.gradients.leaves["head"][:61].T

    first = logits()
    changes = []
    for _ in range(3):
        engine.step(tokens)
        changes.append(float((logits() - first).square().mean().sqrt()))
    return changes


def slopes(spec: RunSpec, dataset: Dataset, execution: ExecutionSpec, kind: str) -> np.ndarray:
    """Return d log(change) / d log(width) for each step."""
    changes = [logit_changes(of_width(spec, d, kind), dataset, execution) for d in WIDTHS]
    return np.polyfit(np.log(WIDTHS), np.log(changes), 1)[0]


def test_under_mup_the_change_of_the_logits_does_not_grow_with_width(
    spec: RunSpec, dataset: Dataset, execution: ExecutionSpec
) -> None:
    """The coordinate check of arXiv:2203.03466, appendix D.1.

    Under muP the part of the change that comes from the random start even shrinks.
    """
    found = slopes(spec, dataset, execution, "mup")
    assert found.max() < 0.1
    assert found.min() > -0.4
    assert slopes(spec, dataset, execution, "standard").min() > 0.3


def test_at_the_base_width_mup_is_the_standard_parametrization(
    spec: RunSpec, dataset: Dataset, execution: ExecutionSpec
) -> None:
    kinds = [of_width(spec, BASE_WIDTH, kind) for kind in ("mup", "standard")]
    found = [logit_changes(run, dataset, execution) for run in kinds]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
