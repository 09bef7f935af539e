"""An adaptive choice as a person reads it, and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.api.adaptive import ProgressCallbacks
from scalelab.cli.output import console, emit_json, runnable
from scalelab.errors import EXIT_INTERRUPTED, EXIT_OK, RunsFailedError
from scalelab.units import format_flops, format_quantity

if TYPE_CHECKING:
    from rich.console import Console

    from scalelab.api.adaptive import AdaptReport
    from scalelab.api.replay import ReplayReport
    from scalelab.api.sweep_reports import LaunchReport
    from scalelab.launch.adaptive import NextBatch
    from scalelab.launch.base import Watcher
    from scalelab.launch.grid_design import DesignGain

ENDS = {
    "narrow": "The interval is as narrow as was asked.",
    "spent": "What is left of the budget buys no run that would narrow the interval.",
}


@dataclass(slots=True)
class Showing(ProgressCallbacks):
    """What `scalelab.api.adaptive.adapt` tells while it goes on.

    Attributes
    ----------
    results : Path
    as_json : bool
    explains : bool
        Whether every run of a batch is shown with its reason.
    yes : bool
        Whether long batches are launched without asking.
    rounds : list of dict
        What was shown, for the JSON of the end.
    """

    results: Path
    as_json: bool
    explains: bool
    yes: bool
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def on_batch(self, batch: NextBatch, *, is_dry_run: bool) -> None:
        """Show a round, and let a person agree to one that takes long."""
        from scalelab.cli.sweep_spec import ask

        self.rounds.append(round_as_dict(batch))
        if not self.as_json:
            print_round(batch, explains=self.explains)
        if not is_dry_run and not self.yes and batch.stop is None:
            ask(batch.proposal, as_json=self.as_json)

    def on_launch(self, start: Callable[[Watcher], LaunchReport]) -> LaunchReport:
        """Show how a batch runs."""
        from scalelab.cli.progress import watching

        with watching(self.results, as_json=self.as_json) as watch:
            return start(watch)

    def end(self, report: AdaptReport) -> int:
        """Say how it ended, and return the exit code."""
        if self.as_json:
            emit_json(
                {
                    "schema": 1,
                    "command": "sweep adaptive",
                    "name": report.name,
                    "status": report.status,
                    "dry_run": report.status == "planned",
                    **self.rounds[-1],
                    "rounds": self.rounds,
                }
            )
        else:
            out = console()
            if report.status in ENDS:
                out.print(ENDS[report.status])
                out.print(runnable(f"Next: scalelab fit --sweep {report.name}"), soft_wrap=True)
            elif report.status == "interrupted":
                out.print("Stopped. The same command goes on where it stopped.")
            elif report.status == "failed":
                words = runnable(f"Runs failed: see `scalelab status {report.name}`.")
                out.print(words, style="bold red", soft_wrap=True)
        if report.status == "interrupted":
            return EXIT_INTERRUPTED
        return RunsFailedError.exit_code if report.status == "failed" else EXIT_OK


def round_as_dict(batch: NextBatch) -> dict[str, Any]:
    """Return one round as JSON holds it."""
    found = batch.found
    return {
        "target": [
            {
                "n_params": float(found.target["n_params"][i]),
                "n_tokens": float(found.target["n_tokens"][i]),
                "loss_nats": float(found.loss[i]) if batch.n_known else None,
                "low": float(found.low[i]) if batch.n_known else None,
                "high": float(found.high[i]) if batch.n_known else None,
            }
            for i in range(len(found.loss))
        ],
        "width": found.width,
        "width_after_plan": planned_width(batch),
        "n_known": batch.n_known,
        "n_candidates": batch.n_candidates,
        "spend": {"flops": batch.spent, "budget_flops": batch.budget},
        "stop": batch.stop,
        "forms": found.described(),
        "plan_flops": found.plan.flops,
        "next": [
            {
                "run_id": None if batch.proposal.plan.data.is_estimated else row.spec.run_id,
                "n_params": row.n_params,
                "n_tokens": row.spec.n_tokens,
                "flops": row.flops,
                "variance_share": choice.gain,
                "correlation": choice.correlation,
            }
            for row, choice in zip(batch.proposal.plan.rows, found.batch, strict=False)
        ],
    }


def planned_width(batch: NextBatch) -> float:
    """Return the relative width that the whole plan would leave, to first order."""
    plan = batch.found.plan
    share = plan.after / plan.before if plan.before > 0 else 0.0
    return float(batch.found.width * max(share, 0.0) ** 0.5)


def print_round(batch: NextBatch, *, explains: bool) -> None:
    """Print what is believed and what is run next."""
    out, found = console(), batch.found
    n_params, n_tokens = (float(found.target[key][0]) for key in ("n_params", "n_tokens"))
    where = f"target N {format_quantity(n_params)}, D {format_quantity(n_tokens)}"
    if batch.n_known:
        out.print(
            f"{where}: loss {found.loss[0]:.4f} ({found.low[0]:.4f} to {found.high[0]:.4f}), "
            f"interval {100 * found.width:.2f} % wide, from {batch.n_known} runs; "
            f"{format_flops(batch.spent)} of {format_flops(batch.budget)} FLOP spent.",
            style="bold",
            soft_wrap=True,
        )
        forms = ", ".join(
            f"{form['form']} {form['weight']:.2f} (misfit {100 * float(form['misfit']):.1f} %, "
            f"noise {100 * float(form['noise']):.2f} %)"
            for form in found.described()
        )
        out.print(f"forms: {forms}", soft_wrap=True)
    else:
        out.print(f"{where}: no run yet; published laws alone decide the start.", style="bold")
    rows = batch.proposal.plan.rows
    if not rows:
        return
    cost = sum(row.flops for row in rows)
    out.print(
        f"next: {len(rows)} of {batch.n_candidates} runs for {format_flops(cost)} FLOP; the whole "
        f"plan of {len(found.plan.choices)} runs would leave {100 * planned_width(batch):.2f} %.",
        soft_wrap=True,
    )
    if explains:
        _print_reasons(out, batch)


def _print_reasons(out: Console, batch: NextBatch) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("N", "D", "FLOPs", "of the budget", "takes off", "correlation", "why"):
        table.add_column(name, justify="left" if name == "why" else "right")
    for row, choice in zip(batch.proposal.plan.rows, batch.found.batch, strict=False):
        table.add_row(
            format_quantity(row.n_params),
            format_quantity(row.spec.n_tokens),
            format_flops(row.flops),
            f"{100 * row.flops / batch.budget:.2f} %",
            f"{100 * choice.gain:.1f} %",
            f"{choice.correlation:.2f}",
            _why(choice.gain, choice.correlation, row.flops / batch.budget),
        )
    out.print(table)
    out.print(
        "takes off: share of the target's variance, after the runs chosen before it; correlation: "
        "of the log losses here and at the target as they are uncertain now.",
        style="dim",
        soft_wrap=True,
    )


def _why(gain: float, correlation: float, cost: float) -> str:
    """Return the reason in words, from the three numbers beside it."""
    if correlation**2 >= 0.5:
        return "errs as the target does"
    if gain >= cost:
        return "cheap for what it takes off"
    return "settles what the runs before it leave open"


def print_gain(gain: DesignGain) -> None:
    """Print what an optimal grid gains over the plain one."""
    console().print(
        f"design: at {format_flops(gain.target_flops)} FLOP the plain grid would leave a standard "
        f"deviation of {100 * gain.width_plain:.2f} %, these runs {100 * gain.width_optimal:.2f} % "
        f"for the same FLOPs; they reach that of the plain grid with {gain.flops_share:.2f} of "
        "its FLOPs (by the priors alone: nothing has been run). Sizes differ between budgets, so "
        "approach 2 has less to stand on.",
        soft_wrap=True,
    )


def print_replay(report: ReplayReport) -> None:
    """Print what a choice among existing runs came to."""
    answer, out = report.to_dict(), console()
    spend = answer["spend"]
    out.print(
        f"{answer['n_rows']} of {len(report.pool.observations)} runs for "
        f"{format_flops(spend['flops'])} FLOP, {100 * spend['share']:.2f} % of the pool.",
        style="bold",
    )
    errors = answer["relative_error"]
    out.print(
        f"On {len(report.target.observations)} target rows: R^2 {answer['r2']:.3f}, relative error "
        f"{100 * errors['mean']:.2f} % in the mean, {100 * errors['max']:.2f} % at most; "
        f"90 % interval {100 * answer['width']:.2f} % wide."
    )
    forms = ", ".join(f"{form['form']} {form['weight']:.2f}" for form in answer["forms"])
    out.print(f"Forms by weight: {forms}.")
    out.print("Rows (from 0), in order: " + " ".join(str(row) for row in answer["rows"]))
