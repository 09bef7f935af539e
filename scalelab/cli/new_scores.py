"""Scores that registered forecasts got since a command started, as lines and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.cli.output import console, runnable
from scalelab.errors import DataError

if TYPE_CHECKING:
    from scalelab.forecast.scores import RunScore

Scored = frozenset[tuple[str, str, str]]
"""Registration, question and run of each score."""


def scored_pairs(results: Path) -> Scored:
    """Return what is scored already; nothing if the snapshot is of another version."""
    from scalelab import api

    try:
        return frozenset(map(key_of, api.scores(results).scores))
    except DataError:
        return frozenset()


def new_scores(results: Path, scored: Scored) -> tuple[RunScore, ...]:
    """Return the scores that are not in ``scored``."""
    from scalelab import api

    return tuple(each for each in api.scores(results).scores if key_of(each) not in scored)


def print_scores(scores: Sequence[RunScore]) -> None:
    """Print one line for each registration and time of registration that has new scores."""
    if not scores:
        return
    from scalelab.forecast.scores import summarise
    from scalelab.units import plural

    for name, timing in dict.fromkeys((each.name, each.timing) for each in scores):
        group = [each for each in scores if (each.name, each.timing) == (name, timing)]
        mean, inside = summarise(group), sum(each.is_covered for each in group)
        console().print(
            runnable(
                f"Forecast {name}, registered {timing}, scored on {plural(len(group), 'run')}: "
                f"mean error {100 * mean.mean_relative_error:.2f} %, {inside} of {len(group)} "
                f"inside the {100 * group[0].level:g} % interval. See `scalelab scores`."
            ),
            soft_wrap=True,
        )


def scores_as_json(scores: Sequence[RunScore]) -> list[dict[str, Any]]:
    """Return the new scores as in the JSON of ``scalelab scores``."""
    from dataclasses import asdict

    return [asdict(each) for each in scores]


def key_of(score: RunScore) -> tuple[str, str, str]:
    """Return registration, question and run of a score."""
    return score.name, score.asked, score.run
