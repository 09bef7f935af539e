import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from scalelab.cli.fit_page import _print_warning
from scalelab.cli.main import main
from scalelab.fit import select
from scalelab.fit.outcome import FitWarning

REFERENCE = Path(__file__).parents[1] / "golden" / "reference_optima.csv"


def reference_rows():
    with REFERENCE.open() as stream:
        return list(csv.DictReader(stream))


def name_of(row):
    return "-".join(
        str(part)
        for part in (row["dataset"], row["n"], row["n_column"], row["residual"], row["loss"])
        + ((row["delta"],) if row["delta"] else ())
    )


@pytest.fixture
def run(capsys):
    """Return a runner of the command line: exit code, stdout, stderr."""

    def call(*words, code=0):
        capsys.readouterr()
        found = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert found == code, f"exit {found}: {out[-800:]} {err[-800:]}"
        return out, err

    return call


@pytest.fixture(scope="module")
def rankings():
    return {}


@pytest.fixture
def ranked_once(rankings, monkeypatch):
    """Rank the forms of the same rows once: the tests that use it are about what is printed."""
    rank = select.compare

    def once(rows, **options):
        key = (rows.loss_nats.tobytes(), repr(sorted(options.items())))
        if key not in rankings:
            rankings[key] = rank(rows, **options)
        return rankings[key]

    monkeypatch.setattr(select, "compare", once)


@pytest.fixture(scope="module")
def file(isoflop_runs, tmp_path_factory):
    rows = isoflop_runs(noise=0.004)
    path = tmp_path_factory.mktemp("cli") / "runs.csv"
    columns = (rows.n_params, rows.n_tokens, rows.loss_nats, rows.flops, rows.budget)
    lines = ["n_params,n_tokens,loss,flops,isoflop_budget"]
    lines += [",".join(repr(float(value)) for value in row) for row in zip(*columns, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_reference_has_its_42_rows():
    assert len(reference_rows()) == 42


@pytest.mark.parametrize("row", reference_rows(), ids=name_of)
def test_the_reference_optima_are_reached_from_the_command_line(run, tables, row):
    words = [
        "fit",
        "--from",
        tables / row["file"],
        "--bootstrap",
        0,
        "--json",
        "--forecaster",
        "law",
    ]
    words += ["--residual", row["residual"], "--loss", row["loss"]]
    if row["where_sql"]:
        words += ["--where", row["where_sql"]]
    if row["delta"]:
        words += ["--delta", row["delta"]]
    if row["n_column"] != "n_params":
        words += ["--map", f"n_params={row['n_column']}"]
    runs_to_zero = "E runs to 0" in row["note"]
    out, _ = run(*words, code=4 if runs_to_zero else 0)
    found = json.loads(out)
    assert found["n_rows"] == int(row["n"])
    assert found["objective"]["value"] <= float(row["objective_sum"]) * (1 + 1e-6)
    # A lower value than the reference's own digits would be another objective.
    assert found["objective"]["value"] >= float(row["objective_sum"]) * (1 - 1e-9)
    if runs_to_zero:
        assert found["status"] == found["law_status"] == "not_identified"
        assert found["predictions"] == []
    else:
        assert not row["note"]
        for name in ("A", "B", "E", "alpha", "beta"):
            assert found["params"][name]["value"] == pytest.approx(float(row[name]), rel=1e-4)
        assert found["derived"]["a"]["value"] == pytest.approx(float(row["a"]), rel=1e-4)


def test_the_optimum_at_chinchillas_compute(run, tables):
    """N_opt and D_opt of the published table's row 4, at 5.76e23 FLOP."""
    words = ["--from", tables / "chinchilla" / "data.csv"]
    words += ["--where", "excluded_besiroglu=0", "--predict", "C=5.76e23", "--bootstrap", 0]
    words += ["--forecaster", "law"]
    out, _ = run("fit", *words, "--json")
    (found,) = json.loads(out)["predictions"]
    assert found["n_params"] == pytest.approx(73.19e9, rel=1e-4)
    assert found["n_tokens"] == pytest.approx(1.3116e12, rel=1e-4)
    assert found["n_tokens"] / found["n_params"] == pytest.approx(17.9, abs=0.05)


def test_the_first_line_is_the_answer(run, file):
    out, err = run("fit", "--from", file, "--predict", "N=1e9", "--bootstrap", 50)
    first = out.splitlines()[0]
    assert first.startswith("By the average of ")
    assert " laws, N 1B on D " in first
    assert "compute-optimal" in first
    assert "90 % " in first
    assert "x the FLOPs of the largest budget" in first
    assert out.splitlines()[1].startswith("The chinchilla law alone: loss ")
    assert err == ""
    words = ["--from", file, "--predict", "N=1e9", "--bootstrap", 50, "--forecaster", "law"]
    assert run("fit", *words)[0].startswith("By the chinchilla law, N 1B on D ")


@pytest.mark.parametrize("command", ["fit", "decide", "report"])
def test_the_rows_used_the_answer_and_the_verdict_with_its_warnings_come_first(
    run, file, tmp_path, command
):
    lines = file.read_text().splitlines()
    bad = [
        ",".join(
            "" if name == "loss" else value
            for name, value in zip(lines[0].split(","), line.split(","), strict=True)
        )
        for line in lines[1:4]
    ]
    outlier = lines[5].split(",")
    outlier[lines[0].split(",").index("loss")] = "9.5"
    table = tmp_path / "bad.csv"
    table.write_text("\n".join([*lines[:5], ",".join(outlier), *lines[6:], *bad]))
    words = {
        "fit": ["--bootstrap", 20],
        "decide": ["--flops", "1e21"],
        "report": ["--out", tmp_path / "r.html"],
    }
    out, _ = run(command, "--from", table, *words[command], "--forecaster", "law")
    n = len(lines) - 1
    said = out.splitlines()
    assert said[0].startswith(f"{n} of {n + 3} rows used. With ")
    assert "your largest " in said[0]
    assert said[2:4] == ["", "Verdict: with warnings."]
    assert any(line.startswith("  outliers: 1 row") for line in said[4:10])
    assert out.count("outliers: ") == 1


@pytest.mark.usefixtures("ranked_once")
@pytest.mark.parametrize("command", ["fit", "decide", "doctor"])
def test_narrow_output_cuts_no_number_and_keeps_its_width(run, file, monkeypatch, command):
    words = {
        "fit": ["--from", file, "--bootstrap", 20, "--predict", "C=1e21", "--compare"],
        "decide": ["--from", file, "--flops", "1e21"],
        "doctor": [],
    }
    wide, _ = run(command, *words[command])
    for columns in (40, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        out, _ = run(command, *words[command])
        assert "…" not in out
        numbers = set(re.findall(r"\d+\.\d{2,}", wide)) if command != "doctor" else set()
        assert numbers <= set(re.findall(r"\d+\.\d{2,}", out))
        assert any(len(line.rstrip()) <= columns for line in out.splitlines())


def test_a_warning_wraps_with_its_prefix_counted():
    message = "1 of 9 budgets has no minimum inside its grid: 1e20. Add sizes on that side. " * 4
    file = io.StringIO()
    out = Console(file=file, force_terminal=True, width=50, no_color=True)
    _print_warning(FitWarning(code="edge_minimum", message=message), out)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 50
    assert lines[0].startswith("  edge minimum: 1 of 9")
    assert all(line.startswith("    ") for line in lines[1:])
    assert " ".join(" ".join(lines).split()) == f"edge minimum: {message.strip()}"


def test_a_far_forecast_carries_its_warning_in_its_first_line(run, file):
    out, _ = run(
        "fit", "--from", file, "--predict", "N=7e12", "--bootstrap", 50, "--forecaster", "law"
    )
    assert out.splitlines()[0].startswith("Extrapolation: ")
    assert "extrapolation: N=7e12 is far outside the fitted runs" in out
    words = ["--predict", "N=7e12", "--bootstrap", 50, "--json", "--forecaster", "law"]
    found, _ = run("fit", "--from", file, *words)
    assert json.loads(found)["warnings"][0]["code"] == "extrapolation"


@pytest.mark.parametrize(("k", "level", "is_few"), [(19, 0.9, 1), (20, 0.9, 0), (39, 0.95, 1)])
def test_replicates_too_few_for_their_level_are_said(run, file, k, level, is_few):
    words = ["--bootstrap", k, "--level", level, "--json", "--forecaster", "law"]
    out, _ = run("fit", "--from", file, *words)
    codes = [warning["code"] for warning in json.loads(out)["warnings"]]
    assert codes.count("few_replicates") == is_few


def test_piped_output_is_plain_and_whole(run, file):
    long = " AND ".join(["flops > 0"] * 40)
    out, _ = run("fit", "--from", file, "--where", long, "--bootstrap", 20, "--forecaster", "law")
    assert "\x1b" not in out
    assert "…" not in out
    assert long in out


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_no_number_is_cut_off_on_a_narrow_terminal(run, file, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    out, _ = run("fit", "--from", file, "--predict", "C=1e21", "--bootstrap", 50, "-v")
    assert "…" not in out
    words = ["--predict", "C=1e21", "--bootstrap", 50, "--csv", "--forecaster", "law"]
    wide = run("fit", "--from", file, *words)[0]
    beta = next(line for line in wide.splitlines() if line.startswith("param,beta"))
    assert f"{float(beta.split(',')[2]):.7g}" in out


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


def test_the_help_has_an_example(run):
    out, _ = run("fit", "--help")
    assert "Example: scalelab fit --from runs.csv" in " ".join(out.split())


@pytest.mark.parametrize("no_color", ["1", None])
def test_the_installed_command_runs_as_a_process(tables, no_color):
    command = Path(sys.executable).with_name("scalelab")
    words = [
        "fit",
        "--from",
        tables / "llama3" / "data.csv",
        "--predict",
        "C=3.8e25",
        "--forecaster",
        "law",
    ]
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    if no_color:
        environment["NO_COLOR"] = no_color
    done = subprocess.run(
        [command, *words], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Extrapolation: ")
    assert "approaches disagree" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_a_process_that_is_not_identified_ends_with_four(tables):
    command = Path(sys.executable).with_name("scalelab")
    words = ["--from", tables / "misfitting" / "best_lr.csv", "--bootstrap", "0", "--json"]
    done = subprocess.run(
        [command, "fit", *words, "--map", "n_params=n_params_nonembed"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    found = json.loads(done.stdout)
    assert found["status"] == found["law_status"] == "not_identified"
    assert np.isfinite(found["objective"]["value"])
    assert found["param_convention"] == "kaplan"


@pytest.mark.parametrize("output", [[], ["--json"], ["--csv"], ["--help"]])
def test_a_reader_that_stops_ends_the_command_quietly(tmp_path, file, output):
    """As in ``scalelab fit .. | head -1``: 128 + SIGPIPE, and nothing on stderr."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "scalelab", "fit", "--from", file, "--forecaster", "law", *output],
        stdout=write_end,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        check=False,
    )
    os.close(write_end)
    assert done.returncode == 141
    assert done.stderr == b""


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


def test_a_fit_that_is_not_identified_shows_no_intervals(run, tmp_path):
    (tmp_path / "two.csv").write_text("n_params,n_tokens,loss\n1e6,1e7,3\n2e6,2e7,2.8\n")
    out, _ = run("fit", "--from", tmp_path / "two.csv", code=4)
    assert out.startswith("No answer")
    assert "Verdict: not identified." in out
    assert out.count("2 distinct") == 1
    for words in ("[", "0 failed", "(answer)", "confidence interval"):
        assert words not in out


def test_every_interval_on_the_page_has_a_name(run):
    words = ["fit", "--from", "public:chinchilla", "--bootstrap", 20, "--predict", "C=1e24"]
    out, _ = run(*words)
    assert "from public:chinchilla." in out
    assert "90 % confidence interval 1." in out
    assert "90 % prediction interval of a new run 1." in out
    assert "In brackets: 90 % confidence intervals of N and D; 90 % prediction interval" in out


@pytest.mark.parametrize(
    ("chosen", "label"), [((2, 4, 18, 23, 32, 34), None), (range(45), "ladder")]
)
def test_the_first_line_says_that_there_are_no_intervals(run, file, tmp_path, chosen, label):
    lines = file.read_text().splitlines()
    some = [lines[0], *(lines[1 + i] for i in chosen)]
    if label is not None:
        some = [f"{line},{label if i else 'cluster'}" for i, line in enumerate(some)]
    path = tmp_path / "few.csv"
    path.write_text("\n".join(some) + "\n")
    asked = ["fit", "--from", path, "--predict", "C=1e21"]
    out, _ = run(*asked, "--forecaster", "law")
    assert out.startswith("No intervals: ")
    assert "confidence interval" not in out.splitlines()[0]
    found = json.loads(run(*asked, "--forecaster", "law", "--json")[0])
    (prediction,) = found["predictions"]
    assert prediction["loss_nats"] > 0
    assert {prediction[name] for name in ("low", "high", "pred_low", "pred_high")} == {None}
    assert {each["low"] for each in found["params"].values()} == {None}
    assert "no_interval" in {warning["code"] for warning in found["warnings"]}


def test_a_fit_loads_no_library_that_it_does_not_use():
    code = (
        "import sys\n"
        "from scalelab.cli.main import main\n"
        "assert main(['fit', '--from', 'public:chinchilla', '--bootstrap', '40']) == 0\n"
        "heavy = {'scipy.optimize', 'scipy.interpolate', 'scipy.stats', 'pandas', 'pyarrow',"
        " 'matplotlib', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
