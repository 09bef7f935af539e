"""What `plan`, `propose`, `launch` and `resume` return."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from scalelab.api.shown import Shown
from scalelab.launch import base, proposal
from scalelab.sweep import plan
from scalelab.units import format_duration, format_flops, format_quantity, plural

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from matplotlib.figure import Figure


class Plan(Shown, plan.Plan):
    """The runs of a sweep."""

    __slots__ = ()

    def _lines(self) -> Iterator[str]:
        yield f"Plan {self.name}: {_ground(self)}"
        yield from (f"warning: {text}" for text in self.warnings()[:3])
        yield "see .to_frame(), .plot()"

    def to_frame(self) -> pd.DataFrame:
        """Return one row per run."""
        return _frame(self)

    def plot(self) -> Figure:
        """Return the runs over parameters and tokens."""
        return _figure(self)


class Proposal(Shown, proposal.Proposal):
    """A plan with its cost on this machine or cluster; `launch` takes it."""

    __slots__ = ()

    def _lines(self) -> Iterator[str]:
        speed = self.cost.speed
        yield f"Proposal {self.plan.name}: {_ground(self.plan)}"
        yield (
            f"about {format_duration(self.cost.wall_s)} on {speed.n_workers} x {speed.device}; "
            f"{plural(len(self.finished), 'run')} finished already"
        )
        yield from (f"warning: {text}" for text in self.plan.warnings()[:3])
        yield "see .plan, .cost, .to_frame(), .plot()"

    def to_frame(self) -> pd.DataFrame:
        """Return one row per run."""
        return _frame(self.plan).assign(
            is_finished=[row.spec.run_id in self.finished for row in self.plan.rows]
        )

    def plot(self) -> Figure:
        """Return the runs over parameters and tokens."""
        return _figure(self.plan)


class LaunchReport(Shown, base.LaunchReport):
    """How a launch ended."""

    __slots__ = ()

    def _lines(self) -> Iterator[str]:
        counts = ", ".join(f"{n} {status}" for status, n in Counter(self.statuses.values()).items())
        end = "interrupted" if self.is_interrupted else "ended"
        yield f"LaunchReport: {end} after {format_duration(self.wall_s)}; runs: {counts or 'none'}"

    def to_frame(self) -> pd.DataFrame:
        """Return the final status of each run."""
        import pandas as pd

        return pd.DataFrame({"run_id": list(self.statuses), "status": list(self.statuses.values())})


def _ground(runs: plan.Plan) -> str:
    sizes = sorted(row.n_params for row in runs.rows)
    span = f", N {format_quantity(sizes[0])} to {format_quantity(sizes[-1])}" if sizes else ""
    return (
        f"{runs.kind}, {plural(len(runs.rows), 'run')}{span}, {format_flops(runs.total_flops)} FLOP"
    )


def _frame(runs: plan.Plan) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "run_id": None if runs.data.is_estimated else row.spec.run_id,
                "budget_flops": row.budget_flops,
                "n_params": row.n_params,
                "n_tokens": row.spec.n_tokens,
                "flops": row.flops,
                "n_layers": row.spec.shape.n_layers,
                "d_model": row.spec.shape.d_model,
                "n_steps": row.spec.n_steps,
            }
            for row in runs.rows
        ]
    )


def _figure(runs: plan.Plan) -> Figure:
    from scalelab.report.plots import point_figure

    sizes = [row.n_params for row in runs.rows]
    return point_figure(
        sizes, [row.spec.n_tokens for row in runs.rows], ("parameters N", "tokens D")
    )
