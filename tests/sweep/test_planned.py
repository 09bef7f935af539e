"""The execution that a sweep plans for a GPU equals the one that the GPU cases measure."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gpu_cases import steps

from scalelab.sweep.execution import default_precision, planned_execution
from scalelab.sweep.shape_rule import ALIGNED, ShapeRule
from scalelab.sweep.spec import sweep_from_mapping


def request(**execution: object):
    content = {"kind": "grid", "n_params": "1M", "n_tokens": "1M", "execution": execution}
    return sweep_from_mapping(content, source="the test").execution.request("cuda")


@pytest.mark.parametrize("name", steps.MODELS)
def test_the_step_that_a_sweep_plans_for_a_gpu_is_the_one_that_is_measured(name: str) -> None:
    spec = steps.model_spec(name, 2048, is_tiny=False)
    planned = planned_execution(request(batched_runs=1), spec)
    assert steps.execution_of(spec) == planned
    assert (planned.step, planned.kernels, planned.attention) == ("graph", "triton", "flash")
    assert spec.precision == default_precision("cuda")
    # The measured shapes are those of large sweeps, with a tied head.
    shape = ShapeRule(table=ALIGNED).shape(spec.shape.d_model, spec.shape.n_layers, steps.VOCAB)
    assert replace(shape, is_tied=True) == spec.shape


@pytest.mark.parametrize("name", steps.SMALL)
def test_batched_runs_are_measured_as_they_are_planned(name: str) -> None:
    spec = steps.small_spec(name, is_tiny=False)
    assert steps.execution_of(spec, n_runs=16) == planned_execution(request(batched_runs=16), spec)
