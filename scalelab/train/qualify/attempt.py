"""The execution of an attempt: a resumed run keeps its own, another takes the best one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scalelab.records.qualification import way_of, with_way
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec, QualifyRequest
from scalelab.train.execution import possible_execution
from scalelab.train.qualify.choose import RuledOutError, qualified


def attempt_execution(
    runs: Sequence[RunDir],
    request: ExecutionSpec,
    qualify: QualifyRequest | None,
    should_stop: Callable[[], str | None] | None,
) -> tuple[ExecutionSpec, dict[str, Any]]:
    """Return the execution of an attempt without ``auto``, and what to note about the choice.

    Parameters
    ----------
    runs : sequence of RunDir
        The batched runs.
    request : ExecutionSpec
        As asked for.
    qualify : QualifyRequest or None
        Where verdicts are kept, and at which shapes they are measured.
    should_stop : callable
        Called a few times a second during a measurement.

    Returns
    -------
    execution : ExecutionSpec
    note : dict
        Empty if there was nothing to choose. ``requested`` and ``chosen``: step, kernels and
        attention. Where a verdict was used: ``file``, ``shape`` (the nearest qualified one) and
        ``ruled_out`` (ways with status and reason). ``changed``: what a resumed run had begun
        with, and why it cannot keep that.

    Raises
    ------
    RuledOutError
        If the way that was asked for by name is ruled out on this device.
    StoppedError
        When ``should_stop`` returned a text during a measurement.
    """
    spec = runs[0].read_spec()
    kept = possible_execution(runs, request)
    n_runs = len(runs)
    try:
        execution, note = qualified(
            kept, spec, n_runs=n_runs, request_=qualify, should_stop=should_stop
        )
    except RuledOutError as error:
        if way_of(kept) == way_of(request):
            raise
        asked = with_way(kept, way_of(request))
        execution, note = qualified(
            asked, spec, n_runs=n_runs, request_=qualify, should_stop=should_stop
        )
        note["changed"] = {"from": way_of(kept), "reason": error.given}
    if note or way_of(execution) != way_of(request):
        note = {**note, "requested": way_of(request), "chosen": way_of(execution)}
    return execution, note
