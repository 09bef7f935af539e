"""What `plan`, `propose`, `launch` and `resume` return."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from scalelab.api.notebook_view import NotebookView
from scalelab.launch import base, proposal
from scalelab.sweep import plan
from scalelab.sweep.run_size import has_shape
from scalelab.sweep.size_table import model_label
from scalelab.units import format_duration, format_flops, format_quantity, plural

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from matplotlib.figure import Figure


class Plan(NotebookView, plan.Plan):
    """The runs of a sweep."""

    __slots__ = ()

    def _lines(self) -> Iterator[str]:
        sizes = sorted(row.n_params for row in self.rows)
        yield (
            f"Plan {self.name}: {self.kind}, {plural(len(sizes), 'run')}, N "
            f"{format_quantity(sizes[0])} to {format_quantity(sizes[-1])}, "
            f"{format_flops(self.total_flops)} FLOPs"
        )
        yield from (f"warning: {text}" for text in self.warnings()[:3])
        yield "see .to_frame(), .plot()"

    def to_frame(self) -> pd.DataFrame:
        """Return one row per run."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "run_id": None if self.data.is_estimated else row.spec.run_id,
                    "budget_flops": row.budget_flops,
                    "n_params": row.n_params,
                    "n_tokens": row.spec.n_tokens,
                    "flops": row.flops,
                    "n_layers": row.spec.shape.n_layers if has_shape(row.spec) else None,
                    "d_model": row.spec.shape.d_model if has_shape(row.spec) else None,
                    "model": model_label(row.spec),
                    "n_steps": row.spec.n_steps,
                }
                for row in self.rows
            ]
        )

    def plot(self) -> Figure:
        """Return the runs over parameters and tokens."""
        from scalelab.report.plots import point_figure

        sizes = [row.n_params for row in self.rows]
        tokens = [row.spec.n_tokens for row in self.rows]
        return point_figure(sizes, tokens, ("parameters N", "tokens D"))


class Proposal(NotebookView, proposal.Proposal):
    """A plan with its cost on this machine or cluster; `launch` takes it."""

    __slots__ = ()

    def _lines(self) -> Iterator[str]:
        speed = self.cost.speed
        time = f"about {format_duration(self.cost.wall_s)}" if speed.is_known else "unknown time"
        yield f"Proposal: {time} on {speed.n_workers} workers"
        yield f"{plural(len(self.finished), 'run')} finished already; see .plan, .cost"
        yield repr(Plan.of(self.plan))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per run."""
        done = [row.spec.run_id in self.finished for row in self.plan.rows]
        return Plan.of(self.plan).to_frame().assign(is_finished=done)

    def plot(self) -> Figure:
        """Return the runs over parameters and tokens."""
        return Plan.of(self.plan).plot()


class LaunchReport(NotebookView, base.LaunchReport):
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
