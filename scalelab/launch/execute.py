"""Launching or resuming a sweep: train what is missing, then collect the results.

The run folders are the source of truth: launching the same sweep again trains only missing runs.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from scalelab.corpus.mixed import open_data
from scalelab.errors import DataError, UsageError
from scalelab.launch.base import LaunchReport, LaunchRequest, LaunchView, Watcher
from scalelab.launch.caps import refuse_over_cap
from scalelab.launch.executable import require_executable
from scalelab.launch.largest_last import (
    Halves,
    detached_error,
    halves_of,
    have_ended,
    launch_halves,
    register_largest,
)
from scalelab.launch.local.pool import launch_local
from scalelab.launch.programs.source import require_same_source, saved_version
from scalelab.launch.programs.speed import saved_speed
from scalelab.launch.proposal import Proposal
from scalelab.launch.prune import detached_error as watchless_error
from scalelab.launch.publishing import publishing
from scalelab.launch.saved_options import save_launch, saved_options
from scalelab.launch.slurm.resources import run_gpus, run_needs
from scalelab.launch.speed import machine_speed, slurm_speed, usd_per_gpu_hour, with_devices
from scalelab.launch.trackers import following
from scalelab.launch.verdicts import local_verdict
from scalelab.records.states import FINAL
from scalelab.records.sweep_dir import Results, SavedPlan
from scalelab.store.collect import collect
from scalelab.sweep.batched_runs import choose_batched_runs
from scalelab.sweep.cost import Speed, seconds_by_id
from scalelab.sweep.execution import ExecutionSpec, representative_specs
from scalelab.sweep.run_size import planned_flops
from scalelab.sweep.run_spec import RunSpec
from scalelab.sweep.tables import LauncherTable
from scalelab.sweep.trunk import predecessors, trunk_id

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


def save(proposal: Proposal, results: Results, *, extend: bool = False) -> SavedPlan:
    """Save a proposal's plan, the spec of each run and the options of `resume`; train nothing.

    Raises
    ------
    UsageError
        If a run repeats its text too often or cannot be split over its GPUs, or a sweep of that
        name has another specification.
    """
    proposal.plan.refuse_repeats(allow_repeats=proposal.sweep.allow_repeats)
    if proposal.sweep.launcher.name == "slurm":
        todo = [r for r in proposal.plan.rows if r.spec.run_id not in proposal.finished]
        budgets = {row.spec.run_id: row.budget_flops for row in todo}
        table = proposal.sweep.launcher.slurm
        run_needs(table, proposal.execution, [row.spec for row in todo], budgets)
    if not extend:
        _refuse_other_version(proposal, results)
    with _disk_errors_explained(results.path):
        saved = results.save_plan(proposal.plan, proposal.sweep.science(), extend=extend)
        save_launch(results, saved.name, proposal.sweep)
    return saved


def _refuse_other_version(proposal: Proposal, results: Results) -> None:
    """Raise UsageError if the runs of a saved sweep are those of another version of a program."""
    now = next((r.spec.program.version for r in proposal.plan.rows if r.spec.program), "")
    planned = saved_version(results, proposal.plan.name) if now else ""
    if planned and planned != now:
        raise UsageError(
            f"sweep {proposal.plan.name!r}, whose runs were planned with version {planned} of the "
            f"program; its files are now version {now}",
            "the version of the program that the sweep has, because it is part of each run",
            f"Write --name {proposal.plan.name}-2 to train all runs with the new version, or add "
            "--allow-source-change: unfinished runs then train with the new files and keep their "
            "run_ids.",
        )


def launch(
    proposal: Proposal,
    results: Results,
    watch: Watcher,
    *,
    extend: bool = False,
    is_detached: bool = False,
) -> LaunchReport:
    """Save a proposal's plan, train its runs, and collect the results.

    Parameters
    ----------
    proposal : Proposal
        Made with ``is_dry_run=False``.
    results : Results
    watch : callable
        Called with a `LaunchView` at every change.
    extend : bool
        Whether to add the runs to a sweep of that name with another specification.
    is_detached : bool
        On SLURM, whether to return once every job is submitted.

    Raises
    ------
    UsageError
        If a run repeats its text too often or cannot be split over its GPUs, a sweep of that name
        has another specification, or another process launches it.
    """
    saved = save(proposal, results, extend=extend)
    return resume(
        saved,
        results,
        watch,
        execution=proposal.execution,
        n_workers=proposal.cost.speed.n_workers,
        is_detached=is_detached,
        allow_source_change=proposal.allows_source_change,
    )


def resume(
    saved: SavedPlan,
    results: Results,
    watch: Watcher,
    *,
    execution: ExecutionSpec,
    n_workers: int,
    retry_failed: bool = False,
    is_detached: bool = False,
    allow_source_change: bool = False,
) -> LaunchReport:
    """Train the unfinished runs of a saved plan, and collect the results.

    The launcher is the one that the sweep was last launched with: local or SLURM. With
    ``allow_source_change``, a program may train runs that were planned with other files of it.

    Raises
    ------
    SpecError
        If the spec of a run is missing or was edited; no run was started.
    UsageError
        If the unfinished runs exceed a cap, another process launches this sweep, or a run cannot
        be split over its GPUs or executed as requested.
    """
    with _disk_errors_explained(results.path):
        specs = {run_id: results.run(run_id).read_spec() for run_id in saved.run_ids}
        flops = {run_id: planned_flops(spec) for run_id, spec in specs.items()}
        todo = [s for run_id, s in specs.items() if results.run(run_id).accepted() is None]
        note = require_same_source(results, saved.name, todo, allow_change=allow_source_change)
        if note:
            print(f"scalelab: {note}", file=sys.stderr)
        launcher = saved_options(results, saved.name, LauncherTable)
        if is_detached and launcher.stop_hopeless:
            raise watchless_error()
        request = LaunchRequest(
            results=results,
            sweep=saved.name,
            run_ids=launch_order(specs, flops),
            execution=execution,
            n_workers=n_workers,
            retry_failed=retry_failed,
            qualify=representative_specs(specs.values()),
            stop_hopeless=launcher.stop_hopeless,
        )
        try:
            with (
                publishing(results.path) as publish,
                following(launcher.trackers, results, saved.name, saved.run_ids) as follow,
            ):
                report = _launch_in_order(
                    request,
                    launcher,
                    specs,
                    saved.budgets,
                    halves_of(saved, request.run_ids, flops),
                    _all(watch, publish, lambda view: follow()),
                    is_detached,
                )
        except BaseException:
            # Report the error that ended the launch, even if collecting fails too.
            with contextlib.suppress(Exception):
                collect(results.path)
            raise
        collect(results.path)
        return report


def launch_order(specs: Mapping[str, RunSpec], flops: Mapping[str, float]) -> tuple[str, ...]:
    """Return run_ids, longest run first; the branches of a trunk together, shortest first."""
    before = predecessors(specs.values())
    trunks = {run_id: trunk_id(specs[run_id]) for run_id in before}
    trunks.update({spec.run_id: trunk_id(spec) for spec in before.values()})
    longest: dict[str, float] = {}
    for run_id, trunk in trunks.items():
        longest[trunk] = max(longest.get(trunk, 0.0), flops[run_id])

    def key(run_id: str) -> tuple[float, str, float]:
        trunk = trunks.get(run_id)
        return (
            (-flops[run_id], "", 0.0) if trunk is None else (-longest[trunk], trunk, flops[run_id])
        )

    return tuple(sorted(specs, key=key))


def _launch_in_order(
    request: LaunchRequest,
    launcher: LauncherTable,
    specs: Mapping[str, RunSpec],
    budgets: Mapping[str, float | None],
    halves: Halves | None,
    watch: Watcher,
    is_detached: bool,
) -> LaunchReport:
    """Launch all runs at once, or the largest last; register a forecast where that is due."""

    def launch_part(part: LaunchRequest, watch_part: Watcher) -> LaunchReport:
        return _launch(part, launcher, specs, budgets, watch_part, is_detached)

    if halves is None:
        return launch_part(request, watch)
    if have_ended(halves.smaller, request.results):
        said = register_largest(halves, specs, request)
        return replace(launch_part(request, watch), forecast=said)
    if not launcher.largest_last:
        return launch_part(request, watch)
    if is_detached:
        raise detached_error()
    return launch_halves(launch_part, request, halves, specs, watch)


def _launch(
    request: LaunchRequest,
    launcher: LauncherTable,
    specs: Mapping[str, RunSpec],
    budgets: Mapping[str, float | None],
    watch: Watcher,
    is_detached: bool,
) -> LaunchReport:
    todo = [
        spec for run_id, spec in specs.items() if request.results.run(run_id).accepted() is None
    ]
    is_local = launcher.name == "local"
    is_program = request.execution.program is not None
    if not is_program:
        verdict = local_verdict(request.results, request.execution) if is_local else None
        require_executable(request.execution, todo, verdict)

    def own(speed: Speed) -> Speed:
        return saved_speed(speed, request.results, request.sweep, specs) if is_program else speed

    if is_local:
        how = request.execution
        precision = todo[0].precision if todo else None
        speed = own(machine_speed(how, request.n_workers, precision=precision))
        batches = choose_batched_runs(
            todo,
            speed.batching_gains,
            request.n_workers,
            most=speed.max_batched_runs,
        )
        sizes = {run_id: batch.size for run_id, batch in batches.items()}
        done = frozenset(specs).difference(spec.run_id for spec in todo)
        seconds = _seconds(specs, request.results, speed, done)
        hours, price = sum(seconds.values()) / 3600, speed.usd_per_worker_hour
        is_gpu = how.device == "cuda"
        refuse_over_cap(
            launcher.slurm, 0.0, hours, price, is_gpu=is_gpu, is_known=speed.is_known or not todo
        )
        return launch_local(replace(request, batched_runs=sizes), watch)
    from scalelab.launch.slurm.arrays import SlurmOptions
    from scalelab.launch.slurm.launcher import launch_slurm

    table = launcher.slurm
    left = [s for s in specs.values() if request.results.run(s.run_id).status() not in FINAL]
    execution = replace(request.execution, tensor_parallel=table.tensor_parallel)
    base = own(slurm_speed(table, execution))
    if not base.is_known:
        refuse_over_cap(table, 0.0, 0.0, 0.0, is_known=not left)
    speed = with_devices(base, table, run_gpus(table, specs.values(), budgets))
    options = SlurmOptions(
        table=table,
        needs=run_needs(table, execution, left, budgets),
        seconds=_seconds(specs, request.results, speed),
        usd_per_gpu_hour=usd_per_gpu_hour(launcher.slurm),
        is_detached=is_detached,
    )
    return launch_slurm(replace(request, execution=execution), options, watch)


@contextlib.contextmanager
def _disk_errors_explained(results: Path) -> Iterator[None]:
    """Raise DataError for a full disk or a folder that cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise DataError(
            f"results folder {results}: {error.strerror}",
            "a folder that you can write, on a disk with free space",
            "Free some space or change the permissions, then run `scalelab resume`. "
            "No results were lost.",
        ) from None


def _all(*watchers: Watcher) -> Watcher:
    def each(view: LaunchView) -> None:
        for watch in watchers:
            watch(view)

    return each


def _seconds(
    specs: Mapping[str, RunSpec], results: Results, speed: Speed, skip: frozenset[str] = frozenset()
) -> dict[str, float]:
    if speed.is_program:
        return seconds_by_id(list(specs.values()), {}, speed, skip=skip)
    n_eval = {
        fingerprint: open_data(results.dataset(fingerprint)).n_eval_tokens
        for fingerprint in {spec.data_fingerprint for spec in specs.values()}
    }
    return seconds_by_id(list(specs.values()), n_eval, speed, skip=skip)
