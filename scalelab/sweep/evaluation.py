"""When a run evaluates, on how many tokens, and the share of its compute that this takes."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

from scalelab.sweep.run_size import planned_flops
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import TRAIN_TO_FORWARD

MUCH_EVALUATION = 0.2
"""Share of a sweep's compute for evaluation above which the plan warns."""


def evaluation_steps(spec: RunSpec) -> tuple[int, ...]:
    """Return the steps after which a run evaluates during training; the last step is not one."""
    if not spec.eval_every:
        return ()
    n_parts = int(1 / spec.eval_every) + 1
    steps = {round(part * spec.eval_every * spec.n_steps) for part in range(1, n_parts + 1)}
    return tuple(sorted(step for step in steps if 0 < step < spec.n_steps))


def steps_until(steps: Sequence[int], step: int) -> int | None:
    """Return the number of steps from a step to the next of some sorted steps; None after them."""
    index = bisect.bisect_right(steps, step)
    return steps[index] - step if index < len(steps) else None


def evaluated_tokens(spec: RunSpec, n_held_out: int) -> int:
    """Return the tokens that a run predicts in all its evaluations.

    A run that keeps an average of the weights evaluates it too, each time.

    Parameters
    ----------
    spec : RunSpec
    n_held_out : int
        Held-out tokens of the training text.
    """
    each = n_held_out + sum(ref.n_tokens for ref in spec.eval_sets)
    n_times = len(evaluation_steps(spec)) + 1
    return each * n_times * (2 if spec.ema_decay else 1)


def evaluation_share(specs: Iterable[RunSpec], n_held_out: int) -> float:
    """Return the share of evaluation in the FLOPs of training and evaluation of some runs."""
    training = evaluation = 0.0
    for spec in specs:
        flops = planned_flops(spec)
        training += flops
        per_token = flops / spec.n_tokens / TRAIN_TO_FORWARD
        evaluation += per_token * evaluated_tokens(spec, n_held_out)
    return evaluation / (training + evaluation) if training else 0.0
