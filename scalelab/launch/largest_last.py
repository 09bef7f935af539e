"""Training the largest budget of a sweep last, with forecasts of its runs registered before."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from scalelab.errors import NotIdentifiedError, ScalelabError, UsageError
from scalelab.launch.base import LaunchReport, LaunchRequest, LaunchView, Watcher
from scalelab.records.forecasts import forecast_path, save_forecast
from scalelab.records.names import MAX_NAME_LENGTH
from scalelab.records.states import ENDED, FINAL
from scalelab.records.sweep_dir import Results, SavedPlan
from scalelab.store.collect import collect
from scalelab.sweep.largest import largest_runs
from scalelab.sweep.option import KINDS
from scalelab.sweep.run_size import run_size
from scalelab.sweep.run_spec import RunSpec
from scalelab.units import format_flops, plural

LEVEL = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Halves:
    """The runs of a sweep in two parts.

    Attributes
    ----------
    smaller, largest : tuple of str
        run_ids in the order of the launch; both have at least one.
    name : str
        Name of the registered forecast.
    """

    smaller: tuple[str, ...]
    largest: tuple[str, ...]
    name: str


def halves_of(
    saved: SavedPlan, run_ids: Collection[str], flops: Mapping[str, float]
) -> Halves | None:
    """Return the smaller and the largest runs of a sweep; None if it has one budget only."""
    largest = largest_runs(saved.budgets, flops)
    smaller = tuple(run_id for run_id in run_ids if run_id not in largest)
    if not smaller or saved.kind not in KINDS:
        return None
    size = max(saved.budgets.get(run_id) or flops[run_id] for run_id in largest)
    ending = f"-{format_flops(size)}"
    return Halves(
        smaller=smaller,
        largest=tuple(run_id for run_id in run_ids if run_id in largest),
        name=saved.name[: MAX_NAME_LENGTH - len(ending)] + ending,
    )


def have_ended(run_ids: Collection[str], results: Results) -> bool:
    """Return whether each run has a result or has failed."""
    return all(results.run(run_id).status() in ENDED for run_id in run_ids)


def detached_error() -> UsageError:
    """Return the error for a launcher that may not leave before the smaller runs have ended."""
    return UsageError(
        "--largest-last with --detach",
        "a launcher that waits for the smaller budgets",
        "Remove --detach and keep the launcher running, for example in tmux. Or launch the smaller "
        "budgets alone, and add the largest with --extend after they have ended.",
    )


def launch_halves(
    launch: Callable[[LaunchRequest, Watcher], LaunchReport],
    request: LaunchRequest,
    halves: Halves,
    specs: Mapping[str, RunSpec],
    watch: Watcher,
) -> LaunchReport:
    """Train the smaller runs, register forecasts of the largest, and train these."""
    waiting = dict.fromkeys(halves.largest, "planned")
    started_s = time.time()

    def watch_first(view: LaunchView) -> None:
        watch(replace(view, statuses={**view.statuses, **waiting}))

    first = launch(replace(request, run_ids=halves.smaller), watch_first)
    if first.is_interrupted:
        return replace(first, statuses={**first.statuses, **waiting})
    said = register_largest(halves, specs, request)
    if said:
        statuses = {**first.statuses, **waiting}
        watch(LaunchView(statuses=statuses, running=(), started_s=started_s, note=said))
    # Finished runs locate the trunks of branches. Cancelled and failed ones stay as they are.
    ended = tuple(run_id for run_id in halves.smaller if first.statuses[run_id] in FINAL)

    def watch_last(view: LaunchView) -> None:
        statuses = {**first.statuses, **view.statuses}
        watch(replace(view, statuses=statuses, started_s=started_s))

    last = launch(replace(request, run_ids=(*ended, *halves.largest)), watch_last)
    return LaunchReport(
        statuses={
            run_id: {**first.statuses, **last.statuses}[run_id] for run_id in request.run_ids
        },
        n_started=first.n_started + last.n_started,
        wall_s=first.wall_s + last.wall_s,
        is_interrupted=last.is_interrupted,
        forecast=said,
    )


def register_largest(halves: Halves, specs: Mapping[str, RunSpec], request: LaunchRequest) -> str:
    """Register forecasts of the largest runs from the smaller ones, and return what was done.

    Nothing is registered, and the answer is empty, if one of the largest runs has begun or the
    forecast is registered already.
    """
    results = request.results
    has_begun = any(results.run(run_id).attempts() for run_id in halves.largest)
    if has_begun or forecast_path(results.path, halves.name).exists():
        return ""
    collect(results.path)
    try:
        return _register(results.path, halves, specs, request.sweep)
    except (ScalelabError, ArithmeticError, ValueError) as error:
        # A forecast that fails must not end the sweep.
        return f"No forecast of the largest runs is registered: {error}"


def _register(results: Path, halves: Halves, specs: Mapping[str, RunSpec], sweep: str) -> str:
    """Register the forecasts that the smaller runs can answer, and return what was done."""
    from scalelab.fit.bootstrap import BootstrapSpec
    from scalelab.fit.parametric import fit_parametric
    from scalelab.forecast.allocate import parse_request
    from scalelab.forecast.averaged_forecast import average_forecast
    from scalelab.forecast.extrapolation import fitted_range
    from scalelab.forecast.registered import registration
    from scalelab.forecast.size_column import fit_counts
    from scalelab.store.finished_runs import begun_runs
    from scalelab.store.read_options import ReadOptions
    from scalelab.store.results import read_results

    rows = read_results(results, sweep, ReadOptions()).observations
    averaged, span = fit_counts(rows), fitted_range(rows)
    found, refused = [], ""
    for question in _questions(halves.largest, specs, rows.param_convention):
        try:
            asked = parse_request(question)
            found.append(average_forecast(averaged, asked, fitted=span, level=LEVEL))
        except NotIdentifiedError as error:
            refused = str(error)
    if not found:
        return f"No forecast of the largest runs is registered: {refused}"
    law = fit_parametric(rows, bootstrap=BootstrapSpec(k=0))
    made = registration(halves.name, law, averaged, rows, found, begun_runs(results))
    path = forecast_path(results, halves.name)
    save_forecast(path, made.to_dict())
    return f"{plural(len(found), 'forecast')} of the largest runs registered in {path}."


def _questions(
    run_ids: Collection[str], specs: Mapping[str, RunSpec], convention: str
) -> dict[str, None]:
    """Return N and D of runs as questions, each once, with N in the count of the fitted rows."""
    sizes = {r: run_size(specs[r]) for r in run_ids}
    counts = {r: {**size.n_params, "active": size.active} for r, size in sizes.items()}
    return dict.fromkeys(
        f"N={counts[run_id][convention]:.0f},D={specs[run_id].n_tokens:.0f}" for run_id in run_ids
    )
