"""One attempt of a program: results, failures and stops, each with at most one record."""

import json
import math
import time
from pathlib import Path

import pytest

from scalelab.program_log import ProgramLog
from scalelab.records.run_dir import RunDir
from scalelab.store.status import read_run_status
from tests.launch.programs.conftest import N_PARAMS, is_alive


def test_a_program_that_writes_its_rows_and_its_final_loss_is_done(program):
    trained = program("train(1, 20)\nfinish()")
    assert trained.train() == "done"
    record = trained.record()
    assert (record.loss_nats, record.loss_se_nats) == (3.25, 0.01)
    assert (record.n_params["chinchilla"], record.n_tokens, record.n_steps) == (N_PARAMS, 2560, 20)
    rows = trained.rows()
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert (rows[-1]["lr"], rows[-1]["grad_norm"]) == (0.001, None)
    assert read_run_status(trained.run.path, None, time.time()).loss_nats == 3.25
    assert trained.train() == "done"
    assert len(trained.run.attempts()) == 1


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("train(1, 15)\nfinish()", "early_exit", "it reached step 15 of 20"),
        ("train(1, 20)", "no_result", "no final loss"),
        ("train(1, 20)\nfinish(tokens=1000)", "no_result", "1,000 tokens, and 2,560 were planned"),
        ("train(1, 5)\nsys.exit('boom')", "exception", "exit code 1"),
        ("train(1, 5)\nraise MemoryError", "out_of_memory", "MemoryError"),
        ("train(1, 5)\nsys.exit('RuntimeError: NCCL error: x')", "infrastructure", "NCCL"),
        ("train(1, 5)\nos.kill(os.getpid(), 9)", "infrastructure", "killed by SIGKILL"),
        ("train(1, 5)\nos.abort()", "exception", "killed by SIGABRT"),
        ("sys.exit('no such option')", "usage", "no such option"),
        ("train(1, 5)\nsys.exit(2)", "usage", "exit code 2"),
        ("say(scalelab=1, n_params=5)\ntime.sleep(9)", "no_result", "the program reports 5, the"),
        ("say(scalelab=1, unit='bananas')\ntime.sleep(9)", "no_result", "bananas"),
    ],
)
def test_without_a_result_an_attempt_fails_for_a_reason(program, text, kind, words):
    trained = program(text)
    status = "preempted" if kind == "infrastructure" else "failed"
    assert trained.train() == status
    end = trained.end()
    assert (end["status"], end["kind"]) == (status, kind)
    assert words in end["reason"]
    assert trained.run.accepted() is None
    assert len(trained.ends()) == 1


@pytest.mark.parametrize("command", [("/nowhere/train",), ("/etc/passwd",), ("nul\0byte",)])
def test_a_program_that_cannot_start_is_a_wrong_command(program, command):
    trained = program("", spec={"command": command})
    assert trained.train() == "failed"
    assert trained.end()["kind"] == "usage"
    assert f"cannot start {command[0]!r}" in trained.end()["reason"]


def test_a_loss_that_stays_not_finite_ends_the_run(program):
    trained = program("train(1, 9)\ntrain(10, 12, lambda step: float('nan'))\ntime.sleep(9)")
    assert trained.train() == "diverged"
    assert trained.record().status == "diverged"
    assert "nan at step 11" in trained.record().reason


def test_one_row_that_is_not_finite_is_a_skipped_step(program):
    skipped = program(
        "train(1, 9)\ntrain(10, 10, lambda step: float('nan'))\ntrain(11, 20)\nfinish()\n"
    )
    assert skipped.train() == "done"


def test_a_final_loss_that_is_not_finite_is_a_diverged_run(program):
    trained = program("train(1, 20)\nfinish(float('inf'))")
    assert trained.train() == "diverged"
    assert trained.record().loss_nats is None


def test_a_silent_program_is_stopped_as_hung(program):
    trained = program("train(1, 3)\ntime.sleep(60)", idle_min=0.3 / 60)
    assert trained.train() == "failed"
    assert trained.end()["kind"] == "hung"


@pytest.mark.slow
def test_a_program_that_shows_output_without_rows_is_not_hung(program):
    text = "for _ in range(25):\n    print('.', end='', flush=True)\n    time.sleep(0.2)\n"
    trained = program(text + "train(1, 20)\nfinish()", idle_min=4 / 60)
    assert trained.train() == "done"


def test_orphans_in_sessions_of_their_own_are_killed(program):
    text = """
    child = "import os,time\\nfor _ in range(2):\\n    os.fork() or os.setsid()\\ntime.sleep(200)"
    found = [subprocess.Popen([sys.executable, "-c", child], start_new_session=True).pid]
    print(*found, flush=True)
    time.sleep(0.1)
    train(1, 20)
    finish()
    """
    trained = program(text)
    started = time.monotonic()
    assert trained.train() == "done"
    assert time.monotonic() - started < 100, "it waited for them"
    (attempt,) = trained.run.attempts()
    assert not is_alive(int((attempt.path / "output.txt").read_text()))
    (warning,) = attempt.read_note()["warnings"]
    assert "ran on after its end" in warning["message"]


def test_the_error_has_the_last_lines_without_colours_and_progress_bars(program):
    text = r"""
    train(1, 3)
    print("\x1b[31mred\x1b[0m \x1b]0;title\x07end\x00")
    print("10 %\r50 %\r90 %")
    print("no newline", end="", flush=True)
    os._exit(1)
    """
    trained = program(text)
    trained.train()
    assert trained.end()["reason"].endswith("its last output: red end | 90 % | no newline")


def test_steps_that_are_repeated_after_a_restart_are_shown_once(program):
    trained = program("train(1, 12)\ntrain(8, 20)\nfinish()")
    assert trained.train() == "done"
    assert [row["step"] for row in trained.rows()] == list(range(1, 21))


def test_broken_lines_do_not_hide_the_rows(program):
    text = r"""
    rows.write('{"step": 1, "lo\n[1]\nnull\n{"step": "x"}\n\x00\xff\n' + "9" * 3_000_000 + "\n")
    train(1, 20)
    finish()
    rows.write('{"step": 21')
    """
    trained = program(text)
    assert trained.train() == "done"
    assert len(trained.rows()) == 20
    (warning,) = trained.run.attempts()[0].read_note()["warnings"]
    assert warning["message"].startswith("7 lines that the program wrote")


def test_a_final_line_without_a_newline_counts(program):
    trained = program("train(1, 20)\nrows.write(json.dumps({'final': 1, 'eval_loss': 3.0}))")
    assert trained.train() == "done"


def test_a_stop_gives_the_signal_and_the_grace_and_is_no_failure(program):
    text = """
    def stop(*_):
        save(3)
        finish(5.0)
        sys.exit(0)
    signal.signal(signal.SIGUSR1, stop)
    train(1, 3)
    time.sleep(60)
    """
    trained = program(text, stop_signal="USR1", grace_s=30.0)
    assert trained.train(_stop_after_rows(trained)) == "preempted"
    assert (trained.end()["kind"], trained.end()["reason"]) == (None, "enough")
    assert trained.run.checkpoints() == []


def test_a_program_that_ignores_the_signal_is_killed_after_the_grace(program):
    trained = program("signal.signal(15, signal.SIG_IGN)\ntrain(1, 3)\ntime.sleep(200)")
    started = time.monotonic()
    assert trained.train(_stop_after_rows(trained)) == "preempted"
    assert time.monotonic() - started < 100, "it waited for the end of the program"


def test_a_program_that_ends_by_a_signal_which_the_worker_gets_too_is_preempted(
    program, monkeypatch
):
    monkeypatch.setattr("scalelab.launch.programs.attempt.ASKED_WAIT_S", 100)
    trained = program("train(1, 3)\nos.kill(os.getppid(), 0)\nos.kill(os.getpid(), 15)")
    ended = []

    def late() -> str | None:
        rows = trained.run.attempts()[-1].metrics_path
        if rows.exists():
            ended.append(time.monotonic())
        return "received SIGTERM" if len(ended) > 2 else None

    assert trained.train(late) == "preempted"
    assert trained.end()["kind"] is None


def test_a_newer_claim_ends_the_program_and_takes_the_result(program):
    trained = program("train(1, 3)\ntime.sleep(200)")
    claims = []

    def claim_once() -> None:
        if trained.run.attempts() and not claims and trained.run.attempts()[0].last_metrics():
            claims.append(trained.run.claim())

    started = time.monotonic()
    assert trained.train(claim_once) == "preempted"
    assert time.monotonic() - started < 100, "it waited for the end of the program"
    assert "newer attempt" in trained.run.attempts()[0].read_note()["ended"]["reason"]
    assert trained.run.accepted() is None


def test_a_result_after_a_newer_claim_is_not_recorded(program, monkeypatch):
    trained = program("train(1, 20)\nfinish()\ntime.sleep(200)")
    monkeypatch.setattr("scalelab.launch.programs.attempt.FENCE_INTERVAL_S", 999)
    claims = []

    def claim_after_the_result() -> str | None:
        first = trained.run.attempts()[0].path / "reported.jsonl"
        if not claims and first.exists() and '"final"' in first.read_text():
            claims.append(trained.run.claim())
        return "enough" if claims else None

    assert trained.train(claim_after_the_result) == "preempted"
    assert "newer attempt" in trained.run.attempts()[0].read_note()["ended"]["reason"]
    assert trained.run.accepted() is None


def test_the_environment_names_the_run_and_hides_the_job(program, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    text = "print(json.dumps(dict(os.environ)), flush=True)\ntrain(1, 20)\nfinish()"
    trained = program(text, spec={"env": (("GREETING", "run {run_id}"),)})
    trained.train(host_note={"sweep": "tiny", "deadline_s": 1234.5})
    (attempt,) = trained.run.attempts()
    found = json.loads((attempt.path / "output.txt").read_text())
    assert found["SCALELAB_RUN_ID"] == trained.run.run_id
    assert found["GREETING"] == f"run {trained.run.run_id}"
    assert (found["SCALELAB_ATTEMPT"], found["SCALELAB_DEADLINE"]) == ("1", "1234")
    assert (found["SCALELAB_OUT_DIR"], found["SCALELAB_CHECKPOINT"]) == (
        str(attempt.path / "out"),
        "",
    )
    assert RunDir(Path(found["SCALELAB_RUN_JSON"]).parent).read_spec().n_steps == 20
    assert found["WANDB_MODE"] == "offline"
    assert found.keys().isdisjoint(("SLURM_JOB_ID", "RANK", "PYTHONSAFEPATH"))


def test_pass_env_hides_the_other_variables(program, monkeypatch):
    monkeypatch.setenv("HF_HOME", "/models")
    monkeypatch.setenv("SECRET_TOKEN", "x")
    trained = program("print(*sorted(os.environ))\ntrain(1, 20)\nfinish()", pass_env=("HF_*",))
    trained.train()
    names = (trained.run.attempts()[0].path / "output.txt").read_text().split()
    assert {"HF_HOME", "PATH"} <= set(names)
    assert "SECRET_TOKEN" not in names


def test_the_helper_writes_what_is_read(program, monkeypatch):
    header = f"""
from scalelab.program_log import ProgramLog
log = ProgramLog(n_params={N_PARAMS}, flops_per_token=7.0)
for step in range(1, 21):
    log.row(step, 5.0, lr=0.1, grad_norm=1.5)
log.final(3.25, loss_se=0.01, evals={{"code": 2}})
"""
    trained = program("", header=header)
    assert trained.train() == "done"
    record = trained.record()
    assert (record.loss_nats, record.loss_se_nats) == (3.25, 0.01)
    assert record.flops["reported"] == 7 * 2560
    assert trained.rows()[-1]["grad_norm"] == 1.5
    assert trained.end()["evals"] == {"code": 2}
    monkeypatch.delenv("SCALELAB_METRICS", raising=False)
    ProgramLog().row(1, 2.0)
    monkeypatch.setenv("SCALELAB_METRICS", str(trained.run.path / "other"))
    monkeypatch.setenv("RANK", "1")
    ProgramLog().row(1, 2.0)
    assert not (trained.run.path / "other").exists()


def test_units_other_than_nats_are_converted(program):
    trained = program("say(scalelab=1, unit='bits')\ntrain(1, 20)\nfinish(2.0)")
    assert trained.train() == "done"
    assert trained.record().loss_nats == pytest.approx(2 * math.log(2))
    assert trained.rows()[0]["loss_nats"] == pytest.approx(4.9 * math.log(2))


@pytest.mark.slow
def test_a_micro_batch_that_is_too_large_is_halved_where_the_command_uses_it(program):
    text = "train(1, 2)\nif int(sys.argv[1]) > 1: raise MemoryError\ntrain(3, 20)\nfinish()"
    trained = program(text)
    command = (*trained.run.read_spec().program.command, "{micro_batch_seqs}")
    trained = program(text, spec={"command": command})
    assert trained.train() == "done"
    notes = [attempt.read_note()["execution"]["micro_batch_seqs"] for attempt in
             trained.run.attempts()]  # fmt: skip
    assert notes == [0, 2, 1]


def _stop_after_rows(trained):
    def should_stop() -> str | None:
        attempts = trained.run.attempts()
        return "enough" if attempts and attempts[-1].last_metrics() is not None else None

    return should_stop


def test_signals_that_slurm_sends_to_every_process_do_not_end_a_program(program):
    text = "os.kill(os.getpid(), signal.SIGUSR2)\ntrain(1, 20)\nfinish()"
    assert program(text).train() == "done"
    text = "os.kill(os.getpid(), signal.SIGTERM)\n" + text
    assert program(text, stop_signal="INT").train() == "done"
