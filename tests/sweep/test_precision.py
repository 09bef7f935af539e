"""Where a run in fp8 is planned, and what it multiplies in fp8."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scalelab.errors import UsageError
from scalelab.sweep.batched_runs import equal_runs
from scalelab.sweep.devices import require_multi_device
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.precision import require_precision
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.hardware import HARDWARE
from scalelab.theory.precision import FP8_GPUS, fp8_weights, is_fp8_product
from scalelab.theory.shape import ModelShape

SHAPE = ModelShape(n_layers=2, d_model=128, n_heads=2, d_head=64, d_ff=344, vocab_size=256)
RUN = RunSpec(
    shape=SHAPE, seq_len=8, batch_seqs=2, n_steps=9, lr=0.1, warmup_steps=0, seed=1,
    data_fingerprint="", eval_fingerprint="", tokenizer="bytes", precision="fp8",
)  # fmt: skip


def test_products_need_sides_of_at_least_128_in_multiples_of_16() -> None:
    assert is_fp8_product(128, 144)
    assert not is_fp8_product(112, 1024)
    assert not is_fp8_product(1024, 136)


def test_the_weights_of_a_shape_in_fp8() -> None:
    # 344 is not a multiple of 16, but gate and up together are.
    assert fp8_weights(SHAPE) == ("qkv", "out", "gate_up", "head")
    experts = replace(SHAPE, n_experts=4, n_active_experts=2)
    assert fp8_weights(experts) == ("qkv", "out", "head")
    assert fp8_weights(replace(SHAPE, vocab_size=60)) == ("qkv", "out", "gate_up")
    assert fp8_weights(replace(SHAPE, d_model=64, d_head=32)) == ()


def test_the_precision_is_part_of_the_run_id() -> None:
    assert len({replace(RUN, precision=p).run_id for p in ("fp32", "bf16", "fp8")}) == 3


@pytest.mark.parametrize(
    ("device", "gpus", "match"),
    [
        ("cpu", (), "fp8 on cpu.*h100.*--precision bf16"),
        ("cuda", ("NVIDIA H200", "NVIDIA A100-SXM4-80GB"), "fp8 on 'NVIDIA A100-SXM4-80GB'"),
    ],
)
def test_a_device_without_fp8_is_an_error(device: str, gpus: tuple[str, ...], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        require_precision(RUN, device, gpus)
    require_precision(replace(RUN, precision="bf16"), device, gpus)


def test_devices_with_fp8_and_unknown_ones_are_accepted() -> None:
    require_precision(RUN, "cuda", ("NVIDIA H100 80GB HBM3", "NVIDIA L4", "NVIDIA X"))


def test_the_devices_with_fp8_have_its_peak() -> None:
    assert all(HARDWARE[name].fp8_flops_per_s for name in FP8_GPUS)


def test_a_shape_without_products_in_fp8_is_an_error() -> None:
    narrow = replace(RUN, shape=replace(SHAPE, d_model=64, d_head=32))
    with pytest.raises(UsageError, match="2L-64d-2h, which has no product in fp8"):
        require_precision(narrow, "cuda")


def test_runs_in_fp8_share_neither_a_step_nor_devices() -> None:
    runs = [RUN, replace(RUN, seed=2)]
    assert set(equal_runs(runs).values()) == {1}
    assert set(equal_runs([replace(run, precision="bf16") for run in runs]).values()) == {2}
    with pytest.raises(UsageError, match="fp8 on 2 devices"):
        require_multi_device(RUN, ExecutionSpec(device="cuda", n_devices=2))
