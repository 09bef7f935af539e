"""Predicted time of a run's training step on a named GPU."""

from __future__ import annotations

from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.hardware import Hardware
from scalelab.theory.roofline import StepTime, predict_step
from scalelab.theory.step_work import StepConfig


def step_config(spec: RunSpec, execution: ExecutionSpec, *, n_runs: int = 1) -> StepConfig:
    """Return what the roofline counts for a step of ``n_runs`` batched runs.

    Parameters
    ----------
    spec : RunSpec
        Shape, sequence length, batch, precision and optimizer.
    execution : ExecutionSpec
        Without ``auto``: see `scalelab.sweep.execution.planned_execution`.
    n_runs : int
        Runs that train in the same step.

    Raises
    ------
    UsageError
        If the step is not one of a GPU (``direct``).
    """
    return StepConfig(
        shape=spec.shape,
        seq_len=spec.seq_len,
        batch_seqs=spec.batch_seqs,
        precision=spec.precision,
        optimizer=spec.optimizer,
        step=execution.step,
        kernels=execution.kernels,
        attention=execution.attention,
        batched_runs=n_runs,
        micro_batch_seqs=execution.micro_batch_seqs,
    )


def predicted_step(
    hardware: Hardware, spec: RunSpec, execution: ExecutionSpec, *, n_runs: int = 1
) -> StepTime:
    """Return the expected time of a step of ``n_runs`` batched runs on a named GPU."""
    return predict_step(hardware, step_config(spec, execution, n_runs=n_runs))
