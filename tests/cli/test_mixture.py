"""`scalelab fit --form mixture` and `scalelab decide --mixture` as a user meets them."""

import json

import numpy as np
import pandas as pd
import pytest

from scalelab.cli.main import main


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Return a table of six mixtures of three sources, one of them trained twice."""
    h = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0], [0, 0.5, 0.5], [0.3, 0.3, 0.4]])
    h = np.concatenate([h, h[:1]])
    rows = {f"proportion_{name}": h[:, j] for j, name in enumerate(("code", "web", "books"))}
    rows["loss_code"] = 1.0 + np.exp(h @ np.array([-3.0, -0.2, -0.4]))
    rows["loss_web"] = 1.5 + np.exp(h @ np.array([-0.3, -2.0, -0.8]))
    path = tmp_path_factory.mktemp("mixture") / "runs.csv"
    pd.DataFrame(rows).assign(run=[f"mix{i}" for i in range(7)], size=["70M"] * 7).to_csv(
        path, index=False
    )
    return path


@pytest.fixture
def run(capsys, file):
    def call(*words, code=0):
        capsys.readouterr()
        found = main([*words, "--from", str(file)])
        out, err = capsys.readouterr()
        assert found == code, f"exit {found}: {out[-800:]} {err[-800:]}"
        return out + err

    return call


def test_the_page_names_laws_errors_and_the_next_command(run, file, tmp_path):
    out = run("fit", "--form", "mixture", "--bootstrap", "20", "--plot", str(tmp_path / "m.png"))
    assert "7 runs: 3 sources, 6 mixtures" in out
    assert "leave 10 runs out" in out
    assert "joint_mixing was not compared: it needs 8 mixtures" in out
    assert f"Next: scalelab decide --mixture --from {file} --target code" in out
    assert (tmp_path / "m.png").stat().st_size > 10_000


def test_json_and_csv_have_the_parameters(run):
    found = json.loads(run("fit", "--form", "mixture", "--bootstrap", "20", "--json"))
    assert found["sets"]["code"]["params"]["t_code"]["value"] == pytest.approx(-3, rel=1e-3)
    assert found["effects"]["code"]["code"]["value"] < 0 < found["effects"]["code"]["web"]["value"]
    lines = run("fit", "--form", "mixture", "--bootstrap", "0", "--csv").splitlines()
    assert lines[0] == "set,law,parameter,value,low,high,level"
    assert lines[1].startswith("code,exponential_mixing,E,")


def test_new_mixtures_and_held_out_runs_are_predicted(run):
    words = ("--bootstrap", "0", "--predict", "code=0.2,web=0.8", "--holdout", "run = 'mix3'")
    found = json.loads(run("fit", "--form", "mixture", *words, "--json"))
    (answer,) = found["predictions"]
    true = 1.0 + np.exp(0.2 * -3 + 0.8 * -0.2)
    assert answer["losses"]["code"]["value"] == pytest.approx(true, rel=1e-3)
    assert (found["holdout"]["n"], found["n_runs"]) == (1, 6)
    assert found["holdout"]["rmse"]["code"] < 1e-3


def test_decide_gives_weights_within_unique_tokens(run):
    out = run(
        *("decide", "--mixture", "--target", "code", "--n-tokens", "1B"),
        *("--unique-tokens", "code=0.1B", "--json"),
    )
    best = json.loads(out)
    assert best["weights"]["code"]["value"] == pytest.approx(0.4)
    assert best["epochs"] == {"code": pytest.approx(4)}
    assert best["binding"] == ["code"]
    page = run("decide", "--mixture", "--target", "0.5*code+0.5*web")
    assert "Lowest 0.5 code + 0.5 web at N = 70M" in page
    assert "mix" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fit", "--form", "mixture", "--residual", "linear"), "Remove --residual"),
        (("fit", "--form", "mixture", "--map", "weight_a=proportion_code"), "1 source"),
        (("fit", "--form", "mixture", "--map", "loss_code=nope"), "nope"),
        (("fit", "--form", "mixture", "--predict", "code=0.5,web=0.6"), "sum to 1.1"),
        (("fit", "--form", "mixture", "--predict", "code=1,N=1B"), "several n_params"),
        (("decide", "--mixture", "--target", "0.5*code+0.6*web"), "sum to 1.1"),
        (("decide", "--mixture", "--target", "cod"), "Did you mean code"),
        (("decide", "--mixture", "--flops", "1e20"), "Remove --flops"),
        (("decide", "--target", "code"), "Add --mixture"),
        (("decide", "--mixture", "--unique-tokens", "1e9"), "SOURCE=TOKENS"),
        (("decide", "--mixture", "--unique-tokens", "code=1e9"), "--n-tokens"),
    ],
)
def test_mistakes_are_named(run, words, message):
    assert message in run(*words, code=2 if "1 source" not in message else 3)
