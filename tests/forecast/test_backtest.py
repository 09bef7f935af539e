"""The backtest: what is left out, how a forecaster is scored, and the command."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from scalelab import api
from scalelab.cli.main import main
from scalelab.errors import DataError, UsageError
from scalelab.fit.intervals import Prediction
from scalelab.forecast import backtest as tests
from scalelab.forecast.backtest import backtest, best_forms
from scalelab.forecast.cuts import largest_cuts
from scalelab.forecast.fit_report import Holdout
from scalelab.records.types import Observations


def grid(seed=0, noise=0.003):
    rng = np.random.default_rng(seed)
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5)))
    losses = (1.69 + 406 * N**-0.34 + 411 * D**-0.28) * np.exp(noise * rng.standard_normal(25))
    return Observations(n_params=N, n_tokens=D, loss_nats=losses, flops=6 * N * D)


def test_the_cuts_are_the_largest_sizes_lengths_and_budgets():
    rows = grid()
    found = {
        cut.name: cut.is_left_out
        for cut in largest_cuts(rows.n_params, rows.n_tokens, factor=2.0, share=0.4, rows_left=8)
    }
    assert list(found) == ["largest sizes", "longest runs", "largest budgets"]
    assert (found["largest sizes"] == (rows.n_params > 9e8)).all()
    assert (found["longest runs"] == (rows.n_tokens > 9e10)).all()
    assert found["largest budgets"].sum() == 1


@pytest.mark.parametrize(("share", "rows_left"), [(0.1, 8), (0.4, 25)])
def test_a_cut_that_leaves_out_too_much_is_not_made(share, rows_left):
    rows = grid()
    found = largest_cuts(rows.n_params, rows.n_tokens, factor=2.0, share=share, rows_left=rows_left)
    assert [cut.name for cut in found] == (["largest budgets"] if share == 0.1 else [])


def test_scores_are_those_of_a_fit_without_the_rows():
    rows = grid()
    found = {score.cut: score for score in backtest(rows, "grid", forecasters=("averaged",))}
    score = found["largest sizes"]
    assert score.n_rows == 5
    assert score.error < 0.02
    assert score.coverage == score.holdout.covered / 5
    frame = {
        "n_params": rows.n_params,
        "n_tokens": rows.n_tokens,
        "loss_nats": rows.loss_nats,
    }
    report = api.fit(frame, holdout="n_params > 9e8", forecaster="averaged", bootstrap=20)
    assert report.holdout.mean_relative_error == pytest.approx(score.error, rel=1e-6)


def test_a_forecaster_without_an_answer_says_why():
    line = Observations(
        n_params=np.geomspace(1e7, 1e9, 12),
        n_tokens=np.geomspace(1e9, 1e11, 12),
        loss_nats=np.geomspace(4.0, 2.5, 12),
        flops=np.geomspace(1e17, 1e21, 12),
    )
    found = backtest(line, "line", forecasters=("law",))
    assert {score.reason for score in found} == {"not identified"}
    assert all(score.holdout is None and np.isnan(score.error) for score in found)


def test_single_forms_are_scored_and_the_best_is_named():
    found = backtest(grid(), "grid", forecasters=("law", "chinchilla", "tied", "data_constrained"))
    by = {name: [s for s in found if s.forecaster == name] for name in ("law", "chinchilla")}
    assert [s.error for s in by["law"]] == [s.error for s in by["chinchilla"]]
    reasons = {s.reason for s in found if s.forecaster == "data_constrained"}
    assert all("unique_tokens" in reason for reason in reasons)
    errors = {
        name: np.mean([s.error for s in found if s.forecaster == name])
        for name in ("chinchilla", "tied")
    }
    assert best_forms(found) == {"grid": min(errors, key=errors.get)}


@pytest.mark.slow
def test_the_form_that_is_chosen_without_the_rows_is_scored():
    found = backtest(grid(), "grid", forecasters=("auto",))
    assert all(score.error < 0.02 for score in found)


def test_a_table_without_a_cut_is_refused():
    few = grid().take(np.arange(6))
    with pytest.raises(DataError, match=r"no cut leaves 8 rows .* Add smaller runs"):
        backtest(few, "few")


def test_a_smaller_factor_is_proposed_where_it_makes_a_cut():
    rows = grid()
    near = replace(rows, n_params=rows.n_params**0.1, n_tokens=rows.n_tokens**0.1)
    with pytest.raises(DataError, match=r"Use --factor 1\.5"):
        backtest(near, "near", factor=3.0)


def test_the_command_gives_a_table_and_json(tmp_path, capsys):
    rows = grid()
    path = tmp_path / "runs.csv"
    lines = [
        f"{n},{d},{loss}"
        for n, d, loss in zip(rows.n_params, rows.n_tokens, rows.loss_nats, strict=True)
    ]
    path.write_text("\n".join(["n_params,n_tokens,loss_nats", *lines]))
    words = ["backtest", "--from", str(path), "--forecaster", "averaged"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "largest sizes" in text
    assert "averaged: mean error" in text
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["n_rows"] for row in found["scores"]] == [5, 5, 1]
    assert found["skipped"] == {}


def written(path, rows, **more):
    """Write runs as a CSV file with other columns, and return the start of a command."""
    columns = {"n_params": rows.n_params, "n_tokens": rows.n_tokens, **more}
    lines = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join([",".join(columns), *lines]))
    return ["backtest", "--from", str(path), "--forecaster", "chinchilla", "--json"]


def reasons_of(words, capsys):
    assert main(words) == 0
    return [each["reason"] for each in json.loads(capsys.readouterr().out)["scores"]]


def test_a_table_is_read_as_by_fit(tmp_path, capsys, monkeypatch):
    def sums(near, far, *_):
        return None, f"{near.loss_nats.sum():.6f} {far.loss_nats.sum():.6f}"

    monkeypatch.setattr(tests, "_answer", sums)
    rows = grid()
    plain = reasons_of(written(tmp_path / "a.csv", rows, loss_nats=rows.loss_nats), capsys)
    twice = rows.take(np.repeat(np.arange(25), 2))
    bits, lr = twice.loss_nats / np.log(2) + np.tile([0.0, 0.1], 25), np.tile([1e-3, 1e-2], 25)
    words = written(tmp_path / "a.csv", twice, loss=bits, lr=lr)
    read = ["--map", "loss_nats=loss", "--loss-unit", "bits", "--best-of", "lr"]
    assert reasons_of([*words, *read], capsys) == plain
    assert reasons_of([*words, *read, "--exclude", "3"], capsys) == plain
    assert reasons_of([*words, *read, "--exclude", "2"], capsys) != plain
    words = written(tmp_path / "a.csv", rows, n_params_kaplan=rows.n_params, loss=rows.loss_nats)
    counted = ["--map", "loss_nats=loss", "--param-convention"]
    assert reasons_of([*words, *counted, "kaplan"], capsys) == plain
    assert main([*words, *counted, "kaplann"]) == 2
    assert "Did you mean kaplan?" in capsys.readouterr().out


def test_options_of_one_table_are_refused_with_all_tables(capsys):
    words = ["backtest", "--from", "public:ALL", "--best-of", "lr", "--where", "flops > 1"]
    assert main(words) == 2
    assert "Remove --where, --best-of" in capsys.readouterr().err


def test_a_fit_beyond_the_time_limit_is_no_answer(tmp_path, capsys):
    words = written(tmp_path / "a.csv", grid(), loss_nats=grid().loss_nats)
    for name in ("chinchilla", "auto"):
        words[4] = name
        found = reasons_of([*words, "--time-limit", "0"], capsys)
        assert set(found) == {"a fit that takes longer than 0 s"}


def test_law_and_chinchilla_are_one_fit(monkeypatch):
    fits = []
    monkeypatch.setattr(tests, "_answer", lambda *_: fits.append(1) or (None, ""))
    found = backtest(grid(), "grid", forecasters=("law", "averaged", "chinchilla"))
    assert len(found) == 9
    assert len(fits) == 6


def test_a_fit_without_intervals_is_not_counted_as_missed():
    rows = grid()
    none = np.full(25, np.nan)
    prediction = Prediction(
        value=rows.loss_nats, low=none, high=none, pred_low=none, pred_high=none, level=0.9
    )
    holdout = tests.score(
        SimpleNamespace(target="loss_nats", predict=lambda *_, **__: prediction), rows
    )
    assert (holdout.n_intervals, holdout.covered) == (0, 0)
    frame = {"n_params": rows.n_params, "n_tokens": rows.n_tokens, "loss_nats": rows.loss_nats}
    report = api.backtest(frame, forecasters=("chinchilla",))
    first, *others = report.scores
    report = replace(report, scores=(replace(first, holdout=holdout), *others))
    (mean,) = report.means()
    assert mean["coverage"] == pytest.approx(np.mean([each.coverage for each in others]))
    assert mean["n_without_intervals"] == 1
    assert report.to_dict()["scores"][0]["coverage"] is None
    assert [row["n_intervals"] for row in report.to_dict()["scores"]] == [0, 5, 1]


def test_the_page_of_a_fit_says_that_held_out_rows_have_no_intervals(tmp_path, capsys):
    rows = grid(noise=0.005).take(np.array([0, 3, 7, 11, 15, 19, 24]))
    _, *runs = written(tmp_path / "a.csv", rows, loss_nats=rows.loss_nats)[:3]
    words = [
        "fit",
        *runs,
        "--holdout",
        "n_params > 9e8",
        "--forecaster",
        "law",
        "--bootstrap",
        "20",
    ]
    assert main([*words, "--json"]) == 0
    holdout = json.loads(capsys.readouterr().out)["holdout"]
    assert (holdout["n_rows"], holdout["n_intervals"], holdout["covered"]) == (2, 0, 0)
    assert holdout["mean_width"] is None
    assert main([*words, "-v"]) == 0
    assert "They have no prediction intervals." in " ".join(capsys.readouterr().out.split())


def test_forecasters_are_compared_on_the_cuts_that_all_answer():
    rows = grid()
    frame = {"n_params": rows.n_params, "n_tokens": rows.n_tokens, "loss_nats": rows.loss_nats}
    report = api.backtest(frame, forecasters=("averaged", "chinchilla"))
    refused = next(each for each in report.scores if each.forecaster == "chinchilla")
    scores = tuple(
        replace(each, holdout=None, reason="refused") if each is refused else each
        for each in report.scores
    )
    some = replace(report, scores=scores)
    left = [each for each in scores if each.cut != refused.cut and each.forecaster == "averaged"]
    by_name = {mean["forecaster"]: mean for mean in some.means(is_common=True)}
    assert by_name["averaged"]["mean_relative_error"] == pytest.approx(
        np.mean([each.error for each in left])
    )
    assert some.means()[0] == report.means()[0] != by_name["averaged"]
    none = replace(report, scores=tuple(replace(each, holdout=None) for each in scores[1::2]))
    assert none.means(is_common=True) == []
    assert none.to_dict()["means"][0]["coverage"] is None


def test_each_forecaster_is_compared_with_the_average_on_the_cuts_that_both_answer():
    holdout = Holdout(
        n_rows=2, mean_relative_error=0.01, max_relative_error=0.02, covered=1, n_intervals=2,
        mean_width=0.1, level=0.9,
    )  # fmt: skip
    errors = {"averaged": (0.01, 0.03), "gamma": (0.02, None), "farseer": (None, 0.05)}
    scores = tuple(
        tests.Score(
            table="t", cut=cut, forecaster=name, n_rows=2, reason="",
            holdout=None if error is None else replace(holdout, mean_relative_error=error),
        )
        for name, both in errors.items()
        for cut, error in zip("ab", both, strict=True)
    )  # fmt: skip
    report = api.BacktestReport(scores=scores, skipped={}, level=0.9)
    assert report.means(is_common=True) == []  # no cut has all three answers
    found = [[(m["forecaster"], m["mean_relative_error"]) for m in pair] for pair in report.pairs()]
    assert found == [
        [("gamma", 0.02), ("averaged", 0.01)],
        [("farseer", 0.05), ("averaged", 0.03)],
    ]
    assert [each["forecaster"] for each in report.to_dict()["pairs"]] == ["gamma", "farseer"]


def test_an_unknown_forecaster_is_refused():
    with pytest.raises(UsageError, match="averaged"):
        api.backtest({"n_params": [1.0]}, forecasters=("avraged",))
