"""Transfer checks: the optimum of a cell, its drift, and the command from plan to figure."""

import json
import math

import numpy as np
import pytest

from scalelab.cli.main import main
from scalelab.tune.run_end import DIVERGED
from scalelab.tune.transfer_fit import Cell, best_rate, drifts

LRS = tuple(2.0**-k for k in range(9, 2, -1))


def valley(at, curvature=0.05, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    x = np.log(LRS) - math.log(at)
    return tuple(np.exp(1 + curvature * x**2 + noise * rng.standard_normal(len(x))))


@pytest.mark.parametrize("at", [0.005, 0.0123, 0.04])
def test_the_minimum_of_a_parabola_is_found_with_its_interval(at):
    best, low, high, is_bound = best_rate(LRS, valley(at), 0.9)
    assert best == pytest.approx(at, rel=1e-6)
    assert low == pytest.approx(high, rel=1e-3)
    assert not is_bound


def test_the_interval_holds_the_optimum_as_often_as_it_says():
    found = [best_rate(LRS, valley(0.0123, noise=0.01, seed=seed), 0.9) for seed in range(200)]
    held = [low < 0.0123 < high for _, low, high, _ in found]
    assert 0.84 <= np.mean(held) <= 0.96


def test_an_optimum_at_an_end_of_the_rates_is_a_bound():
    assert best_rate(LRS, valley(0.0001), 0.9) == (LRS[0], None, LRS[1], True)
    assert best_rate(LRS, valley(1.0), 0.9) == (LRS[-1], LRS[-2], None, True)


def test_beyond_diverged_runs_there_is_no_optimum():
    losses = (*valley(1.0)[:5], DIVERGED, DIVERGED)
    assert best_rate(LRS, losses, 0.9) == (LRS[4], None, None, False)
    assert best_rate(LRS, (DIVERGED,) * 7, 0.9)[0] is None
    assert best_rate(LRS, (None, *valley(0.01)[1:]), 0.9)[0] == pytest.approx(0.01, rel=1e-6)


def cell(kind, n_layers, d_model, best, is_bound=False, limits=(None, None)):
    return Cell(
        parametrization=kind, shape=f"{n_layers}L-{d_model}d", n_layers=n_layers, d_model=d_model,
        n_params=1, lrs=LRS, losses=valley(0.01), best_lr=best, low=limits[0], high=limits[1],
        is_bound=is_bound,
    )  # fmt: skip


def test_drift_is_over_widths_at_one_depth_and_over_depths_at_one_width():
    shapes = [(2, 16, 0.02), (2, 64, 0.01), (2, 256, 0.016), (4, 64, 0.011), (8, 64, 0.012)]
    found = {
        (one.parametrization, one.axis): one for one in drifts(cell("mup", *s) for s in shapes)
    }
    assert found["mup", "width"].sizes == (16, 64, 256)
    assert found["mup", "width"].factor == pytest.approx(2.0)
    assert found["mup", "width"].has_held is False
    assert found["mup", "depth"].sizes == (2, 4, 8)
    assert found["mup", "depth"].factor == pytest.approx(1.2)
    assert found["mup", "depth"].has_held is True


def test_a_bound_never_says_that_the_rate_held():
    (found,) = drifts([cell("mup", 2, 16, 0.01, is_bound=True), cell("mup", 2, 64, 0.012)])
    assert found.is_bound
    assert found.has_held is None
    (found,) = drifts([cell("mup", 2, 16, 0.01, is_bound=True), cell("mup", 2, 64, 0.03)])
    assert found.has_held is False


def test_a_drift_that_its_intervals_do_not_establish_is_unknown():
    first = cell("mup", 2, 64, 0.01, limits=(0.009, 0.0111))
    (found,) = drifts([first, cell("mup", 2, 16, 0.02, limits=(0.005, 0.08))])
    assert found.factor == pytest.approx(2.0)
    assert found.low == 1.0
    assert found.high == pytest.approx(2 * math.exp(math.hypot(math.log(4), math.log(1.11))), 1e-2)
    assert found.has_held is None
    (found,) = drifts([first, cell("mup", 2, 16, 0.02, limits=(0.018, 0.0222))])
    assert found.has_held is False


@pytest.fixture
def transfer(capsys, text, tmp_path, own_cache):
    def run(*words):
        where = ("--data", str(text), "--eval-tokens", "4096", "--results", str(tmp_path))
        code = main(["tune", "--transfer", *where, *words])
        return code, capsys.readouterr().out

    return run


TINY = (
    *("--shape-list", "2L-16d-1h,2L-32d-2h", "--seq-len", "32", "--n-tokens", "2K"),
    *("--trials", "3", "--lr", "4e-3..6e-2"),
)


def test_a_dry_run_prints_shapes_rates_and_parametrizations(transfer):
    code, said = transfer("--dry-run")
    assert code == 0
    assert "105 runs" in said
    assert "2L-256d-16h" in said
    assert "standard, mup, completep" in said
    code, said = transfer("--dry-run", "--json", *TINY, "--parametrization", "mup")
    content = json.loads(said)
    assert content["dry_run"] is True
    assert len(content["rows"]) == 6
    assert {row["lr"] for row in content["rows"]} == {0.004, 0.01549, 0.06}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--from", "runs.csv"), "--from"),
        (("--wave", "2"), "--wave"),
        (("--batch-seqs", "1..8"), "--batch-seqs 4"),
        (("--n-tokens", "64K,128K"), "--n-tokens 64K"),
        (("--parametrization", "mupp"), "mup"),
    ],
)
def test_options_that_do_not_apply_are_refused(transfer, words, expected):
    code, said = transfer("--dry-run", "--json", *words)
    assert code == 2
    assert expected in said


@pytest.mark.slow
def test_a_check_trains_each_cell_once_and_saves_answer_and_figure(transfer, tmp_path):
    code, said = transfer("--yes", "--json", *TINY)
    assert code == 0
    found = json.loads(said)
    assert len(found["cells"]) == 6
    assert [len(one["losses"]) for one in found["cells"]] == [3] * 6
    assert [one["parametrization"] for one in found["drifts"]] == ["standard", "mup", "completep"]
    assert {one["axis"] for one in found["drifts"]} == {"width"}
    folder = tmp_path / "sweeps/transfer"
    assert json.loads((folder / "transfer.json").read_text()) == found
    assert "2L-32d-2h" in (folder / "transfer.svg").read_text()
    records = list(tmp_path.glob("runs/*/attempts/*/record.json"))
    assert len(records) == 18
    code, said = transfer("--yes", *TINY)
    assert code == 0
    assert "completep" in said
    assert len(list(tmp_path.glob("runs/*/attempts/*/record.json"))) == 18
