"""The GPU benchmarks as tests: they complete, write their figures and reach their goals."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "results" / "published" / "gpu"
TOY_OPS = {
    "kernels_gpu": {"add_rms_norm", "swiglu", "qk_norm_rope", "moe_permute_unpermute"}
    | {"linear_cross_entropy", "attention", "adamw"},
    "step_gpu": {"step of 0M parameters"},
    "train_gpu": {f"step of {size} parameters" for size in ("10M", "50M", "124M", "350M", "1.3B")}
    | {f"2 batched runs of {size} parameters" for size in ("0.1M", "0.3M", "1M")},
}
"""Operations of each benchmark, as named in its table."""
PYTHON_PATH = os.pathsep.join(p for p in sys.path if p)


TOY = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
KERNEL_TESTS = "the tests of the kernels"


def script(name: str) -> list[str]:
    """Return the command of a benchmark."""
    return [sys.executable, str(ROOT / "tests" / "benchmarks" / f"{name}.py")]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Return a folder of reports and the running programs that write them at toy sizes."""
    folder = tmp_path_factory.mktemp("toys")
    pytest_words = ("-m", "pytest", "-q", "-m", "gpu", "tests/gpu/test_kernels.py")
    commands = {KERNEL_TESTS: [sys.executable, *pytest_words]}
    for name in TOY_OPS:
        commands[name] = [*script(name), "--tiny", "--json", str(folder / f"{name}.json")]
    with contextlib.ExitStack() as stack:
        started = {}
        for name, command in commands.items():
            log = stack.enter_context((folder / f"{name}.log").open("w"))
            environment = os.environ | TOY | {"PYTHONPATH": PYTHON_PATH}
            if name == KERNEL_TESTS:
                environment |= {"SCALELAB_GPU_TINY": "1"}
            process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
            started[name] = process
        yield folder, started


def said(toys: tuple[Path, dict[str, Any]], name: str) -> str:
    """Return the output of a program at toy sizes, which must succeed."""
    folder, started = toys
    code = started[name].wait()
    text = (folder / f"{name}.log").read_text()
    assert code == 0, text
    return text


def missed(found: dict) -> list[str]:
    """Return a text for each goal that was not reached."""
    return [
        f"{row['op']} {row['size']}: {name} {goal['reached']:.2f}, wanted {goal['wanted']}"
        for row in found["cases"]
        for name, goal in row["goals"].items()
        if not goal["is_met"]
    ]


@pytest.mark.gpu
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", ["kernels_gpu", "step_gpu", "train_gpu"])
def test_measured_figures_are_written_and_reach_the_goals(name: str) -> None:
    report = PUBLISHED / f"{name.removesuffix('_gpu')}.json"
    environment = os.environ | {"PYTHONPATH": PYTHON_PATH}
    subprocess.run([*script(name), "--json", report], env=environment, check=True)
    found = json.loads(report.read_text())
    assert all(row["ms"]["kernel"] > 0 for row in found["cases"])
    # The goals are for an H200; on other devices they are only shown.
    if "H200" in found["device"]:
        assert missed(found) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", TOY_OPS)
def test_toy_sizes_complete_without_a_gpu(toys: tuple[Path, dict[str, Any]], name: str) -> None:
    said(toys, name)
    folder, _ = toys
    found = json.loads((folder / f"{name}.json").read_text())
    assert {row["op"] for row in found["cases"]} == TOY_OPS[name]
    assert missed(found), "toy sizes cannot reach a goal: the check would not see a miss"
    assert (folder / f"{name}.md").read_text().count("missed") >= len(missed(found))


def test_without_a_gpu_a_benchmark_fails_with_a_message() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "benchmarks" / "kernels_gpu.py"],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": PYTHON_PATH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "nothing can be measured" in done.stderr


@pytest.mark.slow
def test_the_gpu_tests_run_at_toy_sizes_without_a_gpu(
    toys: tuple[Path, dict[str, Any]],
) -> None:
    assert "passed" in said(toys, KERNEL_TESTS)
