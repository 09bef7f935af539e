"""``scalelab fit``: its options, formats and answers."""

import csv
import json

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--predict", "N=abc"], 2),
        (["--predict", "M=1e9"], 2),
        (["--form", "nosuch"], 2),
        (["--residual", "cubic"], 2),
        (["--loss", "l7"], 2),
        (["--delta", "-1"], 2),
        (["--level", "1.5"], 2),
        (["--bootstrap", "-3"], 2),
        (["--bootstrap", "1"], 2),
        (["--seed", "-1"], 2),
        (["--predict", "N=7B,d=2T"], 2),
        (["--where", "nosuch = 1"], 2),
        (["--map", "n_params"], 2),
        (["--plot", "picture.jpg"], 2),
        (["--nosuch"], 2),
        (["--bootstrap", "many"], 2),
        (["--json", "--csv"], 2),
        (["--where", "flops < 0"], 3),
        (["--holdout", "flops > 0"], 3),
        (["--map", "loss_nats=n_tokens*0"], 3),
    ],
)
@pytest.mark.parametrize("as_json", [True, False])
def test_invalid_options_give_an_error_in_three_parts(run, file, words, code, as_json):
    extra = [] if as_json is False or "--json" in words else ["--json"]
    out, err = run("fit", "--from", file, *words, *extra, code=code)
    if "--json" in [*words, *extra]:
        assert set(json.loads(out)["error"]) == {"given", "allowed", "do"}
    else:
        assert out == ""
        assert err.startswith("error: ")
        assert len(err.strip().splitlines()) >= 3


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("", 3),
        ("n_params,n_tokens,loss\n", 3),
        ("n_params,n_tokens\n1e6,1e7\n", 3),
        ("n_params,n_tokens,loss\nnan,1e7,3\n", 3),
        ("n_params,n_tokens,loss\n1e6,1e7,-3\n", 3),
        ("n_params,n_tokens,loss\nx,y,z\n", 3),
        ("n_params,n_tokens,loss\n1e6,1e7,3\n", 4),
        ("n_params,n_tokens,loss\n" + "1e6,1e7,3\n" * 9, 4),
        ("n_params,n_tokens,loss\n" + "".join(f"{i}e6,1e7,{4 - i / 9}\n" for i in range(1, 9)), 4),
        ("n_params,n_tokens,loss\n" + "".join(f"1e6,{i}e7,{4 - i / 9}\n" for i in range(1, 9)), 4),
    ],
    ids=["empty", "header", "column", "nan", "negative", "words", "one", "same", "one-D", "one-N"],
)
def test_garbage_gets_the_right_answer(run, tmp_path, content, code):
    path = tmp_path / "runs.csv"
    path.write_text(content)
    out, _ = run(
        "fit", "--from", path, "--json", "--bootstrap", 20, "--predict", "N=1e9", code=code
    )
    found = json.loads(out)
    if code == 3:
        assert set(found) == {"error"}
    else:
        assert found["status"] == "not_identified"
        assert found["predictions"] == []
        assert found["warnings"][0]["code"] == "not_identified"


@pytest.mark.usefixtures("ranked_once")
def test_json_is_one_object_on_stdout_with_nothing_beside_it(run, file, tmp_path):
    plot = tmp_path / "fit.svg"
    out, err = run("fit", "--from", file, "--json", "--bootstrap", 20, "--plot", plot, "--compare")
    found = json.loads(out)
    assert out.count("\n") == 1
    assert err == ""
    assert plot.stat().st_size > 10_000
    candidates = found["compare"]["candidates"]
    assert candidates[0]["form"] in found["compare"]["verdict"]
    tried = [(c["form"], c["residual"], c["loss"], c["delta"]) for c in candidates]
    assert len(set(tried)) == len(tried)


def test_tex_and_csv_go_to_stdout(run, file):
    words = ["fit", "--from", file, "--bootstrap", 20, "--forecaster", "law"]
    assert run(*words, "--tex")[0].startswith("\\begin{table}")
    rows = list(csv.DictReader(run(*words, "--csv")[0].splitlines()))
    assert {row["name"] for row in rows} >= {"A", "B", "E", "alpha", "beta", "a"}


def test_the_seed_decides_the_intervals_and_nothing_else(run, file):
    def fitted(seed):
        words = [
            "fit",
            "--from",
            file,
            "--json",
            "--bootstrap",
            50,
            "--seed",
            seed,
            "--forecaster",
            "law",
        ]
        return json.loads(run(*words)[0])["params"]["alpha"]

    assert fitted(1) == fitted(1)
    assert fitted(1)["value"] == fitted(2)["value"]
    assert fitted(1)["low"] != fitted(2)["low"]


def test_a_named_cluster_is_resampled_whole(run, tmp_path, isoflop_runs):
    rows = isoflop_runs()
    lines = ["n_params,n_tokens,loss,trunk"]
    for i in range(len(rows)):
        row = (rows.n_params[i], rows.n_tokens[i], rows.loss_nats[i])
        lines.append(",".join(repr(float(value)) for value in row) + f",t{i // 3}")
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines) + "\n")
    words = ["fit", "--from", path, "--json", "--bootstrap", 50, "--forecaster", "law"]
    assert json.loads(run(*words)[0])["bootstrap"]["method"] == "row"
    found = json.loads(run(*words, "--cluster", "trunk")[0])["bootstrap"]
    assert found["method"] == "cluster"
    assert found["cluster"] == "trunk"


def test_a_speedup_is_printed_as_compute_saved(run, file):
    words = [
        "fit",
        "--from",
        file,
        "--bootstrap",
        50,
        "--speedup",
        "n_params % 2 < 1",
        "--forecaster",
        "law",
    ]
    out, _ = run(*words)
    assert out.startswith("Recipe B ")
    assert "(speed-up " in out.splitlines()[0]
    found = json.loads(run(*words, "--json")[0])["speedup"]
    assert found["factor"]["low"] < 1 < found["factor"]["high"]


def test_a_holdout_is_scored(run, file):
    words = ["fit", "--from", file, "--bootstrap", 50, "--holdout", "flops > 5e19"]
    assert "Held out: 9 rows" in run(*words)[0]
    found = json.loads(run(*words, "--json")[0])["holdout"]
    assert found["n_rows"] == 9
    assert 0 < found["mean_relative_error"] < 0.02


def largest_difference(one, two, path=""):
    """Return the largest relative difference between numbers of two JSON objects of one shape."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), path
        return max((largest_difference(one[k], two[k], f"{path}/{k}") for k in one), default=0.0)
    if isinstance(one, list):
        assert len(one) == len(two), path
        pairs = zip(one, two, strict=True)
        return max((largest_difference(a, b, path) for a, b in pairs), default=0.0)
    if isinstance(one, float) and isinstance(two, float):
        return abs(one - two) / max(abs(one), 1e-300)
    assert one == two, path
    return 0.0


def test_order_of_rows_and_columns_changes_nothing(run, tmp_path):
    """One isoFLOP curve is nearly straight: its distant minimum amplifies any rounding."""
    rng = np.random.default_rng(1)
    C = np.exp(rng.uniform(np.log(6e18), np.log(3e21), 1000))[:60]
    N = np.sqrt(C / 120) * np.exp(rng.normal(0, 0.8, 1000)[:60])
    loss = (1.817 + 482 * N**-0.3478 + 2085.4 * (C / 6 / N) ** -0.3659) * np.exp(
        0.004 * rng.standard_normal(1000)[:60]
    )
    names = ["n_params", "n_tokens", "loss_nats", "flops"]
    table = np.stack([N, C / 6 / N, loss, C], axis=1)

    def said(rows, columns):
        lines = [",".join(names[j] for j in columns)]
        lines += [",".join(repr(float(v)) for v in row) for row in table[rows][:, columns]]
        (tmp_path / "runs.csv").write_text("\n".join(lines) + "\n")
        words = [
            "--predict",
            "C=1e24",
            "--predict",
            "N=7e9",
            "--bootstrap",
            "200",
            "--json",
            "--forecaster",
            "law",
        ]
        return json.loads(run("fit", "--from", tmp_path / "runs.csv", *words)[0])

    plain = said(np.arange(60), [0, 1, 2, 3])
    assert any(v["n_params"]["edge"] for v in plain["approaches"]["2"]["valleys"])
    assert largest_difference(plain, said(np.arange(60), [3, 1, 0, 2])) == 0.0
    assert largest_difference(plain, said(rng.permutation(60), [0, 1, 2, 3])) <= 1e-12
