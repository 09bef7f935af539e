"""Benchmarks and calibration run, and their figures are consistent."""

from __future__ import annotations

import pytest

from scalelab.errors import UnknownHardwareError
from scalelab.records.qualification import Platform
from scalelab.sweep.execution import AUTO, ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import count_params, train_flops_per_token
from scalelab.train import bench, calibrate
from scalelab.train.calibrate import measure_run, measure_speed


def test_the_figures_of_a_benchmark_are_consistent(spec: RunSpec, execution: ExecutionSpec) -> None:
    found = bench.bench_train(spec, execution, n_runs=2, seconds=0.5)
    flops = train_flops_per_token(spec.shape, spec.seq_len)["exact"]
    assert found["tokens_per_s"] == pytest.approx(2 * spec.tokens_per_step / found["step_s"])
    assert found["tflops_per_s"] == pytest.approx(found["tokens_per_s"] * flops / 1e12)
    assert found["share_of_matmul"] == pytest.approx(
        found["tflops_per_s"] / found["matmul_tflops_per_s"]
    )
    assert found["mfu"] is None
    assert found["predicted_s"] is None
    assert found["share_of_predicted"] is None
    assert found["n_steps"] >= 3


def test_a_known_gpu_has_a_predicted_time(
    spec: RunSpec, execution: ExecutionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from scalelab.sweep.execution import AUTO, planned_execution
    from scalelab.theory.hardware import find_hardware
    from scalelab.theory.roofline import step_seconds
    from scalelab.theory.step_work import StepConfig

    monkeypatch.setattr(bench, "device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(bench, "time_steps", lambda *_: [2e-3, 1e-3, 3e-3])
    monkeypatch.setattr(bench, "matmul_flops_per_s", lambda *_: 7e14)
    request = replace(execution, device="cuda", step=AUTO, kernels=AUTO, attention=AUTO)
    # Large enough that the device is busy, so that the number of runs counts.
    spec = replace(spec, batch_seqs=4096)
    found = bench.bench_train(spec, request, n_runs=64)
    planned = planned_execution(request, spec)
    assert found["predicted_s"] == step_seconds(
        find_hardware("h200"),
        StepConfig(
            shape=spec.shape,
            seq_len=spec.seq_len,
            batch_seqs=spec.batch_seqs,
            precision=spec.precision,
            step=planned.step,
            kernels=planned.kernels,
            attention=planned.attention,
            batched_runs=64,
        ),
    )
    assert found["share_of_predicted"] == pytest.approx(found["predicted_s"] / 2e-3)
    assert 0 < found["mfu"] < 1


def test_an_unknown_gpu_has_no_utilisation(
    spec: RunSpec, execution: ExecutionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.setattr(bench, "device_name", lambda device: "a GPU of tomorrow")
    with pytest.raises(UnknownHardwareError, match="tomorrow"):
        bench.bench_train(spec, replace(execution, device="cuda"))


def test_larger_batches_of_runs_are_timed_until_one_is_not_faster(
    spec: RunSpec, execution: ExecutionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {1: 10.0, 2: 15.0, 4: 14.0, 8: 99.0}
    monkeypatch.setattr(
        calibrate, "batched_speed", lambda spec, execution, seconds: speeds[execution.batched_runs]
    )
    assert calibrate.measure_batched_runs(spec, execution, 1.0) == {2: 1.5, 4: 1.4}


def test_batched_runs_are_timed_by_real_steps(spec: RunSpec, execution: ExecutionSpec) -> None:
    # Long enough for many steps: one alone may be interrupted by another process.
    gains = calibrate.measure_batched_runs(spec, execution, 0.5, (2,))
    assert list(gains) == [2]
    assert 0.2 < gains[2] < 5


def test_calibration_gives_the_speed_of_each_width(execution: ExecutionSpec) -> None:
    found = measure_speed(
        execution, widths=(16, 24), n_layers=1, seq_len=16, batch_seqs=2, seconds_per_point=0.01
    )
    assert found["device"]
    assert [point["d_model"] for point in found["points"]] == [16, 24]
    for point in found["points"]:
        assert point["tokens_per_s"] == pytest.approx(32 / point["step_s"])
        assert point["flops_per_s"] > 0
        assert point["eval_tokens_per_s"] > 0


def test_general_points_are_timed_in_the_precision_of_the_runs(
    execution: ExecutionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[str] = []

    def measure(spec: RunSpec, execution: ExecutionSpec, seconds: float) -> dict[str, float]:
        timed.append(spec.precision)
        return {}

    monkeypatch.setattr(calibrate, "measure_run", measure)
    measure_speed(execution, widths=(16, 24), precision="bf16")
    assert timed == ["bf16", "bf16"]


def test_a_request_is_timed_as_the_users_cache_knows_it(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ExecutionSpec(device="cuda", step=AUTO, kernels=AUTO, attention=AUTO)
    monkeypatch.setattr(
        calibrate,
        "this_platform",
        lambda device: Platform(device="x", driver="", torch="", triton="", revision=""),
    )
    monkeypatch.setattr(calibrate, "read_verdict", lambda path: None)
    assert calibrate.timed_execution(request, spec).step == "graph"
    eager = {"step": "eager", "kernels": "reference", "attention": "sdpa"}
    monkeypatch.setattr(calibrate, "choice", lambda verdict, spec, n_runs, ways: eager)
    assert calibrate.timed_execution(request, spec) == ExecutionSpec(device="cuda", **eager)
    named = ExecutionSpec(device="cuda", step="graph", kernels="triton", attention="flash")
    assert calibrate.timed_execution(named, spec) == named


def test_a_run_of_the_plan_can_be_timed(spec: RunSpec, execution: ExecutionSpec) -> None:
    found = measure_run(spec, execution, 0.01)
    assert found["n_params"] == count_params(spec.shape).total
    assert (found["seq_len"], found["batch_seqs"]) == (24, 6)
