"""Launch a sweep, or go on with one, and leave its results collected.

The run folders are the truth: launching the same sweep again does what is missing and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scalelab.corpus.dataset import open_dataset
from scalelab.errors import DataError, SpecError
from scalelab.launch.base import LaunchReport, LaunchRequest, LaunchView, Watcher
from scalelab.launch.local.caps import refuse_local_over_cap
from scalelab.launch.local.pool import launch_local
from scalelab.launch.proposal import Proposal
from scalelab.launch.slurm.execution import jobs_execution
from scalelab.launch.speed import machine_speed, slurm_speed, usd_per_gpu_hour
from scalelab.launch.trackers import following
from scalelab.records.files import write_atomically
from scalelab.records.sweep_dir import Results, SavedPlan
from scalelab.store.collect import collect
from scalelab.sweep.batched_runs import choose_batched_runs
from scalelab.sweep.cost import Speed, seconds_by_id
from scalelab.sweep.run_spec import ExecutionSpec, RunSpec
from scalelab.sweep.spec import LauncherTable, said_plainly
from scalelab.sweep.trunk import predecessors, trunk_id
from scalelab.theory.accounting import DEFAULT_FLOP_CONVENTION, train_flops

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
LAUNCHER_FILE = "launcher.json"


def launch(
    proposal: Proposal,
    results: Results,
    watch: Watcher,
    *,
    extend: bool = False,
    is_detached: bool = False,
) -> LaunchReport:
    """Save a proposal's plan, bring its runs to their end, and collect.

    Parameters
    ----------
    proposal : Proposal
        Made with ``is_dry_run=False``.
    results : Results
    watch : callable
        Told what happens.
    extend : bool
        Whether the runs may be added to a sweep of that name with another specification.
    is_detached : bool
        Whether to leave once everything is submitted, on SLURM.

    Raises
    ------
    UsageError
        When a run would pass over the text too often or cannot be shared by its GPUs, a sweep of
        that name holds another specification, or another process launches it.
    """
    proposal.plan.refuse_repeats(allow_repeats=proposal.sweep.allow_repeats)
    if proposal.sweep.launcher.name == "slurm":
        todo = [r.spec for r in proposal.plan.rows if r.spec.run_id not in proposal.finished]
        jobs_execution(proposal.sweep.launcher.slurm, proposal.execution, todo)
    with _saying_what_the_disk_did(results.path):
        saved = results.save_plan(proposal.plan, proposal.sweep.science(), extend=extend)
        save_launcher(results, saved.name, proposal.sweep.launcher)
    return resume(
        saved,
        results,
        watch,
        execution=proposal.execution,
        n_workers=proposal.cost.speed.n_workers,
        is_detached=is_detached,
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
) -> LaunchReport:
    """Bring the runs of a saved plan that are not finished to their end, and collect.

    They are executed where the sweep was last launched: here, or on SLURM.

    Raises
    ------
    SpecError
        When the spec of a run is missing or was edited; nothing was started then.
    UsageError
        When what is left would pass a cap, another process launches this sweep, or a run cannot be
        shared by its GPUs.
    """
    with _saying_what_the_disk_did(results.path):
        specs = {run_id: results.run(run_id).read_spec() for run_id in saved.run_ids}
        flops = {
            run_id: train_flops(spec.shape, spec.seq_len, spec.n_tokens)[DEFAULT_FLOP_CONVENTION]
            for run_id, spec in specs.items()
        }
        launcher = saved_launcher(results, saved.name)
        request = LaunchRequest(
            results=results,
            sweep=saved.name,
            run_ids=launch_order(specs, flops),
            execution=execution,
            n_workers=n_workers,
            retry_failed=retry_failed,
            batched_runs=_batched_runs(specs, results, execution, n_workers),
        )
        try:
            with following(launcher.trackers, results, saved.name, saved.run_ids) as follow:
                report = _launch(request, launcher, specs, _also(watch, follow), is_detached)
        except BaseException:
            # What ended the launch is what must be read, whatever else this disk refuses.
            with contextlib.suppress(Exception):
                collect(results.path)
            raise
        collect(results.path)
        return report


def _batched_runs(
    specs: Mapping[str, RunSpec], results: Results, execution: ExecutionSpec, n_workers: int
) -> dict[str, int]:
    """Return the most runs in each run's step where the workers of this machine train them."""
    todo = [s for run_id, s in specs.items() if results.run(run_id).accepted() is None]
    speed = machine_speed(execution.device, n_workers)
    packs = choose_batched_runs(todo, speed.batching_gains, n_workers)
    return {run_id: batching.size for run_id, batching in packs.items()}


def launch_order(specs: Mapping[str, RunSpec], flops: Mapping[str, float]) -> tuple[str, ...]:
    """Return the longest runs first; branches of a trunk together, the shortest of them first."""
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


def _launch(
    request: LaunchRequest,
    launcher: LauncherTable,
    specs: Mapping[str, RunSpec],
    watch: Watcher,
    is_detached: bool,
) -> LaunchReport:
    todo = [
        spec for run_id, spec in specs.items() if request.results.run(run_id).accepted() is None
    ]
    if launcher.name == "local":
        device = request.execution.device
        speed = machine_speed(device, request.n_workers)
        done = frozenset(specs).difference(spec.run_id for spec in todo)
        left = _seconds(specs, request.results, speed, skip=done)
        refuse_local_over_cap(launcher.slurm, left.values(), speed, device=device)
        return launch_local(request, watch)
    from scalelab.launch.slurm.launcher import SlurmOptions, launch_slurm

    execution = jobs_execution(launcher.slurm, request.execution, todo)
    request = replace(request, execution=execution)
    speed = slurm_speed(launcher.slurm, execution)
    options = SlurmOptions(
        table=launcher.slurm,
        seconds=_seconds(specs, request.results, speed),
        usd_per_gpu_hour=usd_per_gpu_hour(launcher.slurm),
        is_detached=is_detached,
    )
    return launch_slurm(request, options, watch)


@contextlib.contextmanager
def _saying_what_the_disk_did(results: Path) -> Iterator[None]:
    """Put a full disk or a folder that cannot be written into words; nothing is lost by either."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise DataError(
            f"results folder {results}: {error.strerror}",
            "a folder that can be written, on a disk with room",
            "Make room or mend the rights, then `scalelab resume`; what is done is kept.",
        ) from None


def _also(watch: Watcher, follow: Callable[[], None]) -> Watcher:
    def both(view: LaunchView) -> None:
        watch(view)
        follow()

    return both


def _seconds(
    specs: Mapping[str, RunSpec],
    results: Results,
    speed: Speed,
    *,
    skip: frozenset[str] = frozenset(),
) -> dict[str, float]:
    n_eval = {
        fingerprint: open_dataset(results.dataset(fingerprint)).n_eval_tokens
        for fingerprint in {spec.data_fingerprint for spec in specs.values()}
    }
    return seconds_by_id(list(specs.values()), n_eval, speed, skip=skip)


def save_launcher(results: Results, name: str, launcher: LauncherTable) -> None:
    """Write down where a sweep is launched, for whoever goes on with it."""
    path = results.sweep(name) / LAUNCHER_FILE
    write_atomically(path, launcher.model_dump_json(indent=1))


def changed_launcher(launcher: LauncherTable, changes: Mapping[str, Any]) -> LauncherTable:
    """Return a launcher with other options.

    Raises
    ------
    UsageError
        When an option is out of its range.
    """
    try:
        slurm = {**launcher.slurm.model_dump(), **changes.get("slurm", {})}
        return LauncherTable.model_validate({**launcher.model_dump(), **changes, "slurm": slurm})
    except ValidationError as error:
        raise said_plainly(error, "the options") from None


def saved_launcher(results: Results, name: str) -> LauncherTable:
    """Return where a sweep was last launched: here where nothing is written down.

    Raises
    ------
    SpecError
        When what is written down cannot be read.
    """
    path: Path = results.sweep(name) / LAUNCHER_FILE
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return LauncherTable.model_validate(content)
    except FileNotFoundError:
        return LauncherTable()
    except ValueError as error:
        raise SpecError(
            f"launcher {path}: {error}",
            "what `scalelab sweep` wrote",
            "Run the sweep's command again: it writes it anew.",
        ) from None
