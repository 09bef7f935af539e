"""A plan knows what earlier workers found out about this machine's GPU."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from scalelab.api import sweeps as api
from scalelab.cli.plan_view import plan_as_json, print_plan
from scalelab.errors import ScalelabError, UsageError
from scalelab.launch import calibration, speed, verdicts
from scalelab.launch.proposal import Proposal
from scalelab.records.qualification import Platform, kernel_class, shape_entry, way_of
from scalelab.records.software import installed_version, trainer_revision
from scalelab.sweep.execution import AUTO, ExecutionSpec, candidates
from scalelab.sweep.run_spec import RunSpec

GPU = "NVIDIA H200"
REQUEST = ExecutionSpec(device="cuda", step=AUTO, kernels=AUTO, attention=AUTO, batched_runs=0)
SWEEP = {"kind": "grid", "name": "one", "n_params": "1M", "n_tokens": "10M"}


@pytest.fixture
def propose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that plans a sweep on a machine with one GPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for module in (verdicts, speed, calibration):
        monkeypatch.setattr(module, "gpu_names", lambda: (GPU,))

    def make(**execution: str) -> Proposal:
        sweep = {**SWEEP, "execution": execution}
        return api.propose(sweep, results=tmp_path, device="cuda", is_dry_run=True)

    return make


def write(folder: Path, spec: RunSpec, *, wrong: str = "", **platform: str) -> None:
    """Write a verdict in which all kernels are right except those of an operation."""
    ways = candidates(REQUEST, spec)
    software = {
        "device": GPU,
        "driver": "580",
        "torch": f"{installed_version('torch')}+cu130",
        "triton": installed_version("triton"),
        "revision": trainer_revision(),
    }
    check = {"op": "rms_norm", "size": "64 x 256", "status": "wrong", "reason": "error 0.3"}
    verdict = {
        "schema": 1,
        "platform": asdict(Platform(**{**software, **platform})),
        "made_s": 1.0,
        "took_s": 60.0,
        "host": "node1",
        "kernels": [
            {
                "class": kernel_class(spec, 1),
                "is_whole": True,
                "tries": 1,
                "checks": [{**check, "op": wrong}] if wrong else [],
            }
        ],
        "shapes": [
            shape_entry(
                spec,
                1,
                [
                    {**way_of(way), "status": "ok", "reason": "", "step_ms": 1.0 + place}
                    for place, way in enumerate(ways)
                ],
                is_whole=True,
                tries=1,
            )
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "h200.json").write_text(json.dumps(verdict))


def test_without_a_verdict_a_worker_qualifies_and_the_cost_is_that_of_the_named_gpu(
    propose: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    proposal = propose()
    print_plan(proposal)
    assert (
        "execution: auto (planned: graph + triton, qualified at start); attention flash"
        in capsys.readouterr().out
    )
    assert plan_as_json(proposal)["execution"]["taken"] is None
    assert "% of peak" in proposal.cost.speed.note


@pytest.mark.parametrize("place", ["qualification", "cache/scalelab/qualification"])
def test_a_verdict_says_what_is_taken(
    propose: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    write(tmp_path / place, propose().plan.rows[0].spec, wrong="rms_norm")
    proposal = propose()
    print_plan(proposal)
    assert (
        "execution: auto (qualified: compiled + reference); attention flash"
        in capsys.readouterr().out
    )
    said = plan_as_json(proposal)["execution"]
    assert said["taken"] == [{"step": "compiled", "kernels": "reference", "attention": "flash"}]
    assert not said["is_qualified_at_start"]


def test_a_named_way_that_is_ruled_out_is_refused_with_its_reason(
    propose: Any, tmp_path: Path
) -> None:
    write(tmp_path / "qualification", propose().plan.rows[0].spec, wrong="rms_norm")
    with pytest.raises(UsageError, match=r"kernels = triton, ruled out .*rms_norm.*error 0\.3"):
        propose(kernels="triton")
    assert propose(kernels="reference").taken() is not None


@pytest.mark.parametrize(
    "other", [{"device": "NVIDIA A100"}, {"torch": "2.0.0"}, {"revision": "0" * 16}]
)
def test_a_verdict_on_another_gpu_or_software_does_not_count(
    propose: Any, tmp_path: Path, other: dict[str, str]
) -> None:
    write(tmp_path / "qualification", propose().plan.rows[0].spec, wrong="rms_norm", **other)
    assert propose().taken() is None
    assert propose(kernels="triton").planned()[0].kernels == "triton"


def test_a_gpu_that_cannot_be_measured_has_an_assumed_speed(
    propose: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*words: Any, **more: Any) -> None:
        raise ScalelabError("a failed speed measurement: CUDA error", "a trainer", "Run it.")

    monkeypatch.setattr(speed, "measure", fail)
    plan = propose().plan
    found = speed.speed_for(plan, REQUEST, 1)
    assert "not measured: a failed speed measurement: CUDA error" in found.note
    assert not found.is_measured
    with pytest.raises(ScalelabError, match="CUDA error"):
        speed.speed_for(plan, replace(REQUEST, device="cpu"), 1)


@pytest.mark.parametrize("program", ["raise RuntimeError('CUDA error')", "print('no JSON')"])
def test_batched_runs_that_cannot_be_timed_on_a_gpu_do_not_end_the_job(
    propose: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: str
) -> None:
    spec = propose().plan.rows[0].spec
    monkeypatch.setattr(calibration, "_PROGRAM", program)
    assert calibration.batching_gains(spec, REQUEST, 0.1) == {}
    assert "batched runs were not timed" in capsys.readouterr().err
    answer = json.dumps({"exact": [{"batching_gains": {"2": 1.5}}]})
    monkeypatch.setattr(calibration, "_PROGRAM", f"print({answer!r})")
    assert calibration.batching_gains(spec, REQUEST, 0.1) == {2: 1.5}
