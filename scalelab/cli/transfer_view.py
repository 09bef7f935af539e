"""Output of ``scalelab tune --transfer``: plan, progress, table and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalelab.cli.layout import Fitting, number_table
from scalelab.cli.options import PlanOptions
from scalelab.cli.output import console, emit_json, runnable, warn_here
from scalelab.errors import EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from scalelab.api.transfer import Transfer
    from scalelab.launch.proposal import Proposal
    from scalelab.tune.spec import TuneSpec
    from scalelab.tune.transfer_fit import Cell, Drift


def check_transfer(
    spec: TuneSpec, parametrization: str | None, level: float, options: PlanOptions
) -> int:
    """Train the runs, print each best learning rate and its drift, and return the exit code."""
    from scalelab.api import sweeps, transfer
    from scalelab.cli.plan_view import plan_as_json
    from scalelab.cli.progress import preparing, watching
    from scalelab.cli.sweep_spec import ask
    from scalelab.records.names import check_name

    results, as_json = options.results, options.as_json
    check_name(spec.name, what="transfer check")
    with preparing() as progress:
        base = sweeps.propose(
            spec.sweep,
            results=results,
            device=options.device,
            workers=options.workers,
            is_dry_run=options.dry_run,
            progress=progress,
        )
    proposal = transfer.transfer_proposal(
        spec, base, results=results, parametrization=parametrization
    )
    if not as_json:
        _print_plan(proposal)
    if options.dry_run:
        if as_json:
            emit_json({**plan_as_json(proposal), "command": "tune", "dry_run": True})
        return EXIT_OK
    if not options.yes:
        ask(proposal, as_json=as_json)
    with watching(results, as_json=as_json) as watch:
        found = transfer.transfer(spec, proposal, results=results, watch=watch, level=level)
    if as_json:
        emit_json(found.to_dict())
    else:
        _print_end(found, options)
    return EXIT_INTERRUPTED if found.is_interrupted else EXIT_OK


def _print_plan(proposal: Proposal) -> None:
    from scalelab.units import format_duration, format_quantity, plural

    plan = proposal.plan
    rows = {row.spec.shape: row for row in plan.rows}
    lrs = sorted({row.spec.lr for row in plan.rows})
    out = console()
    table = number_table(
        "shape", "N", "D", "steps", "batch", title=f"{plan.name}: {plural(len(plan.rows), 'run')}"
    )
    for shape, row in rows.items():
        table.add_row(
            shape.label(),
            format_quantity(row.n_params),
            format_quantity(row.spec.n_tokens),
            f"{row.spec.n_steps:,}",
            f"{row.spec.batch_seqs}x{row.spec.seq_len}",
        )
    out.print(Fitting(table))
    out.print(
        f"each with {plural(len(lrs), 'learning rate')}, {lrs[0]:.3g} to {lrs[-1]:.3g}, under "
        f"{plan.rules['parametrization']}",
        soft_wrap=True,
    )
    speed = proposal.cost.speed
    out.print(
        f"about {format_duration(proposal.cost.wall_s)} on {speed.n_workers} x {speed.device}",
        soft_wrap=True,
    )
    for warning in plan.warnings():
        warn_here(warning, out)


def _print_end(found: Transfer, options: PlanOptions) -> None:
    from scalelab.api.transfer import FIGURE_FILE
    from scalelab.tune.transfer_fit import HELD_FACTOR

    out = console()
    if found.is_interrupted:
        out.print("Stopped. Run the same command to continue.")
        return
    shapes = list(dict.fromkeys(cell.shape for cell in found.cells))
    table = number_table(
        "parametrization", *shapes, title=f"Best learning rate, {found.level:.0%} intervals"
    )
    table.columns[0].justify = "left"
    by_kind: dict[str, dict[str, Cell]] = {}
    for cell in found.cells:
        by_kind.setdefault(cell.parametrization, {})[cell.shape] = cell
    for kind, cells in by_kind.items():
        table.add_row(kind, *(_in_words(cells[shape]) for shape in shapes))
    out.print(Fitting(table))
    drifts = number_table(
        *("parametrization", "axis", "factor", f"within {HELD_FACTOR:g}"),
        title="Largest best learning rate / smallest",
    )
    for column in drifts.columns[:2]:
        column.justify = "left"
    for drift in found.drifts:
        axis = f"{drift.axis} {drift.sizes[0]} to {drift.sizes[-1]}"
        held = {True: "yes", False: "no", None: "unknown"}[drift.has_held]
        drifts.add_row(drift.parametrization, axis, _factor_words(drift), held)
    if found.drifts:
        out.print(Fitting(drifts))
    if any(cell.is_bound for cell in found.cells):
        words = "An optimum at an end of the rates is a bound (~). Widen --lr to find it."
        out.print(f"warning: {words}", style="yellow", soft_wrap=True)
    place = options.results / "sweeps" / found.name / FIGURE_FILE
    out.print(runnable(f"Figure: {place}"), soft_wrap=True)


def _factor_words(drift: Drift) -> str:
    if drift.factor is None or drift.low is None:
        return "-"
    if drift.is_bound or drift.high is None:
        return f">= {drift.factor:.2f} ({drift.low:.2f}, )"
    return f"{drift.factor:.2f} ({drift.low:.2f}, {drift.high:.2f})"


def _in_words(cell: Cell) -> str:
    """Return ``0.012 (0.01, 0.015)``; ``~`` marks a bound."""
    if cell.best_lr is None:
        return "-"
    mark = "~" if cell.is_bound else ""
    if cell.low is None or cell.high is None:
        return f"{mark}{cell.best_lr:.3g}"
    return f"{mark}{cell.best_lr:.3g} ({cell.low:.3g}, {cell.high:.3g})"
