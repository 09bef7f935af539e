"""``bench roofline``: table, JSON, defaults and errors; the predicted time of ``bench train``."""

from __future__ import annotations

import json
import re

import pytest

from scalelab.cli import main
from scalelab.sweep.execution import ATTENTIONS, KERNELS, STEPS
from scalelab.sweep.run_spec import OPTIMIZERS, PRECISIONS
from scalelab.theory.step_work import CHOICES, PARTS


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    """Return the JSON of a command that succeeds."""
    assert main.main(["bench", "roofline", *words, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_one_shape_is_shown_part_by_part(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main.main(["bench", "roofline", "--shape", "12L-768d-12h", "--device", "h200"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    text = " ".join(out.split())
    assert re.search(r"Predicted: [0-9.]+ ms per step, [0-9,]+ tokens/s, MFU [0-9.]+%", text)
    assert "The longest part is matmul" in text
    assert "graph + triton" in text
    assert "Predicted, not measured: large products at 791 TFLOP/s, memory at 3.70 TB/s" in text
    for name in PARTS:
        assert re.search(rf"^{name}\b", out, re.MULTILINE), name
    assert re.search(r"head \(chunked\)", out)


def test_several_shapes_are_one_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shapes = "10M,50M,124M,350M,1.3B"
    assert main.main(["bench", "roofline", "--shape", shapes, "--device", "h100"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"^MFU( +[0-9.]+%){5}", out, re.MULTILINE)
    assert re.search(r"^step, ms( +[0-9.]+){5}", out, re.MULTILINE)
    assert out.startswith("5 shapes, 32x2048 tokens per step")


def test_the_json_has_every_part_and_the_execution_that_a_sweep_plans(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = answer(capsys, "--shape", "10M,4L-64d-2h", "--batched-runs", "16", "--seq-len", "256")
    assert found["device"] == "h200"
    first, second = found["shapes"]
    assert second["shape"] == "4L-64d-2h"
    assert (first["step"], first["kernels"]) == ("graph", "triton")
    assert first["batch_seqs"] == 256
    assert first["batched_runs"] == 16
    assert tuple(first["parts"]) == PARTS
    assert sum(part["seconds"] for part in first["parts"].values()) == pytest.approx(
        first["step_s"]
    )
    assert first["tokens_per_s"] == pytest.approx(16 * 65_536 / first["step_s"])


def test_what_is_named_is_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--shape", "12L-768d-12h", "--kernels", "reference", "--attention", "cudnn")
    named = answer(capsys, *words, "--step", "eager", "--optimizer", "muon")["shapes"][0]
    assert [named[name] for name in ("step", "kernels", "attention", "optimizer", "head")] == [
        *("eager", "reference", "cudnn", "muon", "plain")
    ]
    tied = answer(capsys, "--shape", "12L-768d-12h", "--tied")["shapes"][0]
    assert answer(capsys, "--shape", "12L-768d-12h-tied")["shapes"][0] == tied
    plain = answer(capsys, "--shape", "12L-768d-12h")["shapes"][0]
    assert plain["n_params"] - tied["n_params"] == 50_304 * 768


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device", "h20"), "Did you mean h200? Use for example --device h200."),
        (("--device", "cuda"), "a100, b200, h100, h200"),
        (("--shape", "12L768d"), "'12L768d'"),
        (("--shape", "12L-768d-7h"), "divisible by 2 x n_heads"),
        (("--batch-seqs", "-3"), "at least 1"),
        (("--seq-len", "0"), "at least 1"),
        (("--batched-runs", "0"), "at least 1"),
        (("--step", "direct"), "eager, compiled, graph"),
        (("--kernels", "cuda"), "reference, triton"),
        (("--attention", "auto"), "explicit, sdpa, cudnn, flash, triton"),
        (("--optimizer", "sgd"), "adamw, muon"),
        (("--precision", "fp16"), "fp32, bf16, fp8"),
        (("--precision", "fp8", "--device", "a100"), "fp32 or bf16 there"),
    ],
)
def test_what_cannot_be_predicted_is_refused(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert main.main(["bench", "roofline", *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_the_roofline_knows_every_way_to_execute_a_run() -> None:
    assert set(CHOICES["step"]) == set(STEPS) - {"direct"}
    assert set(CHOICES["kernels"]) == set(KERNELS)
    assert set(CHOICES["attention"]) == set(ATTENTIONS)
    assert set(CHOICES["optimizer"]) == set(OPTIMIZERS)
    assert set(CHOICES["precision"]) >= set(PRECISIONS)


def test_a_measured_step_on_a_known_gpu_shows_the_predicted_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {
        "device": "NVIDIA H200",
        "n_params": 1e6,
        "n_runs": 1,
        "n_steps": 3,
        "step_s": 2e-3,
        "tokens_per_s": 1e6,
        "tflops_per_s": 1.0,
        "matmul_tflops_per_s": 700.0,
        "share_of_matmul": 0.01,
        "mfu": 0.01,
        "predicted_s": 1.5e-3,
        "share_of_predicted": 0.75,
    }
    monkeypatch.setattr("scalelab.train.bench.bench_train", lambda *_, **__: measured)
    assert main.main(["bench", "train", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "predicted 1.5 ms per step (roofline), reached 75% of that speed" in out
