"""``bench train``: the figures of one shape; shapes by label and by size."""

from __future__ import annotations

import json

import pytest
import torch

from scalelab.cli import main
from scalelab.cli.bench import shape_named
from scalelab.errors import UsageError
from scalelab.theory.accounting import count_params


def test_a_shape_is_named_by_its_label_or_its_size() -> None:
    shape = shape_named("4L-64d-2h", 256)
    assert (shape.label(), shape.d_head, shape.d_ff) == ("4L-64d-2h", 32, 176)
    assert count_params(shape_named("1M", 256)).total == pytest.approx(1e6, rel=0.35)
    assert shape_named("4L-64d", 256) == shape
    for label in ("4L-64d-8h-2kv", "4L-64d-2h-tied", "4L-64d-8h-1kv-tied"):
        assert shape_named(label, 256).label() == label
    for wrong in ("4L-64d-8h-3kv", "4L-66d-4h", "4L-64d-0h", "many"):
        with pytest.raises(UsageError):
            shape_named(wrong, 256)


@pytest.mark.parametrize("words", [(), ("--batched-runs", "2"), ("--precision", "bf16")])
def test_the_figures_are_printed_and_given_as_json(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    options = ("--shape", "1L-16d-2h", "--seq-len", "16", "--batch-seqs", "2", "--seconds", "0.1")
    code = main.main(["bench", "train", "--device", "cpu", *options, *words, "--json"])
    out = capsys.readouterr().out
    assert code == 0
    found = json.loads(out)
    assert found["tokens_per_s"] == pytest.approx(found["n_runs"] * 32 / found["step_s"])
    assert 0 < found["share_of_matmul"] < 1
    assert found["mfu"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "train", "--device", "cuda"]) == 2
    assert "scalelab doctor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "--step", "zzz"), "direct, eager, compiled, graph"),
        (("device", "--device", "tpu"), "cpu or cuda"),
        (("train", "--device", "cpu", "--batch-seqs", "1000000000000"), "--batch-seqs"),
        (("train", "--device", "cpu", "--vocab-size", "10000000000"), "--vocab-size"),
        (("train", "--device", "cpu", "--batched-runs", "1000000000"), "--batched-runs"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert main.main(["bench", *words]) == 2
    assert said in capsys.readouterr().err


def test_memory_that_runs_out_in_a_step_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr("scalelab.train.bench.bench_train", fail)
    assert main.main(["bench", "train", "--shape", "1L-16d-2h", "--device", "cpu"]) == 2
    assert "fits into memory" in capsys.readouterr().err
