"""Attempts that continue others: from the newest checkpoint, afresh, or from a result."""

import dataclasses
import json
import time
from pathlib import Path

import pytest

from tests.launch.programs.conftest import N_PARAMS

RESUMING = """
first = 1
if checkpoint:
    first = json.load(open(checkpoint)) + 1
print("from", first, checkpoint, flush=True)
for step in range(first, 21):
    train(step, step)
    if step % 5 == 0:
        save(step)
    FAULT
finish()
"""
CHECKPOINT = {"checkpoint": "{out_dir}/ckpt_{step}.json"}


def test_after_a_failure_a_clone_of_the_newest_checkpoint_is_resumed(program):
    fault = "if step == 12 and first == 1: sys.exit('flaky')"
    trained = program(RESUMING.replace("FAULT", fault), **CHECKPOINT)
    assert trained.train() == "done"
    first, second = trained.run.attempts()
    assert second.read_note()["resumed_from"] == {"attempt": 1, "step": 10}
    assert first.read_note()["ended"]["kind"] == "exception"
    said = (second.path / "output.txt").read_text().split()
    assert said[:2] == ["from", "11"]
    assert Path(said[2]).is_relative_to(second.path / "out")
    assert [row["step"] for row in trained.rows()] == list(range(11, 21))
    trained.record()
    # As for the built-in trainer, a run that is done keeps no checkpoints unless asked.
    assert trained.run.checkpoints() == []
    assert not list(trained.run.path.rglob("ckpt_*"))


def test_kept_weights_are_kept(program):
    trained = program(RESUMING.replace("FAULT", ""), **CHECKPOINT)
    trained.execution = dataclasses.replace(trained.execution, keeps_weights=True)
    assert trained.train() == "done"
    assert len(list(trained.run.path.rglob("ckpt_*"))) == 4


def test_two_failures_at_one_checkpoint_lead_to_one_fresh_start(program):
    fault = "if first > 1 or (step == 12 and not fresh()): sys.exit('bad')"
    text = "def fresh():\n    return int(os.environ['SCALELAB_ATTEMPT']) > 2\n" + RESUMING.replace(
        "FAULT", fault
    )
    trained = program(text, **CHECKPOINT)
    assert trained.train() == "done"
    notes = [attempt.read_note() for attempt in trained.run.attempts()]
    assert [note["resumed_from"] for note in notes] == [None, {"attempt": 1, "step": 10}, None]
    assert [note.get("is_fresh_start", False) for note in notes] == [False, False, True]


@pytest.mark.slow
def test_a_run_that_fails_after_its_fresh_start_too_has_failed(program):
    fault = "if step == 12: sys.exit('always')"
    trained = program(RESUMING.replace("FAULT", fault), **CHECKPOINT)
    assert trained.train() == "failed"
    froms = [(a.read_note()["resumed_from"] or {}).get("step") for a in trained.run.attempts()]
    assert froms == [None, 10, None, 10]


def test_a_cut_checkpoint_is_passed_over(program):
    trained = program(RESUMING.replace("FAULT", "if step == 12 and first == 1: os.abort()"),
                      **CHECKPOINT)  # fmt: skip
    trained.train(lambda: "enough" if _has(trained, "ckpt_10.json", "10") else None)
    (attempt,) = trained.run.attempts()
    (attempt.path / "out" / "ckpt_15.json").write_text("")
    assert trained.train() == "done"
    _, second = trained.run.attempts()
    assert second.read_note()["resumed_from"]["step"] == 10


def test_a_result_that_its_killed_worker_did_not_record_is_taken_over(program):
    trained = program("sys.exit('it must not start again')", **CHECKPOINT)
    killed = trained.run.claim()
    killed.write_note({"command": ["x"], "started_s": time.time() - 9, "host": "elsewhere"})
    lines = [{"scalelab": 1, "n_params": N_PARAMS}]
    lines += [{"step": step, "loss": 5 - step / 10} for step in range(1, 21)]
    lines.append({"final": True, "eval_loss": 3.25})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (killed.path / "reported.jsonl").write_text(text)
    assert trained.train() == "done"
    assert trained.record().loss_nats == 3.25
    assert len(trained.rows()) == 20
    (warning,) = trained.run.attempts()[-1].read_note()["warnings"]
    assert "the result of attempt 1" in warning["message"]


def test_a_checkpoint_without_a_step_in_its_name_gets_the_step_of_the_rows(program):
    text = RESUMING.replace("save(step)", "save('x')").replace("json.load(open(checkpoint))", "10")
    text = text.replace("FAULT", "if step == 12 and first == 1: time.sleep(0.1); sys.exit('bad')")
    trained = program(text, checkpoint="{out_dir}/ckpt_x.json")
    assert trained.train() == "done"
    assert trained.run.attempts()[-1].read_note()["resumed_from"] == {"attempt": 1, "step": 10}


def _has(trained, name: str, text: str) -> bool:
    """Return whether there is a file with this text; one that is being written has none yet."""
    return any(path.read_text() == text for path in trained.run.path.rglob(name))


def test_checkpoints_are_recorded_of_a_program_that_saves_all_the_time(program):
    text = """
    for step in range(1, 30_000):
        train(step, step)
        save(step)
        time.sleep(0.004)
    """
    trained = program(text, **CHECKPOINT)
    # The newest one is always being written: an older one is recorded while the program runs.
    assert trained.train(lambda: "enough" if trained.run.checkpoints() else None) == "preempted"
