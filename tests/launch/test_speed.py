"""The speed of this machine is measured once; a plan measures only steps not timed before."""

import dataclasses
import json

import pytest

from scalelab.api import sweeps as api
from scalelab.errors import UsageError
from scalelab.launch import calibration, execute, speed
from scalelab.launch.base import LaunchReport
from scalelab.launch.saved_options import save_options
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.plan import make_plan
from scalelab.sweep.planned_run import DataFacts
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.sweep.tables import LauncherTable
from tests.launch.slurm.replayed import make_runs

DIRECT = ExecutionSpec(step="direct")
# Answers as a worker would, from the request alone, and records the request.
PROGRAM = """
import json, sys
request = json.load(sys.stdin)
point = {"n_layers": 2, "seq_len": 32, "batch_seqs": 4}
point |= {"flops_per_s": 1e9, "tokens_per_s": 1e4, "eval_tokens_per_s": 3e4, "batching_gains": {}}
def of(shape, **words):
    return {**point, "d_model": shape["d_model"], "n_layers": shape["n_layers"], **words}
answer = {
    "device": "a test CPU",
    "points": [{**point, "d_model": 64}] if request["is_general"] else [],
    "exact": [
        of(spec["shape"], seq_len=spec["seq_len"], batch_seqs=spec["batch_seqs"])
        for spec in request["specs"]
    ],
}
with open(ASKED, "a") as file:
    file.write(json.dumps([request["is_general"], len(request["specs"])]) + "\\n")
with open(ASKED + ".precisions", "a") as file:
    file.write(request["precision"] + "\\n")
print(json.dumps(answer))
"""


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Return a function that reads new requests: (general points or not, number of runs)."""
    path = tmp_path / "asked.jsonl"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "_PROGRAM", f"ASKED = {str(path)!r}\n{PROGRAM}")

    def read():
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [tuple(json.loads(line)) for line in lines]

    return read


def plan_of(n_params, precision="fp32"):
    content = {"kind": "grid", "name": "t", "n_params": n_params, "n_tokens": "50K"}
    facts = DataFacts(
        fingerprint="f",
        eval_fingerprint="e",
        tokenizer="bytes",
        vocab_size=256,
        n_train_tokens=10**6,
        n_eval_tokens=4096,
    )
    return make_plan(sweep_from_mapping(content, source="the test"), facts, precision=precision)


@pytest.mark.parametrize(
    ("precision", "timed"), [("fp32", "fp32"), ("bf16", "bf16"), ("fp8", "bf16")]
)
def test_each_precision_is_timed_by_itself(asked, tmp_path, precision, timed):
    speed.speed_for(plan_of("20K"), DIRECT, 1)
    found = speed.speed_for(plan_of("20K", precision), DIRECT, 1)
    assert found.is_measured
    assert asked() == ([(True, 1)] if precision == "fp32" else [(True, 1)] * 2)
    assert (tmp_path / "asked.jsonl.precisions").read_text().split()[-1] == timed
    assert speed.machine_speed(DIRECT, 1, precision=precision).is_measured


def test_general_points_are_measured_once_and_each_shape_once(asked):
    first = speed.speed_for(plan_of("20K"), DIRECT, 1)
    assert asked() == [(True, 1)]
    assert speed.speed_for(plan_of("20K"), DIRECT, 1) == first
    assert asked() == []
    more = speed.speed_for(plan_of("20K,60K"), DIRECT, 1)
    assert asked() == [(False, 1)]
    assert more.points == first.points
    assert set(first.exact) < set(more.exact)
    # An explicit measurement repeats everything.
    speed.measure_machine_speed(DIRECT, 1)
    assert asked() == [(True, 0)]


def test_another_kind_of_step_or_a_damaged_cache_is_measured_again(asked):
    speed.speed_for(plan_of("20K"), DIRECT, 1)
    speed.speed_for(plan_of("60K"), dataclasses.replace(DIRECT, step="eager"), 1)
    assert asked() == [(True, 1), (True, 1)]
    calibration.cache_path(DIRECT, 1, "fp32").write_text(
        '{"points": [{}], "exact": [], "device": "cpu"}'
    )
    assert speed.speed_for(plan_of("20K"), DIRECT, 1).is_measured
    assert asked() == [(True, 1)]


@pytest.mark.parametrize("field", ["kernels", "attention"])
def test_interpreted_kernels_are_not_timed_because_that_takes_minutes(asked, field):
    request = dataclasses.replace(ExecutionSpec(step="eager"), **{field: "triton"})
    found = speed.speed_for(plan_of([30_000]), request, 1)
    assert asked() == []
    assert "interpreted kernels are much slower" in found.note


@pytest.mark.parametrize("workers", [None, 2])
def test_a_missing_gpu_is_reported_before_anything_is_planned(monkeypatch, workers):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    content = {"kind": "grid", "n_params": "12K", "n_tokens": "20K"}
    with pytest.raises(UsageError, match="without a visible GPU"):
        api.propose(content, device="cuda", workers=workers, is_dry_run=True)
    on_slurm = {**content, "launcher": {"name": "slurm", "slurm": {"gpus_per_run": 1}}}
    assert api.propose(on_slurm, device="cuda", is_dry_run=True).execution.device == "cuda"


def test_a_sweep_on_gpus_of_slurm_is_resumed_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    results, run_ids = make_runs(tmp_path, 2)
    save_options(results, "crash", LauncherTable(name="slurm"))
    monkeypatch.setattr(execute, "collect", lambda folder: None)
    monkeypatch.setattr(
        execute,
        "_launch",
        lambda request, *rest: LaunchReport(
            statuses=dict.fromkeys(request.run_ids, "queued"), n_started=0, wall_s=0.0
        ),
    )
    report = api.resume("crash", results=tmp_path)
    assert report.statuses == dict.fromkeys(run_ids, "queued")


@pytest.mark.parametrize("home", ["a file", "none"])
def test_where_the_home_cannot_be_written_the_speed_is_measured_and_not_kept(
    asked, tmp_path, monkeypatch, home
):
    monkeypatch.delenv("XDG_CACHE_HOME")
    (tmp_path / "home").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if home == "none":

        def refuse():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(calibration.Path, "home", refuse)
    for _ in range(2):
        found = speed.measure_machine_speed(DIRECT, 1)
        assert found.is_measured
        assert asked() == [(True, 0)]
    assert not speed.machine_speed(DIRECT, 1).is_measured
