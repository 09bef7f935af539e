"""Decide whether a program's run is complete, and how large its model was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from scalelab.launch.programs.checkpoints import ProgramCheckpoint, count_safetensors
from scalelab.launch.programs.output import OwnOutput, ProgramOutput
from scalelab.records.run_dir import Attempt
from scalelab.records.types import RunRecord
from scalelab.sweep.program_render import final_step
from scalelab.sweep.run_size import REPORTED, has_shape, run_size
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import DEFAULT_PARAM_CONVENTION, count_params

MOST_DIFFERENCE = 0.005
"""Relative difference of two counts of parameters that are taken for the same model."""
SIZE_WORDS = {
    "report": "the program reports",
    "checkpoint": "its safetensors files have",
    "shape": "the shape of the plan has",
    "table": "the table of sizes has",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramResult:
    """What a program reached.

    Attributes
    ----------
    problem : str
        Why the run is not complete; empty if it is.
    is_at_end : bool
        Whether the program took all its steps.
    loss_nats : float
        Final loss, nats per token; may be NaN. 0 if it is not complete.
    loss_se_nats : float or None
        Its standard error.
    n_tokens : int
        Training tokens.
    n_params : Mapping[str, int]
        Parameters by the conventions that the source of N gives.
    flops_per_token : float or None
        As the program reports it.
    evals : Mapping[str, float]
        Other values measured at the end.
    """

    problem: str = ""
    is_at_end: bool = False
    loss_nats: float = 0.0
    loss_se_nats: float | None = None
    n_tokens: int = 0
    n_params: Mapping[str, int] = field(default_factory=dict)
    flops_per_token: float | None = None
    evals: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether the run has its result."""
        return not self.problem


def result_of(
    spec: RunSpec, output: ProgramOutput, out_dir: Path, checkpoint: ProgramCheckpoint | None
) -> ProgramResult:
    """Return the result of a program whose processes have ended.

    A run is complete with a loss on held-out data at its final step, after the planned tokens
    within a step, and a count of its parameters. The exit code does not tell: several trainers
    exit with 0 after a graceful stop.

    Parameters
    ----------
    spec : RunSpec
    output : ProgramOutput
        Read to its end.
    out_dir : Path
        Folder of the program's files; its ``.safetensors`` files count the parameters.
    checkpoint : ProgramCheckpoint or None
        The newest checkpoint, where such files are if the folder has none.
    """
    assert spec.program is not None
    planned, last = final_step(spec), output.last_step or 0
    final = output.final
    reached = max(last, final.step if final is not None else 0)
    # A trainer that counts from 0 shows its last step as one less.
    if reached < planned - 1:
        problem = f"it reached step {reached:,} of {planned:,}"
        if final is not None and isinstance(output, OwnOutput):
            problem += " (write a row after the last step, or `step` in the final line)"
        return ProgramResult(problem=problem)
    if final is None:
        return ProgramResult(
            problem=f"it reached step {reached:,} and wrote no final loss on held-out data",
            is_at_end=True,
        )
    if abs(final.step - planned) > 1:
        return ProgramResult(
            problem=f"its last loss on held-out data ({final.source}) is of step {final.step:,}, "
            f"and the final step is {planned:,}",
            is_at_end=True,
        )
    n_tokens = spec.n_tokens if final.tokens is None else final.tokens
    if abs(n_tokens - spec.n_tokens) > spec.tokens_per_step:
        return ProgramResult(
            problem=f"it saw {n_tokens:,} tokens, and {spec.n_tokens:,} were planned",
            is_at_end=True,
        )
    folders = [out_dir, *(checkpoint.paths if checkpoint is not None else ())]
    counts = (count_safetensors(folder) for folder in folders)
    sizes = sizes_of(spec, output, next(filter(None, counts), None))
    by = spec.program.size_by
    if (problem := difference(sizes)) or by not in sizes:
        missing = f"its size is to come from {by!r}, which gives no number of parameters"
        return ProgramResult(problem=problem or missing, is_at_end=True)
    return ProgramResult(
        is_at_end=True,
        loss_nats=final.loss_nats,
        loss_se_nats=final.loss_se_nats,
        n_tokens=n_tokens,
        n_params={DEFAULT_PARAM_CONVENTION: sizes[by]},
        flops_per_token=output.flops_per_token,
        evals=final.evals,
    )


def record_of(
    attempt: Attempt,
    spec: RunSpec,
    status: str,
    reason: str | None,
    result: ProgramResult | None,
    *,
    last_step: int,
    unique_tokens: int,
    wall_s: float,
) -> RunRecord:
    """Return the record of an attempt.

    Parameters
    ----------
    attempt : Attempt
    spec : RunSpec
    status : str
        ``done`` or ``diverged``.
    reason : str or None
        Why the run diverged.
    result : ProgramResult or None
        None for a run that diverged before its end.
    last_step : int
        Last step shown.
    unique_tokens : int
        Distinct training tokens, 0 if not known: all are taken for distinct.
    wall_s : float
        Seconds of training, over all attempts that led here.
    """
    size = run_size(spec)
    is_done = status == "done" and result is not None
    n_steps = last_step if result is None else spec.n_steps
    n_tokens = n_steps * spec.tokens_per_step if result is None else result.n_tokens
    flops = {name: per_token * n_tokens for name, per_token in size.flops_per_token.items()}
    if result is not None and result.flops_per_token:
        flops[REPORTED] = result.flops_per_token * n_tokens
    return RunRecord(
        run_id=attempt.run.run_id,
        attempt=attempt.number,
        token=attempt.token,
        status=status,
        loss_nats=result.loss_nats if result is not None and is_done else None,
        loss_se_nats=result.loss_se_nats if result is not None and is_done else None,
        n_params={**size.n_params, **(result.n_params if result is not None else {})},
        flops=flops,
        n_tokens=n_tokens,
        unique_tokens=min(unique_tokens or n_tokens, n_tokens),
        n_steps=n_steps,
        wall_s=wall_s,
        diverged_at_step=None if is_done else n_steps,
        reason=reason,
    )


def size_problem(spec: RunSpec, output: ProgramOutput) -> str:
    """Return why the size that a running program reports is not the planned one; empty if it is."""
    return difference(sizes_of(spec, output, None))


def sizes_of(spec: RunSpec, output: ProgramOutput, in_checkpoint: int | None) -> dict[str, int]:
    """Return the parameters of a run by source, `scalelab.sweep.program.SIZE_SOURCES`."""
    assert spec.program is not None
    table = spec.program.n_params or None
    found = {
        "report": output.n_params,
        "checkpoint": in_checkpoint,
        # With a table, a shape only gives placeholders: the program's model may differ from ours.
        "shape": None
        if table or spec.program.size or not has_shape(spec)
        else count_params(spec.shape).total,
        "table": table,
    }
    return {name: count for name, count in found.items() if count}


def difference(sizes: Mapping[str, int]) -> str:
    """Return which two sources disagree about the parameters; empty if none does."""
    for one, other in combinations(sizes, 2):
        a, b = sizes[one], sizes[other]
        if abs(a - b) > MOST_DIFFERENCE * max(a, b):
            return (
                f"two counts of the parameters differ by {abs(a - b) / min(a, b):.1%}: "
                f"{SIZE_WORDS[one]} {a:,}, {SIZE_WORDS[other]} {b:,}. Correct the shape or the "
                "command, or fill a table of sizes with `scalelab program probe`"
            )
    return ""
