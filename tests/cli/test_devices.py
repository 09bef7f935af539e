from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalelab.cli import devices
from scalelab.cli.devices import SLURM_COMMANDS, check_accelerator, check_slurm
from scalelab.cli.machine import MISSING, OK, PROBLEM

H200 = ["NVIDIA H200", 150_000_000_000, 9, 0]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty PATH to which commands can be added."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def add(name: str, script: str = "") -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return add


def test_no_slurm_is_missing_and_no_problem(commands: Any) -> None:
    assert check_slurm().status == MISSING


def test_slurm_that_answers_is_ok(commands: Any) -> None:
    for name in SLURM_COMMANDS:
        commands(name, "echo slurm-wlm 22.05.8")
    check = check_slurm()
    assert check.status == OK
    assert "22.05.8" in check.found


@pytest.mark.parametrize("command", ["squeue", "sacct"])
def test_slurm_that_does_not_answer_is_a_problem(commands: Any, command: str) -> None:
    for name in SLURM_COMMANDS:
        commands(name, "exit 1" if name == command else "")
    check = check_slurm()
    assert check.status == PROBLEM
    assert check.found.startswith(f"{command} fails")
    assert check.do


def test_slurm_that_hangs_is_a_problem(commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "COMMAND_TIMEOUT_S", 0.2)
    for name in SLURM_COMMANDS:
        commands(name, "exec /bin/sleep 30" if name == "squeue" else "")
    assert check_slurm().status == PROBLEM


def test_half_of_slurm_is_a_problem(commands: Any) -> None:
    commands("sbatch")
    check = check_slurm()
    assert check.status == PROBLEM
    assert "no squeue, sacct, scancel" in check.found


@pytest.mark.parametrize(
    ("report", "gpu", "kernels", "words"),
    [
        ({"built_for": "13.0", "devices": [H200]}, OK, OK, "NVIDIA H200 (140 GiB, sm_90)"),
        ({"built_for": None, "devices": []}, MISSING, OK, "none; runs train on CPU cores"),
        ({"torch_error": "ImportError: libcudart"}, PROBLEM, OK, "libcudart"),
        (
            {"built_for": "13.0", "devices": [H200], "triton_error": "RuntimeError: no cc\nmore"},
            OK,
            PROBLEM,
            "NVIDIA H200",
        ),
    ],
)
def test_what_torch_and_triton_say_is_passed_on(
    commands: Any,
    monkeypatch: pytest.MonkeyPatch,
    report: dict[str, Any],
    gpu: str,
    kernels: str,
    words: str,
) -> None:
    monkeypatch.setattr(devices, "_probe", lambda: report)
    checks = check_accelerator(has_torch=True, has_triton=True)
    assert [check.status for check in checks] == [gpu, kernels]
    assert words in checks[0].found
    assert all(check.do for check in checks if check.status != OK)
    if "triton_error" in report:
        assert "no cc" in checks[1].found


@pytest.mark.parametrize(("built_for", "advice"), [(None, "CUDA build"), ("13.0", "driver")])
def test_a_gpu_that_torch_does_not_see_is_a_problem(
    commands: Any, monkeypatch: pytest.MonkeyPatch, built_for: str | None, advice: str
) -> None:
    commands("nvidia-smi", "echo NVIDIA L4; echo NVIDIA L4")
    monkeypatch.setattr(devices, "_probe", lambda: {"built_for": built_for, "devices": []})
    (check, _) = check_accelerator(has_torch=True, has_triton=True)
    assert check.status == PROBLEM
    assert "2 x NVIDIA L4" in check.found
    assert advice in check.do


def test_without_torch_nothing_is_probed(commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_probe", lambda: pytest.fail("probed"))
    (check,) = check_accelerator(has_torch=False, has_triton=False)
    assert check.status == MISSING
    assert "scalelab[train]" in check.do


def test_the_probe_reports_what_torch_of_this_machine_says(
    probe: Callable[[], dict[str, Any]],
) -> None:
    torch = pytest.importorskip("torch")
    report = probe()
    assert "torch_error" not in report
    assert report["built_for"] == (torch.version.cuda or torch.version.hip)
    assert len(report["devices"]) == torch.cuda.device_count()


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ("import sys; sys.exit('no driver')", "no driver"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "exit code -11"),
        ("import time; time.sleep(60)", "no answer"),
    ],
)
def test_a_probe_that_dies_or_hangs_is_reported(
    monkeypatch: pytest.MonkeyPatch, probe: str, words: str
) -> None:
    monkeypatch.setattr(devices, "_PROBE", probe)
    monkeypatch.setattr(devices, "PROBE_TIMEOUT_S", 60.0 if words != "no answer" else 0.5)
    assert words in devices._probe()["torch_error"]
