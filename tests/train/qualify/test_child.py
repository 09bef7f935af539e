"""Whole qualifications with a child process: right, wrong, slow, crashing and hanging kernels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scalelab.corpus.dataset import Dataset
from scalelab.records.qualification import name_of, read_verdict
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec, QualifyRequest
from scalelab.sweep.run_spec import RunSpec
from scalelab.train.qualify import measure
from scalelab.train.qualify.choose import RuledOutError, qualified
from tests.train.outcome import curve, last_note, result, run_attempt
from tests.train.qualify.conftest import AUTO_REQUEST

TRITON = "eager + triton + explicit"
WRONG = """
from scalelab_kernels import reference

def swiglu(gate_up):
    return reference.swiglu(gate_up) * 1.01
"""
SLOW = """
import time
from scalelab_kernels import reference

def swiglu(gate_up):
    time.sleep(0.05)
    return reference.swiglu(gate_up)
"""
WRONG_IF_EVEN = """
from scalelab_kernels import reference

def swiglu(gate_up):
    return reference.swiglu(gate_up) * (1 if gate_up.shape[-2] % 2 else 0.5)
"""
CRASHING = """
import os

def swiglu(gate_up):
    os.abort()
"""
HANGING = """
import time

def adamw_step_(*inputs, **settings):
    time.sleep(1000)
"""


def statuses(verdict: dict[str, Any]) -> dict[str, tuple[str, str]]:
    (entry,) = verdict["shapes"]
    return {name_of(each): (each["status"], each["reason"]) for each in entry["candidates"]}


def verdict_of(note: dict[str, Any]) -> dict[str, Any]:
    found = read_verdict(Path(note["file"]))
    assert found is not None
    return found


@pytest.mark.slow
def test_a_wrong_kernel_is_ruled_out_and_the_run_has_the_losses_of_the_reference(
    kernels: Callable[..., None],
    make_run: Callable[..., RunDir],
    dataset: Dataset,
    tiny: RunSpec,
    tmp_path: Path,
) -> None:
    kernels({"swiglu": WRONG})
    fields = {name: getattr(tiny, name) for name in ("shape", "seq_len", "batch_seqs", "n_steps")}
    request = QualifyRequest(tmp_path / "qualification", (tiny,))
    eager = replace(AUTO_REQUEST, step="eager")
    run, plain = make_run("qualified", **fields), make_run("plain", **fields)
    assert run_attempt(run.path, dataset.folder, eager, qualify=request) == "done"
    reference = ExecutionSpec(attention="sdpa", metrics_interval_steps=4)
    assert run_attempt(plain.path, dataset.folder, reference) == "done"
    assert curve(run) == curve(plain)
    assert result(run).loss_nats == result(plain).loss_nats
    note = last_note(run)["qualification"]
    assert note["requested"] == {"step": "eager", "kernels": "auto", "attention": "auto"}
    assert name_of(note["chosen"]) == "eager + reference + sdpa"
    (out,) = note["ruled_out"]
    assert (name_of(out), out["status"]) == (TRITON, "wrong")
    assert "swiglu" in out["reason"]
    assert Path(note["file"]).parent == tmp_path / "qualification"
    assert list((tmp_path / "cache" / "scalelab" / "qualification").iterdir())

    # By name it is an error that says why, and so it is in the note of an attempt.
    named = replace(eager, kernels="triton")
    with pytest.raises(RuledOutError, match=r"kernels = triton.*swiglu.*relative error"):
        qualified(named, tiny, n_runs=1, request_=request)
    asked = make_run("asked", **fields)
    assert run_attempt(asked.path, dataset.folder, named, qualify=request) == "failed"
    assert "swiglu" in last_note(asked)["ended"]["reason"]


@pytest.mark.slow
def test_a_slow_kernel_is_right_but_not_taken(kernels: Callable[..., None], tiny: RunSpec) -> None:
    kernels({"swiglu": SLOW})
    chosen, note = qualified(AUTO_REQUEST, tiny, n_runs=1, request_=None)
    verdict = verdict_of(note)
    assert statuses(verdict)[TRITON] == ("ok", "")
    times = {name_of(c): c["step_ms"] for c in verdict["shapes"][0]["candidates"]}
    assert times[TRITON] > 50 > 2 * times["direct + reference + explicit"]
    assert chosen.kernels == "reference"
    assert note["ruled_out"] == []


@pytest.mark.slow
def test_a_kernel_that_is_wrong_only_at_the_real_batch_is_ruled_out(
    kernels: Callable[..., None], tiny: RunSpec
) -> None:
    kernels({"swiglu": WRONG_IF_EVEN})
    _, note = qualified(AUTO_REQUEST, tiny, n_runs=1, request_=None)
    status, reason = statuses(verdict_of(note))[TRITON]
    assert status == "wrong"
    assert "losses of 3 steps" in reason


@pytest.mark.slow
def test_kernels_that_crash_or_hang_end_only_the_child(
    kernels: Callable[..., None], tiny: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels({"swiglu": CRASHING, "adamw": HANGING})
    monkeypatch.setattr(measure, "CASE_LIMIT_S", 10.0)
    chosen, note = qualified(AUTO_REQUEST, tiny, n_runs=1, request_=None)
    verdict = verdict_of(note)
    checks = {c["op"]: (c["status"], c["reason"]) for c in verdict["kernels"][0]["checks"]}
    assert checks["swiglu"] == ("crashed", "its process ended with SIGABRT")
    assert checks["adamw"] == ("hung", "no result within 10 s")
    assert checks["linear_cross_entropy_sum"] == ("ok", "")
    assert statuses(verdict)[TRITON][0] == "crashed"
    assert chosen.kernels == "reference"
    # The machine may have been the reason: one more worker tries.
    assert not verdict["kernels"][0]["is_whole"]


def test_the_time_limit_is_kept_and_the_run_takes_the_reference(
    kernels: Callable[..., None], tiny: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the limit, such a kernel takes all the time of its case.
    kernels({"adamw": HANGING})
    monkeypatch.setattr("scalelab.train.qualify.choose.LIMIT_S", 0.5)
    started = time.monotonic()
    chosen, note = qualified(AUTO_REQUEST, tiny, n_runs=1, request_=None)
    assert time.monotonic() - started < measure.CASE_LIMIT_S / 2
    assert set(statuses(verdict_of(note)).values()) == {("not tried", "time limit")}
    assert name_of(note["chosen"]) == "eager + reference + explicit"
    assert note["is_qualified"] is False
    assert chosen.step == "eager"


def test_a_stop_request_ends_a_measurement_and_the_attempt(
    kernels: Callable[..., None],
    make_run: Callable[..., RunDir],
    dataset: Dataset,
) -> None:
    kernels()
    run = make_run()
    status = run_attempt(run.path, dataset.folder, AUTO_REQUEST, should_stop=lambda: "enough")
    assert status == "preempted"
    assert last_note(run)["ended"]["reason"] == "enough"
    assert run.checkpoints() == []
