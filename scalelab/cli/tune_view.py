"""Output of ``scalelab tune``: the search with its progress, tables and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalelab.cli.layout import Fitting, number_table
from scalelab.cli.options import PlanOptions
from scalelab.cli.output import console, emit_json, runnable, say, warn_here
from scalelab.errors import EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from scalelab.api.tuning_reports import Tuning, TuningAnswer
    from scalelab.launch.proposal import Proposal
    from scalelab.tune.spec import TuneSpec


def search(spec: TuneSpec, asked: dict[str, Any], options: PlanOptions) -> int:
    """Search, fit the laws, print them and return the exit code.

    Parameters
    ----------
    spec : TuneSpec
    asked : dict
        Keywords of `scalelab.api.tuning.tune`: ``predict``, ``level``, ``n_replicates``.
    options : PlanOptions
    """
    from scalelab.api import sweeps, tuning
    from scalelab.cli.plan_view import plan_as_json
    from scalelab.cli.progress import preparing, watching
    from scalelab.cli.sweep_spec import ask
    from scalelab.records.names import check_name

    results, as_json = options.results, options.as_json
    check_name(spec.name, what="tuning")
    tuning.intervals(asked["level"], asked["n_replicates"], spec.seed)
    with preparing() as progress:
        proposal = sweeps.propose(
            spec.sweep,
            results=results,
            device=options.device,
            workers=options.workers,
            is_dry_run=options.dry_run,
            progress=progress,
            allow_source_change=options.allow_source_change,
        )
    bounds = [spec.bounds(row) for row in proposal.plan.rows]
    if not as_json:
        _print_cells(spec, proposal, bounds)
    if options.dry_run:
        if as_json:
            cells = {"name": spec.name, "trials": spec.trials, "bounds": bounds}
            emit_json({**plan_as_json(proposal), **cells, "command": "tune", "dry_run": True})
        return EXIT_OK
    if not options.yes:
        ask(proposal, as_json=as_json, n_times=spec.trials)
    with watching(results, as_json=as_json) as watch:
        found = tuning.tune(spec, proposal, results=results, watch=watch, **asked)
    if as_json:
        emit_json(found.to_dict())
    else:
        _print_end(found)
    return EXIT_INTERRUPTED if found.answer is None else found.answer.exit_code


def _print_cells(
    spec: TuneSpec, proposal: Proposal, bounds: list[dict[str, tuple[float, float]]]
) -> None:
    from scalelab.sweep.size_table import model_label
    from scalelab.units import format_duration, format_quantity, plural

    names = list(dict.fromkeys(name for cell in bounds for name in cell))
    out = console()
    title = f"{spec.name}: {plural(len(bounds), 'cell')}, {plural(spec.trials, 'run')} each"
    table = number_table("N", "D", "shape", *names, title=title)
    for row, cell in zip(proposal.plan.rows, bounds, strict=True):
        table.add_row(
            format_quantity(row.n_params),
            format_quantity(row.spec.n_tokens),
            model_label(row.spec),
            *(
                f"{cell[name][0]:.3g} to {cell[name][1]:.3g}" if name in cell else ""
                for name in names
            ),
        )
    out.print(Fitting(table))
    wall = format_duration(spec.trials * proposal.cost.wall_s)
    early = ", less with pruned trials" if spec.is_pruned else ""
    speed = proposal.cost.speed
    most = f"at most about {wall}" if speed.is_known else f"unknown time ({speed.note})"
    out.print(f"{most} on {speed.n_workers} x {speed.device}{early}", soft_wrap=True)
    for warning in proposal.plan.warnings():
        warn_here(warning, out)


def _print_end(found: Tuning) -> None:
    from scalelab.units import format_duration

    out = console()
    words = ", ".join(f"{count} {state}" for state, count in sorted(found.search.counts.items()))
    out.print(f"{found.name}: {words}, in {format_duration(found.search.wall_s)}.")
    if found.answer is None:
        out.print("Stopped. Run the same command to continue.")
        return
    print_answer(found.answer)
    for name, (middle, low, high) in found.others.items():
        out.print(f"{name} of the best quarter of runs: {middle:.4g} ({low:.4g} to {high:.4g})")
    if found.answer.law is not None:
        words = (
            f"Next: scalelab sweep isoflop --budgets 1e18..1e20 --lr-rule tuned:{found.name} "
            "--dry-run"
        )
        out.print(runnable(words), soft_wrap=True)


def print_answer(answer: TuningAnswer, *, as_json: bool = False) -> None:
    """Print the laws, their recommendation for the requested model, and published rules."""
    if as_json:
        emit_json(answer.to_dict())
        return
    from rich.table import Table

    from scalelab.api.tuning_reports import short_estimate
    from scalelab.units import plural

    out = console()
    law = answer.law
    say(answer.sentence(), out, style="bold")
    if law is not None:
        counts = f"{plural(law.n_rows, 'run')}, {plural(law.n_cells, 'cell')}"
        say(f"{counts}. In brackets: {100 * law.level:g} % intervals.", out, style="dim")
        table = Table(box=None, title="k N^p D^q", title_justify="left")
        for column in ("", "k", "p", "q"):
            table.add_column(column, no_wrap=True)
        for name, one in (("lr", law.lr()), ("batch, tokens", law.batch_tokens())):
            if one is not None:
                table.add_row(name, *(short_estimate(item) for item in (one.k, one.p, one.q)))
        out.print(Fitting(table))
    if answer.lr is not None and answer.n_params is not None and answer.n_tokens is not None:
        _print_prediction(answer, answer.n_params, answer.n_tokens)
    for warning in answer.warnings:
        warn_here(f"{warning.code.replace('_', ' ')}: {warning.message}", out)


def _print_prediction(answer: TuningAnswer, n_params: float, n_tokens: float) -> None:
    from rich.table import Table

    from scalelab.api.tuning_reports import short_estimate
    from scalelab.theory.schedule import published_values
    from scalelab.units import format_quantity

    size = f"N {format_quantity(n_params)}, D {format_quantity(n_tokens)}"
    table = Table(box=None, title=f"Rules at {size}", title_justify="left")
    for column in ("rule", "lr", "batch, tokens", "source"):
        table.add_column(column, no_wrap=column != "source", overflow="fold")
    lr, batch = (
        "-" if item is None else short_estimate(item) for item in (answer.lr, answer.batch_tokens)
    )
    counted = "" if answer.law is None else f", N counted {answer.law.param_convention}"
    table.add_row("this law", lr, batch, f"these runs{counted}")
    for row in published_values(n_params, n_tokens):
        batch = "" if row.batch_tokens is None else format_quantity(row.batch_tokens)
        source = f"{row.source}, N counted {row.param_convention}"
        table.add_row(row.name, f"{row.lr:.3g}", batch, source)
    console().print(Fitting(table))
