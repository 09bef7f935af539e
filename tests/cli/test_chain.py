"""`scalelab fit --metric task:NAME --chain`: task loss, accuracy, intervals, tasks at chance."""

import json

import numpy as np
import pandas as pd
import pytest

from scalelab.cli.main import main
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.task_accuracy import fit_direct, fit_link
from scalelab.records.types import Observations

SIZES = np.array([1e8, 2e8, 4e8, 1e9])


def task_loss(N, D):
    return 0.4 + 30 * N**-0.25 + 60 * D**-0.25


def sigmoid(loss, k=9.0, middle=0.8, chance=0.25):
    return chance + (1 - chance) / (1 + np.exp(k * (loss - middle)))


def rows_of(loss, N=None, cluster=None):
    n = np.ones(len(loss))
    sizes = n if N is None else N
    return Observations(
        n_params=sizes, n_tokens=n, loss_nats=loss, flops=6 * sizes, cluster=cluster
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Return runs of four sizes and three lengths, with one task above chance and one at it."""
    rng = np.random.default_rng(0)
    N = np.repeat(SIZES, 3)
    D = N * np.tile([20.0, 60.0, 200.0], 4)
    loss = task_loss(N, D)
    noise = rng.normal(size=(2, len(N))) * 0.004
    table = pd.DataFrame(
        {
            "run": [f"r{i}" for i in range(len(N))],
            "n_params": N,
            "n_tokens": D,
            "bpb_hellaswag": loss * np.exp(rng.normal(size=len(N)) * 0.002),
            "acc_hellaswag": sigmoid(loss) + noise[0],
            "bpb_hard": loss,
            "acc_hard": 0.25 + noise[1],
        }
    )
    path = tmp_path_factory.mktemp("chain") / "runs.csv"
    table.to_csv(path, index=False)
    return path


@pytest.fixture
def run(capsys, file):
    def call(*words, code=0):
        capsys.readouterr()
        found = main(["fit", "--from", str(file), "--bootstrap", "20", *words])
        out, err = capsys.readouterr()
        assert found == code, f"exit {found}: {out[-800:]} {err[-800:]}"
        return out + err

    return call


ASKED = ("--chain", "--predict", "N=4e9,D=8e11")


@pytest.mark.slow
def test_a_larger_model_is_predicted_through_both_steps(run):
    found = json.loads(run("--metric", "task:hellaswag", *ASKED, "--json"))
    (answer,) = found["tasks"][0]["predictions"]
    true = float(sigmoid(task_loss(4e9, 8e11)))
    assert answer["accuracy"]["value"] == pytest.approx(true, abs=0.03)
    assert answer["accuracy"]["low"] < true < answer["accuracy"]["high"]
    assert answer["task_loss"] == pytest.approx(task_loss(4e9, 8e11), rel=0.02)
    assert answer["forecaster"] == "averaged"


@pytest.mark.slow
def test_the_page_has_every_task_and_no_number_for_one_at_chance(run, tmp_path):
    words = ("--metric", "task:all", *ASKED, "--chance", "0.25", "--forecaster", "law")
    out = run(*words, "--plot", str(tmp_path / "chain.png"))
    assert "at chance: no prediction" in out
    assert "hellaswag  N=4e9,D=8e11" in out
    assert (tmp_path / "chain.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_task_at_chance_alone_ends_without_a_number(run):
    words = ("--metric", "task:hard", *ASKED, "--forecaster", "law")
    assert "so there is no prediction" in run(*words, code=4)
    header, row = run(*words, "--csv", code=4).splitlines()
    assert row.startswith("hard,at_chance,,")
    assert row.count(",") == header.count(",")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--chain",), "--metric task:NAME"),
        (("--chain", "--metric", "hellaswag"), "--metric task:NAME"),
        (("--chain", "--metric", "task:helaswag"), "Did you mean --metric task:hellaswag?"),
        (("--chain", "--metric", "task:hard", "--compare"), "Remove --compare"),
        (("--chance", "0.25"), "Add --chain"),
        (("--chain", "--metric", "task:hard", "--chance", "1.5"), "chance 1.5"),
    ],
)
def test_mistakes_are_named(run, words, message):
    assert message in run(*words, code=2)


def test_the_sigmoid_is_recovered_and_clusters_widen_its_interval():
    loss = np.linspace(0.75, 1.4, 60)
    rng = np.random.default_rng(1)
    shared = np.repeat(rng.normal(size=6) * 0.02, 10)
    accuracy = sigmoid(loss) + shared
    spec = BootstrapSpec(k=40)
    link = fit_link(rows_of(loss), accuracy, "hellaswag", bootstrap=spec)
    assert link.fit.params["k"] == pytest.approx(9, rel=0.15)
    assert (link.chance, link.is_chance_known, link.is_at_chance) == (0.25, True, False)
    labels = np.repeat([f"run{i}" for i in range(6)], 10)
    clustered = fit_link(rows_of(loss, cluster=labels), accuracy, "hellaswag", bootstrap=spec)

    def width(found):
        drawn = found.draws(np.full(4000, 0.7), np.random.default_rng(0))
        return np.ptp(np.quantile(drawn, [0.05, 0.95]))

    assert width(clustered) > 1.3 * width(link)


def test_an_unknown_task_takes_the_chance_that_fits_best():
    loss = np.linspace(0.7, 1.8, 50)
    link = fit_link(rows_of(loss), sigmoid(loss, chance=0.5), "mine", bootstrap=BootstrapSpec(k=0))
    assert (link.chance, link.is_chance_known) == (0.5, False)


def test_an_error_for_the_largest_models_widens_the_interval():
    N = np.repeat([1.0, 2.0, 3.0], 8)
    loss = np.concatenate([np.linspace(1.2, 0.9, 8) - 0.1 * i for i in range(3)])
    bent = np.where(N == 3, sigmoid(loss, middle=0.86), sigmoid(loss))
    none = BootstrapSpec(k=0)
    straight = fit_link(rows_of(loss, N), sigmoid(loss), "hellaswag", bootstrap=none)
    found = fit_link(rows_of(loss, N), bent, "hellaswag", bootstrap=none)
    assert straight.misfit < 1e-3
    assert found.misfit == pytest.approx(9 * 0.06, rel=0.1)
    drawn = found.draws(np.full(2000, 0.7), np.random.default_rng(0))
    assert np.ptp(np.quantile(drawn, [0.05, 0.95])) > 0.1


def test_the_direct_law_is_recovered_and_needs_runs_above_chance():
    flops = np.geomspace(1e18, 1e20, 12)
    p = np.exp(-np.exp(8.0 - 0.18 * np.log(flops)))
    law = fit_direct(flops, 0.25 + 0.75 * p, 0.25, replicates=10)
    assert (law.intercept, law.alpha) == pytest.approx((8.0, 0.18), rel=1e-6)
    assert law.accuracy(1e22) == pytest.approx(
        0.25 + 0.75 * np.exp(-np.exp(8.0 - 0.18 * np.log(1e22)))
    )
    assert fit_direct(flops, np.full(12, 0.25), 0.25) is None
