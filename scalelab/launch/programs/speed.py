"""Training speed of a user's program: declared, probed, or learned from finished runs.

The built-in trainer is timed before a sweep; a program is not started to time it. Without any of
these sources the time of its runs is unknown, and plans say so.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from scalelab.errors import DataError
from scalelab.launch.programs.source import saved_rates
from scalelab.records.sweep_dir import Results
from scalelab.sweep.cost import Speed
from scalelab.sweep.run_size import run_size

if TYPE_CHECKING:
    from scalelab.sweep.program_table import ProgramTable

Rates = tuple[tuple[float, float], ...]


def table_rates(table: ProgramTable) -> Rates:
    """Return (FLOPs per token, tokens per second) of each row that was probed."""
    found = []
    for row in table.rows():
        rate = dict(row.cells).get("tokens_per_s")
        if row.n_params and isinstance(rate, (int, float)):
            found.append((row.size.planned_per_token, float(rate)))
    return tuple(sorted(found))


def program_speed(base: Speed, declared: float | None, probed: Rates, learned: Rates) -> Speed:
    """Return the speed of a program's runs on the workers of ``base``.

    Parameters
    ----------
    base : Speed
        Gives device, workers and price.
    declared : float or None
        Tokens per second of every run.
    probed, learned : tuple of (float, float)
        FLOPs per token and tokens per second, from a probe and from finished runs.
    """
    rates, note = learned, "learned from finished runs of the sweep"
    if probed:
        rates, note = probed, "tokens/s of the table of sizes"
    if declared:
        rates, note = (), f"program.tokens_per_s = {declared:g}, of every run"
    if not declared and not rates:
        note = "set program.tokens_per_s for an estimate; finished runs will give one"
    return replace(
        base,
        points=(),
        exact=(),
        is_measured=bool(rates),
        note=note,
        max_batched_runs=1,
        is_program=True,
        tokens_per_s=declared or 0.0,
        token_rates=rates,
    )


def saved_speed(base: Speed, results: Results, name: str, run_ids: Iterable[str]) -> Speed:
    """Return the speed of the program of a saved sweep, as `program_speed`."""
    declared, probed = saved_rates(results, name)
    return program_speed(base, declared or None, probed, learned_rates(results, run_ids))


def sweep_run_ids(results: Results, name: str) -> Sequence[str]:
    """Return the runs of a sweep, none if it is new."""
    try:
        return results.load_plan(name).run_ids
    except DataError:
        return ()


def learned_rates(
    results: Results, run_ids: Iterable[str], command: tuple[str, ...] | None = None
) -> Rates:
    """Return FLOPs per token and tokens per second of finished runs, the median of each size.

    With a ``command``, only of runs that have it: a new sweep may take the name of another one.
    """
    found: dict[float, list[float]] = {}
    for run_id in run_ids:
        run = results.run(run_id)
        attempt = run.accepted()
        record = None if attempt is None else attempt.read_record()
        if record is not None and record.status == "done" and record.wall_s:
            spec = run.read_spec()
            if command is not None and (spec.program is None or spec.program.command != command):
                continue
            per_token = run_size(spec).planned_per_token
            found.setdefault(per_token, []).append(record.n_tokens / record.wall_s)
    return tuple((size, statistics.median(rates)) for size, rates in sorted(found.items()))
