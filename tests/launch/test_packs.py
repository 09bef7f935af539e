"""Runs of equal shape in one step of a local worker: folders of their own, and the same bits."""

import json
import os
import signal

import pytest


@pytest.fixture
def sweep(start, text, monkeypatch):
    """Return a starter of a sweep of 4 seeds and 2 lengths of one shape, 4 to a pack."""

    def run(name: str, pack: int):
        monkeypatch.setenv("SCALELAB_PACK", str(pack))
        axes = ("--n-params", "15K", "--n-tokens", "60K,90K", "--seeds", "0,1,2,3")
        options = ("--data", str(text), "--eval-tokens", "4096", "--workers", "2")
        tiny = ("--seq-len", "32", "--batch-seqs", "4", "--name", name, "--yes", "--json")
        return start("sweep", "grid", *axes, *options, *tiny)

    return run


def test_a_killed_pack_loses_nothing_and_its_runs_have_the_bits_of_separate_ones(
    sweep, start, results, tmp_path
) -> None:
    process = sweep("packed", 4)
    while process.poll() is None:
        notes = [
            attempt.read_note()
            for run in (results.path / "runs").glob("*")
            for attempt in results.run(run.name).attempts()
            if attempt.last_metrics() is not None and "ended" not in attempt.read_note()
        ]
        if notes:
            os.kill(notes[0]["pid"], signal.SIGKILL)
            break
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert json.loads(out)["counts"] == {"done": 8}
    run_ids = results.load_plan("packed").run_ids
    packed = {}
    attempts = 0
    for run_id in run_ids:
        run = results.run(run_id)
        attempts += len(run.attempts())
        note = run.attempts()[-1].read_note()
        assert note["execution"]["pack_size"] == len(note["companions"]) <= 4
        packed[run_id] = run.accepted().read_record().loss_nats
        assert (run.path / "log.txt").exists()
    assert attempts > 8
    first = results.run(run_ids[0]).attempts()[0].read_note()
    assert len(first["companions"]) == 4
    (results.path / "runs").rename(tmp_path / "packed runs")
    again = sweep("packed", 1)
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    for run_id in run_ids:
        record = results.run(run_id).accepted().read_record()
        assert record.loss_nats == packed[run_id]


def test_a_pack_size_that_is_none_is_refused(sweep) -> None:
    process = sweep("wrong", 0)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "SCALELAB_PACK" in json.loads(out)["error"]["given"]
