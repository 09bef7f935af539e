"""`--metric` on the command line: units in every answer, and all sets at once."""

import json

import numpy as np
import pandas as pd
import pytest

from scalelab.cli.main import main

BUDGETS = (1e18, 1e19, 1e20)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Noise-free runs with a held-out loss, a loss on code of another optimum, and bits per byte.

    On ``code``, tokens are worth more: B is smaller, so the compute-optimal D/N is larger.
    """
    rows = []
    noise = np.random.default_rng(0)
    for budget in BUDGETS:
        for ratio in np.geomspace(0.3, 3, 6):
            n = np.sqrt(budget / 120) * ratio
            d = budget / 6 / n
            row = {"n_params": n, "n_tokens": d, "flops": budget, "budget": budget}
            for name, law in {
                "loss": (1.7, 400, 0.34, 410, 0.28),
                "loss_code": (0.9, 300, 0.36, 150, 0.24),
                "bpb_web": (0.6, 100, 0.33, 180, 0.33),
            }.items():
                e, a, alpha, b, beta = law
                value = e + a / n**alpha + b / d**beta
                row[name] = value * np.exp(noise.normal(0, 5e-4))
            rows.append(row)
    path = tmp_path_factory.mktemp("metric") / "runs.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture
def run(capsys):
    """Return a runner of the command line: stdout, stderr and exit code."""

    def call(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return out, err, code

    return call


@pytest.mark.slow
def test_every_answer_names_the_metric_and_its_unit(run, table):
    quick = ("--bootstrap", "0", "--forecaster", "law", "--predict", "C=1e21")
    text, _, _ = run("fit", "--from", table, "--metric", "bpb:web", *quick)
    assert "loss on web" in text
    assert "bits/byte" in text
    assert "nats" not in text
    out, _, _ = run("fit", "--from", table, "--metric", "bpb:web", *quick, "--json")
    found = json.loads(out)
    assert (found["metric"], found["unit"]) == ("bpb:web", "bits/byte")
    assert "loss_bits_per_byte" in found["predictions"][0]
    assert "loss_nats" not in json.dumps(found)
    default = json.loads(run("fit", "--from", table, *quick, "--json")[0])
    assert (default["metric"], default["unit"]) == ("heldout", "nats/token")
    assert "loss_nats" in default["predictions"][0]


def test_an_unknown_metric_is_refused_with_the_known_ones(run, table):
    _, err, code = run("fit", "--from", table, "--metric", "coed")
    assert code == 2
    assert "Did you mean --metric code?" in err
    assert "bpb:web" in err


@pytest.mark.slow
def test_decide_and_its_next_command_keep_the_metric(run, table):
    args = ("--from", table, "--metric", "code", "--forecaster", "law")
    text, _, _ = run("fit", *args, "--bootstrap", "20")
    assert f"scalelab decide --from {table} --metric code" in text
    out, _, _ = run("decide", *args, "--candidate", "1B:20B", "--json")
    found = json.loads(out)
    assert (found["metric"], found["unit"]) == ("code", "nats/token")


@pytest.mark.slow
def test_all_metrics_are_compared(run, table, tmp_path):
    plot = tmp_path / "sets.png"
    args = ("fit", "--from", table, "--metric", "all", "--bootstrap", "20", "--forecaster", "law")
    text, _, _ = run(*args, "--plot", plot)
    assert "code" in text.splitlines()[0]
    assert "times as much" in text
    assert plot.stat().st_size > 1000
    found = json.loads(run(*args, "--json")[0])
    assert [row["metric"] for row in found["metrics"]] == ["heldout", "code", "bpb:web"]
    assert [m.rpartition(":")[2] for m in found["disagreements"][0]["metrics"]] == ["web", "code"]
    by_name = {row["metric"]: row for row in found["metrics"]}
    assert by_name["code"]["tokens_per_param"]["value"] == pytest.approx(167, rel=0.15)
    assert by_name["heldout"]["beta"]["value"] == pytest.approx(0.28, abs=0.02)
    _, err, code = run(*args, "--speedup", "n_params > 1e8")
    assert code == 2
    assert "--metric all with --speedup" in err
