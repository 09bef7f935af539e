"""Output of ``scalelab sweep adaptive``: rounds and results as text and JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scalelab.api.adaptive import ProgressCallbacks
from scalelab.cli.layout import Fitting, number_table
from scalelab.cli.options import PlanOptions
from scalelab.cli.output import console, emit_json, runnable
from scalelab.errors import EXIT_INTERRUPTED, EXIT_OK, RunsFailedError
from scalelab.records.metric import with_unit
from scalelab.units import format_flops, format_quantity, plural

if TYPE_CHECKING:
    from rich.console import Console

    from scalelab.api.adaptive import AdaptReport
    from scalelab.api.replay import ReplayReport
    from scalelab.api.sweep_reports import LaunchReport
    from scalelab.launch.adaptive import SweepRound
    from scalelab.launch.base import Watcher
    from scalelab.launch.grid_design import DesignGain

ENDS = {
    "narrow": "Stopped: the interval is as narrow as requested.",
    "spent": "Stopped: the remaining budget buys no run that would narrow the interval.",
}


@dataclass(slots=True)
class Showing(ProgressCallbacks):
    """Progress callbacks of `scalelab.api.adaptive.adapt` for the command line.

    Attributes
    ----------
    options : PlanOptions
    explains : bool
        Whether each chosen run is shown with its reason.
    rounds : list of dict
        Rounds so far, for the final JSON.
    """

    options: PlanOptions
    explains: bool
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def on_batch(self, batch: SweepRound, *, is_dry_run: bool) -> None:
        """Show a round, and ask for confirmation of a long one."""
        from scalelab.cli.sweep_spec import ask

        self.rounds.append(round_as_dict(batch))
        if not self.options.as_json:
            print_round(batch, explains=self.explains)
        if not is_dry_run and not self.options.yes and batch.stop is None:
            ask(batch.proposal, as_json=self.options.as_json)

    def on_launch(self, start: Callable[[Watcher], LaunchReport]) -> LaunchReport:
        """Show the progress of a batch."""
        from scalelab.cli.progress import watching

        with watching(self.options.results, as_json=self.options.as_json) as watch:
            return start(watch)

    def end(self, report: AdaptReport) -> int:
        """Print the result and the next command, and return the exit code."""
        if self.options.as_json:
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
                out.print("Stopped. Run the same command to continue.")
            elif report.status == "failed":
                words = runnable(f"Runs failed: see `scalelab status {report.name}`.")
                out.print(words, style="bold red", soft_wrap=True)
        if report.status == "interrupted":
            return EXIT_INTERRUPTED
        return RunsFailedError.exit_code if report.status == "failed" else EXIT_OK


def round_as_dict(batch: SweepRound) -> dict[str, Any]:
    """Return one round for the JSON output."""
    found = batch.round
    content = {
        "metric": batch.metric.text,
        "unit": batch.metric.unit,
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
        "width_after_plan": expected_width(batch),
        "n_known": batch.n_known,
        "n_candidates": batch.n_candidates,
        "spend": {"flops": batch.spent, "budget_flops": batch.budget},
        "stop": batch.stop,
        "forms": found.described(),
        "plan_flops": found.proposed.flops,
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
    return dict(with_unit(content, batch.metric))


def expected_width(batch: SweepRound) -> float:
    """Return the relative interval width after all proposed runs, to first order."""
    proposed = batch.round.proposed
    share = proposed.after / proposed.before if proposed.before > 0 else 0.0
    return float(batch.round.width * max(share, 0.0) ** 0.5)


def print_round(batch: SweepRound, *, explains: bool) -> None:
    """Print the prediction so far and the runs chosen next."""
    out, found = console(), batch.round
    n_params, n_tokens = (float(found.target[key][0]) for key in ("n_params", "n_tokens"))
    where = f"target N {format_quantity(n_params)}, D {format_quantity(n_tokens)}"
    if batch.n_known:
        out.print(
            f"{where}: {batch.metric.label} {found.loss[0]:.4f} {batch.metric.unit} "
            f"({found.low[0]:.4f} to {found.high[0]:.4f}), "
            f"90 % confidence interval of the loss {100 * found.width:.2f} % wide, "
            f"from {plural(batch.n_known, 'run')}; "
            f"{format_flops(batch.spent)} of {format_flops(batch.budget)} FLOPs used.",
            style="bold",
            soft_wrap=True,
        )
        forms = ", ".join(
            f"{form['form']} {form['weight']:.2f} (misfit {100 * float(form['misfit']):.1f} %, "
            f"noise {100 * float(form['noise']):.2f} %)"
            for form in found.described()
        )
        out.print(f"forms by weight: {forms}", soft_wrap=True)
    else:
        out.print(f"{where}: no runs yet; published laws choose the first.", style="bold")
    rows = batch.proposal.plan.rows
    if not rows:
        return
    cost = sum(row.flops for row in rows)
    out.print(
        f"next: {len(rows)} of {plural(batch.n_candidates, 'run')} of the run pool for "
        f"{format_flops(cost)} FLOPs; after all "
        f"{plural(len(found.proposed.choices), 'proposed run')} the interval is expected to be "
        f"{100 * expected_width(batch):.2f} % wide.",
        soft_wrap=True,
    )
    if explains:
        _print_reasons(out, batch)


def _print_reasons(out: Console, batch: SweepRound) -> None:
    columns = ("N", "D", "FLOPs", "of budget", "variance cut", "correlation", "why")
    table = number_table(*columns, texts=("why",))
    for row, choice in zip(batch.proposal.plan.rows, batch.round.batch, strict=False):
        table.add_row(
            format_quantity(row.n_params),
            format_quantity(row.spec.n_tokens),
            format_flops(row.flops),
            f"{100 * row.flops / batch.budget:.2f} %",
            f"{100 * choice.gain:.1f} %",
            f"{choice.correlation:.2f}",
            _why(choice.gain, choice.correlation, row.flops / batch.budget),
        )
    out.print(Fitting(table))
    out.print(
        "The table is sorted by FLOPs. variance cut: share of the target's variance that the run "
        "removes after the runs chosen before it, in the order of choice. correlation: between the "
        "uncertain log losses of the run and of the target.",
        style="dim",
        soft_wrap=True,
    )


def _why(gain: float, correlation: float, cost: float) -> str:
    """Return the reason for a run in words."""
    if correlation**2 >= 0.5:
        return "its loss is strongly correlated with the target's"
    if gain >= cost:
        return "cuts much variance for its cost"
    return "best use of the FLOPs left by the runs chosen before it"


def print_gain(gain: DesignGain) -> None:
    """Print the gain of the optimal design over the plain one."""
    console().print(
        f"design: predicted standard deviation at {format_flops(gain.target_flops)} FLOPs: "
        f"{100 * gain.width_optimal:.2f} %, against {100 * gain.width_plain:.2f} % for the plain "
        f"design at equal FLOPs. The optimal design reaches the plain one's with "
        f"{gain.flops_share:.2f} of the FLOPs. These figures come from priors; no run has been "
        "made. Sizes differ between budgets, which makes approach 2 less precise.",
        soft_wrap=True,
    )


def print_replay(report: ReplayReport, *, as_json: bool) -> None:
    """Print the result of a replay on existing runs."""
    answer, out = report.to_dict(), console()
    if as_json:
        emit_json(answer)
        return
    spend = answer["spend"]
    out.print(
        f"{answer['n_rows']} of {plural(len(report.pool.observations), 'run')} for "
        f"{format_flops(spend['flops'])} FLOPs, {100 * spend['share']:.2f} % of the pool's cost.",
        style="bold",
    )
    errors = answer["relative_error"]
    out.print(
        f"On {plural(len(report.target.observations), 'target row')}: R^2 {answer['r2']:.3f}, "
        f"relative error {100 * errors['mean']:.2f} % on average, {100 * errors['max']:.2f} % at "
        f"most; "
        f"90 % confidence interval {100 * answer['width']:.2f} % wide."
    )
    forms = ", ".join(f"{form['form']} {form['weight']:.2f}" for form in answer["forms"])
    out.print(f"Forms by weight: {forms}.")
    out.print(
        "Rows in order of choice, counted from 0: " + " ".join(str(row) for row in answer["rows"])
    )
