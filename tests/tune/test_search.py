"""A tiny real tuning, and its parts without one."""

import json
import math
import signal
import subprocess
import sys

import numpy as np
import pytest

from scalelab.cli.main import main
from scalelab.errors import UsageError
from scalelab.records.sweep_dir import Results
from scalelab.sweep.plan import make_plan
from scalelab.sweep.planned_run import DataFacts
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.sweep.values import parse_ends
from scalelab.tune.run_end import curve_by_percent
from scalelab.tune.search import runs_of
from scalelab.tune.spec import TuneSpec, powers_of_two
from scalelab.tune.study import RUN_ID, OpenTrial, Studies
from tests.launch.local.frozen import frozen_worker, has_pending, wait_for

FACTS = DataFacts(
    fingerprint="f",
    eval_fingerprint="e",
    tokenizer="bytes",
    vocab_size=256,
    n_train_tokens=10**9,
    n_eval_tokens=10**5,
)


def spec_of(**changes):
    content = {"kind": "grid", "name": "t", "n_params": "20K,40K", "n_tokens": "1M"}
    return TuneSpec(sweep=sweep_from_mapping(content, source="the test"), **changes)


def cells_of(spec):
    return list(make_plan(spec.sweep, FACTS, precision="fp32").rows)


def studies_of(folder, spec):
    return Studies(folder, spec, cells_of(spec))


def opened(studies, cell, number):
    trial, values = studies.ask(cell)
    trial.set_user_attr(RUN_ID, f"run{number}")
    return OpenTrial(cell=cell, trial=trial, run_id=f"run{number}"), values


def test_the_search_finds_the_optimum(tmp_path):
    spec = spec_of(trials=24, lr=(1e-4, 1e-1), batch_seqs=(2, 64), is_pruned=False)
    studies = studies_of(tmp_path, spec)
    tried = []
    for number in range(24):
        trial, values = opened(studies, 0, number)
        loss = (
            1
            + 0.1 * math.log(values["lr"] / 6e-3) ** 2
            + 0.05 * math.log2(values["batch_seqs"] / 16) ** 2
        )
        studies.tell(trial, loss, is_pruned=False)
        tried.append(values)
    first = np.log([v["lr"] for v in tried[:4]])
    assert first.max() - first.min() > 0.5 * math.log(1e3)
    late = np.log([v["lr"] for v in tried[-8:]])
    assert abs(np.median(late) - math.log(6e-3)) < 1.0
    assert studies.n_wanted(0) == 0
    assert studies.n_wanted(1) == 4


def test_a_study_resumes_from_its_journal(tmp_path):
    spec = spec_of(trials=6)
    studies = studies_of(tmp_path, spec)
    done, _ = opened(studies, 0, 1)
    studies.tell(done, 2.0, is_pruned=False)
    opened(studies, 1, 2)
    studies.ask(1)
    again = studies_of(tmp_path, spec)
    (left,) = again.open_trials()
    assert (left.cell, left.run_id) == (1, "run2")
    again.tell(left, 1.5, is_pruned=False)
    assert again.open_trials() == []
    assert sorted(trial.value for _, trial in again.trials()) == [1.5, 2.0]
    assert again.n_wanted(0) == 4


def test_a_bad_run_is_pruned_at_equal_tokens_and_a_good_one_is_kept(tmp_path):
    studies = studies_of(tmp_path, spec_of(trials=12))
    for number, final in enumerate((1.0, 1.1, 1.2, 1.3)):
        trial, _ = opened(studies, 0, number)
        assert not studies.should_prune(trial, {p: final + 1 - p / 100 for p in range(10, 101, 10)})
        studies.tell(trial, final, is_pruned=False)
    bad, _ = opened(studies, 0, 10)
    assert not studies.should_prune(bad, {10: 5.0, 20: 5.0})
    assert studies.should_prune(bad, {10: 5.0, 20: 5.0, 30: 5.0, 40: 5.0, 50: 5.0})
    good, _ = opened(studies, 0, 11)
    assert not studies.should_prune(good, {50: 1.4, 60: 1.3})


def test_a_diverged_run_is_an_infinite_loss_not_a_failure(tmp_path):
    studies = studies_of(tmp_path, spec_of(trials=12, is_pruned=False))
    for number in range(8):
        trial, values = opened(studies, 0, number)
        studies.tell(
            trial, math.inf if values["lr"] > 0.02 else 2.0 - values["lr"], is_pruned=False
        )
    assert all(trial.state.name == "COMPLETE" for _, trial in studies.trials())


def test_bounds_surround_the_rule_unless_given():
    spec = spec_of()
    row = cells_of(spec)[0]
    bounds = spec.bounds(row)
    low, high = bounds["lr"]
    assert math.sqrt(low * high) == pytest.approx(row.spec.lr)
    assert bounds["batch_seqs"][0] < row.spec.batch_seqs < bounds["batch_seqs"][1]
    assert set(bounds) == {"lr", "batch_seqs"}
    given = spec_of(lr=(1e-3, 1e-2), weight_decay=(0.01, 0.3)).bounds(row)
    assert given["lr"] == (1e-3, 1e-2)
    assert given["weight_decay"] == (0.01, 0.3)
    assert spec_of(batch_seqs=(1, 16)).bounds(row)["batch_seqs"] == (1, 16)
    with pytest.raises(UsageError, match=r"batch_seqs from 0\.5 to 16"):
        spec_of(batch_seqs=(0.5, 16))


def test_ends_and_powers_of_two():
    assert parse_ends("1e-3..3e-2", "--lr") == (1e-3, 3e-2)
    assert spec_of(lr="1e-3..3e-2").lr == (1e-3, 3e-2)
    assert spec_of().lr is None
    assert powers_of_two((3, 40)) == (2, 5)
    assert powers_of_two((4, 32)) == (2, 5)


# Two N by two D: the fewest cells that identify both exponents. 12 runs, each under a second.
TUNE = (
    *("tune", "--n-params", "12K,20K", "--n-tokens", "20K,40K", "--name", "tiny"),
    *("--seq-len", "32", "--batch-seqs", "4..16", "--eval-tokens", "4096", "--trials", "3"),
    *("--wave", "2", "--bootstrap", "20", "--yes", "--json", "--predict", "N=20K,D=50K"),
)


def tune(capsys, text, results, *more):
    code = main([*TUNE, "--data", str(text), "--results", str(results), *more])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_tiny_tuning_ends_in_a_law_that_a_sweep_uses(capsys, text, tmp_path, own_cache):
    results = tmp_path / "results"
    code, said = tune(capsys, text, results)
    assert code == 0, said
    assert sum(said["trials"].values()) == 12
    assert {"lr", "batch_tokens", "law", "warnings"} <= set(said)
    assert said["law"]["n_cells"] == 4
    assert said["lr"]["value"] > 0

    # Each trial is a run of the store like any other.
    runs, specs = runs_of(Results(results), "tiny")
    assert len(runs) >= 10
    assert len({spec.lr for spec in specs}) == len(specs)
    main(["status", "tiny", "--results", str(results), "--json"])
    assert json.loads(capsys.readouterr().out)["counts"]["done"] == len(runs)
    curve = curve_by_percent(Results(results).run(specs[0].run_id))
    assert list(curve)[-1] == 100

    # The same command has nothing left to do; more trials continue the search.
    attempts = sorted(results.glob("runs/*/attempts/*"))
    assert tune(capsys, text, results)[1]["trials"] == said["trials"]
    assert sorted(results.glob("runs/*/attempts/*")) == attempts
    _, more = tune(capsys, text, results, "--trials", "4")
    assert sum(more["trials"].values()) == 16
    code = main([*TUNE, "--data", str(text), "--results", str(results), "--lr", "1e-3..1e-2"])
    assert code == 2
    assert "another tune" in capsys.readouterr().out

    words = ("--n-params", "16K", "--n-tokens", "50K", "--seq-len", "32", "--eval-tokens", "4096")
    sweep = ("sweep", "grid", *words, "--data", str(text), "--results", str(results), "--dry-run")
    code = main([*sweep, "--lr-rule", "tuned:tiny", "--json"])
    assert code == 0, said
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    law = {p: more["law"]["lr"][p]["value"] for p in "kpq"}
    batch = {p: more["law"]["batch_tokens"][p]["value"] for p in "kpq"}
    n_params, n_tokens = row["n_params"], 50_000
    best = batch["k"] * n_params ** batch["p"] * n_tokens ** batch["q"]
    lr = law["k"] * n_params ** law["p"] * n_tokens ** law["q"]
    lr *= (row["batch_seqs"] * 32 / best) ** more["law"]["valley"]["ridge"]
    assert row["lr"] == pytest.approx(lr, rel=1e-3)


@pytest.mark.slow
def test_an_interrupted_tuning_resumes_its_runs(capsys, text, tmp_path, own_cache):
    results = tmp_path / "results"
    words = [*TUNE, "--data", str(text), "--results", str(results), "--no-prune"]
    process = subprocess.Popen(
        [sys.executable, "-m", "scalelab", *words],
        stdout=subprocess.PIPE,
        text=True,
        # A background test process ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with frozen_worker(Results(results)) as frozen:
        process.send_signal(signal.SIGINT)
        wait_for(lambda: has_pending(frozen, signal.SIGTERM), "the launcher to stop its workers")
    said = json.loads(process.communicate(timeout=300)[0])
    assert process.returncode == 130
    assert said["status"] == "interrupted"
    assert said["trials"].get("running", 0) >= 1
    left = {path.name for path in (results / "runs").iterdir()}
    code, whole = tune(capsys, text, results, "--no-prune")
    assert code == 0
    assert whole["trials"] == {"complete": 12}
    assert left <= set(Results(results).load_plan("tiny").run_ids)
    assert len(list((results / "runs").iterdir())) == 12
