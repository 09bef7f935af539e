"""The verbs for forecasts that are kept: `register` freezes them, `scores` scores them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.api.data import DEFAULT_RESULTS
from scalelab.api.notebook_view import NotebookView
from scalelab.errors import SpecError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from scalelab.forecast.fit_report import FitReport
    from scalelab.forecast.registered import Registration
    from scalelab.forecast.scores import RunScore, Summary


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class ScoresReport(NotebookView):
    """Registered forecasts and their scores.

    Attributes
    ----------
    registrations : tuple of Registration
    scores : tuple of RunScore
        One for each forecast and each run at its point.
    problems : tuple of str
        Files that cannot be read.
    """

    registrations: tuple[Registration, ...]
    scores: tuple[RunScore, ...]
    problems: tuple[str, ...] = ()

    @property
    def n_forecasts(self) -> int:
        """Number of registered forecasts, scored or not."""
        return sum(len(each.forecasts) for each in self.registrations)

    @property
    def waiting(self) -> tuple[tuple[str, str], ...]:
        """Name and question of the forecasts without a run."""
        scored = {(each.name, each.asked) for each in self.scores}
        return tuple(
            (each.name, forecast.asked)
            for each in self.registrations
            for forecast in each.forecasts
            if (each.name, forecast.asked) not in scored
        )

    def overall(self) -> Mapping[str, Summary]:
        """Return the means over forecasts by timing; only timings that have a score."""
        from scalelab.forecast.scores import TIMINGS, summarise

        groups = {name: [s for s in self.scores if s.timing == name] for name in TIMINGS}
        return {name: summarise(group) for name, group in groups.items() if group}

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each score."""
        import pandas as pd

        return pd.DataFrame([asdict(each) for each in self.scores])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of ``scalelab scores``."""
        return {
            "schema": 1,
            "command": "scores",
            "n_forecasts": self.n_forecasts,
            "scores": [asdict(each) for each in self.scores],
            "overall": {name: asdict(each) for name, each in self.overall().items()},
            "waiting": [{"name": name, "asked": asked} for name, asked in self.waiting],
            "problems": list(self.problems),
        }

    def _lines(self) -> Iterator[str]:
        yield f"ScoresReport: {self.n_forecasts} forecasts, {len(self.scores)} scores"
        for name, each in self.overall().items():
            yield (
                f"registered {name}: mean error {100 * each.mean_relative_error:.2f} %, coverage "
                f"{each.coverage:.2f}, CRPS {100 * each.crps:.2f} %"
            )
        yield "see .to_frame(), .overall(), .to_dict()"


def register(
    report: FitReport, name: str, *, results: str | Path = DEFAULT_RESULTS
) -> Registration:
    """Freeze the forecasts of a fit in ``<results>/forecasts/<name>.json``, and return them.

    Parameters
    ----------
    report : FitReport
        From ``fit(.., predict=[..])``.
    name : str
        A name that is not registered yet; registered forecasts never change.
    results : str or Path
        The results folder; `scores` looks for the runs there. Runs at the points that have begun
        already are named in ``forecasts[i].begun`` and scored apart.

    Raises
    ------
    UsageError
        If the name is not valid or taken, or the report has no forecast of a loss.
    NotIdentifiedError
        If a forecast has no interval.
    """
    from scalelab.forecast.registered import registration
    from scalelab.records.forecasts import forecast_file, save_forecast
    from scalelab.store.finished_runs import begun_runs

    path = forecast_file(Path(results), name)
    if not report.forecasts or report.fit.law.target != "loss_nats":
        raise UsageError(
            "a report without a forecast of a loss",
            "a fit that predicts",
            'Write fit(df, predict=["N=7e9"]).',
        )
    found = registration(
        name,
        report.fit,
        report.averaged,
        report.observations,
        report.forecasts,
        begun_runs(Path(results), report.observations.metric.text),
    )
    save_forecast(path, found.to_dict())
    return found


def scores(results: str | Path = DEFAULT_RESULTS) -> ScoresReport:
    """Score the registered forecasts on the finished runs at their points.

    A run is at the point of a forecast if its N and D differ by at most 2 %. Runs that were fitted
    are not used. A forecast that was registered after its run began is scored apart.

    Parameters
    ----------
    results : str or Path
        The results folder, with collected sweeps and imported tables.
    """
    from scalelab.records.forecasts import read_forecasts

    files = read_forecasts(Path(results))
    if not files:
        return ScoresReport(registrations=(), scores=())
    from scalelab.forecast.registered import registration_of
    from scalelab.forecast.scores import score_runs
    from scalelab.store.finished_runs import finished_runs

    registrations, problems = [], []
    for path, content in files.items():
        try:
            registrations.append(registration_of(content or {}, str(path)))
        except SpecError as error:
            problems.append(str(error))
    # A forecast of one metric is scored on that metric only.
    runs = {
        metric: finished_runs(Path(results), metric)
        for metric in dict.fromkeys(each.metric for each in registrations)
    }
    return ScoresReport(
        registrations=tuple(registrations),
        scores=tuple(
            score for each in registrations for score in score_runs(each, runs[each.metric])
        ),
        problems=tuple(problems),
    )
