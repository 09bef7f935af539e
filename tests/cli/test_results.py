"""The commands about results as a user meets them: output, JSON and exit codes."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from scalelab.cli.main import main
from scalelab.records.machine import own_process
from scalelab.records.run_dir import RunDir
from scalelab.records.types import MetricRow, RunRecord
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import count_params, train_flops
from scalelab.theory.shape import ModelShape

COMMAND = "from scalelab.cli.main import run; run()"
SPEC = RunSpec(
    shape=ModelShape(n_layers=2, d_model=48, n_heads=3, d_head=16, d_ff=128, vocab_size=256),
    seq_len=64,
    batch_seqs=6,
    n_steps=310,
    lr=0.0041,
    warmup_steps=9,
    data_fingerprint="d" * 16,
    eval_fingerprint="e" * 16,
    tokenizer="bytes",
    seed=3,
)


def start(path, spec):
    run = RunDir(path / "runs" / spec.run_id)
    run.write_spec(spec)
    attempt = run.claim()
    attempt.write_note(
        {"execution": asdict(ExecutionSpec()), "resumed_from": None, **own_process()}
    )
    attempt.append_metrics([row(10), row(20)])
    return attempt


def row(step):
    return MetricRow(
        step=step, tokens=step * 384, loss_nats=3.25, lr=0.004, grad_norm=0.5, tokens_per_s=2e4
    )


def finish(attempt, loss):
    spec = attempt.run.read_spec()
    attempt.write_record(
        RunRecord(
            run_id=spec.run_id,
            attempt=attempt.number,
            token=attempt.token,
            status="done",
            loss_nats=loss,
            loss_se_nats=0.01,
            n_params=count_params(spec.shape).by_convention(),
            flops=train_flops(spec.shape, spec.seq_len, spec.n_tokens),
            n_tokens=spec.n_tokens,
            unique_tokens=spec.n_tokens,
            n_steps=spec.n_steps,
            wall_s=3.5,
        )
    )
    attempt.accept()
    attempt.write_note({**attempt.read_note(), "ended": {"status": "done"}})


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A sweep of four sizes, three done and one running, in the folder ./results."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "results"
    rows = []
    for d_model, loss in ((48, 2.5), (64, 2.25), (80, 2.375), (96, None)):
        spec = replace(SPEC, shape=replace(SPEC.shape, d_model=d_model))
        attempt = start(path, spec)
        if loss:
            finish(attempt, loss)
        rows.append({"run_id": spec.run_id, "budget_flops": 2e11})
    (path / "sweeps" / "demo").mkdir(parents=True)
    plan = {"schema": 1, "name": "demo", "created_s": 5.0, "kind": "isoflop", "rows": rows}
    (path / "sweeps" / "demo" / "plan.json").write_text(json.dumps(plan))
    return path


@pytest.fixture
def run(capfd):
    def call(*words):
        code = main(list(words))
        found = capfd.readouterr()
        return code, found.out, found.err

    return call


def test_collect_says_what_was_new_and_then_that_nothing_is(results, run):
    code, out, _ = run("collect")
    assert code == 0
    assert "4 new runs" in out
    assert "8 new metric rows" in out
    code, out, _ = run("collect", "--json")
    report = json.loads(out)
    assert (report["runs_new"], report["runs"], report["is_published"]) == (0, 4, False)


def test_collect_warns_of_what_it_left_out(results, run):
    spec = next((results / "runs").iterdir()) / "spec.json"
    spec.write_text("{")
    code, out, err = run("collect", "--json")
    assert code == 0
    assert spec.parent.name in err
    assert json.loads(out)["problems"]


def test_collect_where_there_is_nothing_is_bad_data(tmp_path, run):
    code, out, _ = run("collect", "--results", str(tmp_path / "none"), "--json")
    assert code == 3
    assert set(json.loads(out)["error"]) == {"given", "allowed", "do"}


def test_collect_watch_goes_on_until_it_is_interrupted(results, run):
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "collect", "--watch", "--interval", "0.1"],
        cwd=results.parent,
        # Where the tests themselves run in the background, Ctrl-C would be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "4 new runs" in process.stdout.readline()
    start(results, replace(SPEC, seed=99))
    assert "1 new run," in process.stdout.readline()
    process.send_signal(2)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_status_shows_states_valleys_the_running_run_and_what_to_do(results, run):
    code, out, _ = run("status")
    assert code == 0
    assert "demo (isoflop), 4 runs: 3 done, 1 running" in out
    assert "bracketed so far" in out
    assert "20/310" in out
    assert "20K" in out
    code, out, _ = run("status", "demo", "--json")
    status = json.loads(out)
    assert status["counts"] == {"done": 3, "running": 1}
    assert status["valleys"][0]["shape"] == "bracketed"
    assert [r["loss_nats"] for r in status["runs"]] == [2.5, 2.25, 2.375, 3.25]


def test_status_watch_ends_when_every_run_has(results, run):
    running = json.loads(run("status", "--json")[1])["runs"][3]["run_id"]
    finish(RunDir(results / "runs" / running).attempts()[0], 2.4)
    code, out, _ = run("status", "--watch")
    assert code == 0
    assert "4 done" in out
    assert "scalelab fit --sweep demo" in out


def test_status_of_what_there_is_not_is_bad_data(results, run):
    assert run("status", "other")[0] == 3
    assert run("status", "../demo")[0] == 2
    assert run("status", "--watch", "--json")[0] == 2


def test_logs_show_attempts_curve_and_what_the_worker_printed(results, run):
    run_id = json.loads(run("status", "--json")[1])["runs"][3]["run_id"]
    (results / "runs" / run_id / "log.txt").write_text("one\nTraceback: a [bold]worker[/] died\n")
    code, out, _ = run("logs", run_id[:8])
    assert code == 0
    assert f"run {run_id}: running" in out
    assert "attempt 1; on " in out
    assert "[bold]worker[/] died" in out
    assert "loss 3.2500" in out
    assert "one" not in run("logs", run_id, "-n", "1")[1].split()


def test_logs_show_what_a_terminal_would_obey_and_call_a_run_as_status_does(results, run):
    run_id = json.loads(run("status", "--json")[1])["runs"][0]["run_id"]
    folder = results / "runs" / run_id
    (folder / "log.txt").write_bytes(b"\x1b]0;title\x07\x1b[2Jgone\tkept\n")
    out = run("logs", run_id)[1]
    assert r"\x1b]0;title\x07\x1b[2Jgone" in out
    assert "\x1b" not in out
    assert f"run {run_id}: done" in out
    (folder / "spec.json").write_text("{")
    assert json.loads(run("status", "--json")[1])["runs"][0]["state"] == "broken"
    assert f"run {run_id}: broken (" in run("logs", run_id)[1]


def test_logs_follow_until_the_run_ends(results, run):
    run_id = json.loads(run("status", "--json")[1])["runs"][3]["run_id"]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "logs", run_id, "-f"],
        cwd=results.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "step       20 " in line:
            break
    attempt = RunDir(results / "runs" / run_id).attempts()[0]
    attempt.append_metrics([row(30)])
    time.sleep(0.8)
    finish(attempt, 2.4)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert out.count("step") == 1
    assert f"run {run_id}: done" in out


def test_logs_of_an_ambiguous_or_unknown_run_name_the_choices(results, run):
    assert run("logs", "zzz")[0] == 2
    assert run("logs", "")[0] == 2
    assert "which matches 0 runs" in run("logs", "../sweeps")[2]


def test_import_sets_bad_rows_aside_and_the_rest_can_be_exported(results, run, tmp_path):
    table = tmp_path / "theirs.csv"
    table.write_text("n,d,loss\n1e6,2e7,3.5\n2e6,4e7,-1\n2e6,4e7,3.25\n")
    words = ("import", str(table), "--map", "n_params=n,n_tokens=d", "--map", "loss_nats=loss")
    code, out, err = run(*words)
    assert code == 0
    assert "2 rows imported as theirs" in out
    assert "1 row not imported" in err
    assert "rejects.csv" in err
    assert json.loads(run(*words, "--json")[1])["is_new"] is False
    code, out, _ = run("export", "--table", "imports")
    assert code == 0
    assert len(out.splitlines()) == 3
    code, _, err = run("fit", "--sweep", "nosuch")
    assert code == 2
    assert "with finished runs: demo, theirs" in err
    assert run("import", str(table), "--name", "a/b")[0] == 2
    assert run("import", str(tmp_path / "none.csv"))[0] == 3


def test_export_writes_files_and_standard_output(results, run, tmp_path):
    run("collect")
    code, out, err = run("export", "--format", "csv", "--sweep", "demo")
    assert code == 0
    assert out.startswith("sweep,position,budget_flops")
    assert err == ""
    code, out, _ = run("export", "--format", "parquet", "--out", "runs.parquet", "--json")
    assert json.loads(out)["rows"] == 4
    assert (tmp_path / "runs.parquet").read_bytes()[:4] == b"PAR1"
    assert run("export", "--format", "orc")[0] == 2
    assert run("export", "--json")[0] == 2


@pytest.mark.parametrize(
    "words", [("doctor",), ("collect",), ("import", "x.csv"), ("data", "prepare"), ("fit",)]
)
@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_results_folder_that_is_a_file_is_a_usage_error(run, tmp_path, words, below):
    (tmp_path / "taken").touch()
    code, out, err = run(*words, "--results", str(tmp_path / "taken" / below))
    assert code == 2
    assert "--results" in out + err


@pytest.mark.parametrize("command", ["collect", "import", "export", "status", "logs"])
def test_help_has_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: scalelab {command}" in " ".join(out.split())
