"""The refit without outliers: the same options, and no offer where there are too many."""

import numpy as np
import pytest

from scalelab import api
from scalelab.fit.outcome import FitWarning
from scalelab.forecast.headline import NextCommand, headline
from scalelab.forecast.leave_out import CODE, outliers_to_exclude, refit_sentence, refit_words
from scalelab.store.table_read import TableRead


def warning(n_runs):
    return FitWarning(code=CODE, message="", runs=tuple(f"r{i}" for i in range(n_runs)))


@pytest.mark.parametrize(("n_runs", "n_offered"), [(0, 0), (5, 5), (6, 0)])
def test_more_than_a_tenth_of_the_rows_are_not_offered(n_runs, n_offered):
    assert len(outliers_to_exclude([warning(n_runs)], 50)) == n_offered


@pytest.mark.parametrize(
    ("given", "names", "expected"),
    [
        ((), ("a", "b"), ("--exclude", "a,b")),
        (
            ("--sweep", "s", "--exclude", "x", "--level", "0.8"),
            ("a,b",),
            ("--sweep", "s", "--level", "0.8", "--exclude", 'x,"a,b"'),
        ),
    ],
)
def test_the_command_keeps_the_other_options(given, names, expected):
    assert refit_words(given, names) == ("scalelab", "fit", *expected)
    assert refit_words(given, ()) == ()


def test_the_sentence_counts_the_runs():
    assert refit_sentence(("a", "b")).startswith("The next command can exclude these 2 runs")
    assert "exclude this run and" in refit_sentence(("a",))


def test_the_headline_names_all_outliers_and_the_refit_has_none(narrow_runs):
    rows = narrow_runs()

    def head_of(of):
        table = TableRead(observations=of, lines=np.arange(len(of)) + 1)
        return headline(api.fit(table, bootstrap=20), NextCommand(runs=("--sweep", "narrow")))

    head = head_of(rows)
    assert head.outliers == ("run-14", "run-36", "run-49")
    last = "run-14,run-36,run-49"
    assert head.refit == ("scalelab", "fit", "--sweep", "narrow", "--exclude", last)
    assert head.to_dict()["without_outliers"].endswith(f"--exclude {last}")
    after = head_of(rows.take(~np.isin(rows.names, head.outliers)))
    assert (after.outliers, after.refit) == ((), ())
    assert after.to_dict()["without_outliers"] is None
    widths = [each.forecast.pred_high - each.forecast.pred_low for each in (head, after)]
    assert widths[1] < 0.8 * widths[0]
