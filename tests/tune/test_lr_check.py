import json

import numpy as np
import pytest

from scalelab.cli.main import main
from scalelab.store.read_options import ReadOptions
from scalelab.store.results import read_results
from scalelab.tune.lr_check import parabola_minimum


def test_the_minimum_is_between_the_neighbours_or_none():
    lrs = (0.005, 0.01, 0.02)
    assert parabola_minimum(lrs, (1.1, 1.0, 1.1)) == pytest.approx(0.01)
    assert 0.01 < parabola_minimum(lrs, (1.2, 1.0, 1.1)) < 0.02
    assert parabola_minimum(lrs, (1.0, 1.1, 1.3)) is None
    assert parabola_minimum(lrs, (1.0, 1.1, 1.0)) is None
    assert parabola_minimum(lrs, (1.1, 1.0, float("inf"))) is None


def sweep(capsys, text, results, *words):
    common = ("--data", str(text), "--eval-tokens", "4096", "--seq-len", "32", "--json")
    code = main(["sweep", *words, *common, "--results", str(results)])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_rate_far_below_the_best_is_detected_and_the_check_is_not_repeated(
    capsys, text, tmp_path, own_cache
):
    words = ("isoflop", "--budgets", "3e9,6e9", "--sizes", "2", "--span", "2", "--name", "low")
    low = (*words, "--batch-seqs", "4", "--lr", "1e-4", "--lr-check", "--yes")
    code, said = sweep(capsys, text, tmp_path, *low)
    assert code == 0
    assert len(said["rows"]) == 4
    assert [found["held"] for found in said["lr_check"]] == [False, False]
    for found in said["lr_check"]:
        assert found["lrs"] == [5e-5, 1e-4, 2e-4]
        assert found["losses"][0] > found["losses"][1] > found["losses"][2]
        assert found["best_lr"] is None
    code, again = sweep(capsys, text, tmp_path, *low)
    assert again["lr_check"] == said["lr_check"]
    # The neighbours are not in the sweep that they check, nor in a fit that names no sweep.
    found = read_results(tmp_path, None, ReadOptions()).observations
    np.testing.assert_array_equal(found.extra["lr"], [1e-4] * 4)
    main(["status", "low", "--results", str(tmp_path), "--json"])
    assert json.loads(capsys.readouterr().out)["counts"] == {"done": 4}
    main(["status", "low-lr-check", "--results", str(tmp_path), "--json"])
    assert json.loads(capsys.readouterr().out)["counts"] == {"done": 4}


def test_a_sweep_without_budgets_cannot_be_checked(capsys, tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text('kind = "grid"\nn_params = "20K"\nn_tokens = "50K"\n')
    code = main(["sweep", "run", str(path), "--lr-check", "--yes", "--json"])
    assert code == 2
    assert "budgets" in capsys.readouterr().out
