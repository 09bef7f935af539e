"""The roofline: counts against independent ones, limits, monotonicity, and a known table."""

from __future__ import annotations

import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scalelab.errors import UsageError
from scalelab.theory.accounting import count_params, train_flops_per_token
from scalelab.theory.hardware import CALIBRATION, HARDWARE, find_hardware
from scalelab.theory.head_work import chunk_rows, head_work
from scalelab.theory.product_work import newton_schulz_flops
from scalelab.theory.roofline import (
    head_seconds,
    kernel_seconds,
    predict_step,
    step_seconds,
    work_seconds,
)
from scalelab.theory.shape import ModelShape
from scalelab.theory.step_counts import step_work
from scalelab.theory.step_work import FUSED_HEAD_MAX_WIDTH, PARTS, StepConfig

H200 = find_hardware("h200")
TINY = ModelShape(n_layers=2, d_model=48, n_heads=3, d_head=16, d_ff=136, vocab_size=320)
SMALL = StepConfig(shape=TINY, seq_len=32, batch_seqs=4)


def model(d_model: int, n_layers: int, d_head: int, *, vocab_size: int = 32_000) -> ModelShape:
    """Return a shape of the GPU benchmarks: tied head, hidden width in multiples of 64."""
    return ModelShape(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=d_model // d_head,
        d_head=d_head,
        d_ff=-(-d_model * 8 // 192) * 64,
        vocab_size=vocab_size,
        is_tied=True,
    )


LARGE = StepConfig(shape=model(768, 14, 64), seq_len=1024, batch_seqs=64)


def total(config: StepConfig, part: str, field: str) -> float:
    """Return the sum of a field over the work of a part."""
    return sum(getattr(work, field) for work in step_work(config) if work.part == part)


def test_the_bytes_of_a_tiny_step_are_those_counted_by_hand() -> None:
    # 128 tokens, 2 blocks, d = 48, qkv = 144, f = 136, V = 320; bf16.
    n, layers, d, qkv, f, v = 128, 2, 48, 144, 136, 320
    # Each of three products reads two of (x, w, y) and writes the third.
    linears = [(d, qkv), (d, d), (d, 2 * f), (f, d)]
    products = sum(3 * 2 * (n * a + a * b + n * b) for a, b in linears)
    assert total(SMALL, "matmul", "n_bytes") == layers * products
    # Forward reads q, k, v and writes the result (4 d); backward reads those and the result's
    # gradient, and writes three gradients (8 d).
    assert total(SMALL, "attention", "n_bytes") == layers * n * 2 * 12 * d
    # add + norm: forward 4 rows, backward 4; the first norm: forward 2, backward 3, and the sum
    # of two gradients 3. q, k, v: forward 2 x 3 d, backward 3 x 3 d - d. SwiGLU: 3 f and 5 f.
    # Embedding: 4 rows of d for each token, and 4 passes over its gradient.
    rows = 2 * layers * 8 * d + 8 * d + layers * (14 * d + 8 * f) + 4 * d
    assert total(SMALL, "elementwise", "n_bytes") == 2 * (n * rows + 4 * v * d)
    # Gradient copy 2 + 4, norm 4, update 28, bf16 copy 2.
    assert total(SMALL, "optimizer", "n_bytes") == 40 * count_params(TINY).total
    # The logits of the fused head stay on the chip; 10 products of 64-wide tiles instead of 6.
    assert total(SMALL, "head", "n_bytes") == 3 * 2 * (n * d + v * d)
    assert total(SMALL, "head", "flops") == 10 * n * v * 64


@pytest.mark.parametrize("n_runs", [1, 3])
def test_the_chunked_head_moves_its_logits_and_the_sums_of_its_chunks(n_runs: int) -> None:
    config = StepConfig(
        shape=model(256, 1, 64), seq_len=4096, batch_seqs=4, head="chunked", batched_runs=n_runs
    )
    # 16,384 tokens of each run in chunks of 8,192.
    n, d, v, chunks = n_runs * 16_384, 256, 32_000, 2
    weights = n_runs * v * d
    products = 3 * 2 * (n * d + n * v) + 2 * 2 * chunks * weights + 8 * chunks * weights
    loss = 2 * 2 * n * v + 2 * 2 * n * d + (2 + 4) * weights
    assert sum(work.n_bytes for work in head_work(config)) == products + loss
    assert sum(work.flops for work in head_work(config)) == 6 * n * v * d
    assert sum(work.n_launches for work in head_work(config)) == n_runs * 4 * chunks + 2


def test_a_chunk_of_a_small_vocabulary_fits_in_the_cache_and_holds_many_runs() -> None:
    assert chunk_rows(32_000, 2) == 8192
    assert chunk_rows(50_304, 2) == 8192
    assert chunk_rows(256, 2) == 32_768
    config = StepConfig(shape=model(256, 1, 64, vocab_size=256), seq_len=256, batch_seqs=8)
    alone, batched = (
        sum(work.n_launches for work in head_work(replace(config, batched_runs=n))) for n in (1, 16)
    )
    assert alone == batched == 4 + 2
    # 32 runs do not fit in one chunk.
    assert sum(work.n_launches for work in head_work(replace(config, batched_runs=32))) == 8 + 2


@pytest.mark.parametrize("experts", [(0, 0, 0), (4, 2, 0), (4, 2, 24)])
def test_the_flops_of_the_blocks_are_those_of_the_accounting(experts: tuple[int, ...]) -> None:
    names = ("n_experts", "n_active_experts", "d_shared_expert")
    shape = replace(TINY, n_kv_heads=1, **dict(zip(names, experts, strict=True)))
    config = replace(SMALL, shape=shape, micro_batch_seqs=3, batched_runs=5)
    counts = count_params(shape)
    assert total(config, "matmul", "flops") == (
        6 * (counts.attention + counts.feed_forward_active) * config.n_tokens
    )


def test_the_attention_of_a_flash_kernel_does_seven_sixths_of_the_exact_flops() -> None:
    exact = (
        train_flops_per_token(TINY, 32)["exact"] - 6 * count_params(TINY).by_convention()["matmul"]
    )
    assert total(SMALL, "attention", "flops") == pytest.approx(7 / 6 * exact * SMALL.n_tokens)


@pytest.mark.parametrize(
    "change",
    [
        {"batch_seqs": 128},
        {"seq_len": 2048},
        {"batched_runs": 2},
        {"kernels": "reference"},
        {"attention": "explicit"},
        {"attention": "sdpa"},
        {"precision": "fp32"},
        {"optimizer": "muon"},
        {"micro_batch_seqs": 8},
        {"shape": model(768, 15, 64)},
        {"shape": model(832, 14, 64)},
        {"shape": model(768, 14, 64, vocab_size=50_304)},
    ],
    ids=str,
)
def test_more_work_takes_longer(change: dict[str, object]) -> None:
    assert step_seconds(H200, replace(LARGE, **change)) > step_seconds(H200, LARGE)


def test_a_small_step_waits_for_the_host_unless_it_is_a_graph() -> None:
    seconds = {
        step: predict_step(H200, replace(SMALL, step=step)).parts["gaps"].seconds
        for step in ("graph", "compiled", "eager")
    }
    assert seconds["graph"] < seconds["compiled"] < seconds["eager"]
    # A large step hides the host.
    assert step_seconds(H200, replace(LARGE, step="eager")) == step_seconds(H200, LARGE)


def test_the_parts_sum_to_the_step_and_no_step_is_faster_than_the_peak() -> None:
    for name in ("h100", "h200", "a100", "t4"):
        hardware = find_hardware(name)
        for config in (LARGE, SMALL, replace(SMALL, batched_runs=16)):
            found = predict_step(hardware, config)
            assert tuple(found.parts) == PARTS
            assert sum(part.seconds for part in found.parts.values()) == pytest.approx(
                found.seconds
            )
            exact = train_flops_per_token(config.shape, config.seq_len)["exact"]
            assert found.seconds > exact * config.n_tokens / hardware.peak_flops_per_s
            assert 0 < found.mfu < hardware.matmul_share
    assert predict_step(H200, LARGE).parts["matmul"].bound == "compute"
    assert predict_step(H200, LARGE).parts["elementwise"].bound == "memory"
    assert predict_step(H200, SMALL).parts["elementwise"].bound == "launch"


def test_batched_runs_share_the_launches_of_a_step() -> None:
    alone = predict_step(H200, SMALL)
    batched = predict_step(H200, replace(SMALL, batched_runs=16))
    assert 4 < batched.tokens_per_s / alone.tokens_per_s < 16
    assert batched.parts["gaps"].n_launches == alone.parts["gaps"].n_launches


def test_a_kernel_is_bound_by_its_flops_its_bytes_or_its_launch() -> None:
    product = 2 * 8192**3
    assert kernel_seconds(H200, flops=product) == pytest.approx(product / (0.8 * 989e12))
    assert kernel_seconds(H200, flops=product, precision="fp32") == pytest.approx(
        product / (0.8 * 67e12)
    )
    assert kernel_seconds(H200, n_bytes=3.7e9) == pytest.approx(1e-3, rel=0.002)
    assert kernel_seconds(H200, n_launches=3) == pytest.approx(
        3e-6 * CALIBRATION["kernel_floor_us"].value
    )


# An independent estimate for an H200 at 790 TFLOP/s and 3.7 TB/s: ms of a step at T = 1,024, and
# MFU in per cent at T = 1,024 and 2,048. It is of an older code: cuDNN attention, the fused head up
# to d = 256, residual additions that are not fused, a gradient copy for each weight (8 a block).
KNOWN = {
    # width, blocks, head size, tokens: matmul, attention, elementwise, head, optimizer + gaps, MFU
    (256, 3, 64, 131_072): (3.6, 3.2, 3.0, 33, 0.7, 22, 24),
    (512, 11, 64, 65_536): (22, 12, 11, 12, 1.7, 43, 46),
    (768, 14, 64, 65_536): (57, 23, 21, 17, 2.7, 48, 51),
    (1024, 25, 64, 32_768): (91, 27, 25, 10, 5.6, 50, 52),
    (2048, 24, 128, 16_384): (164, 18, 24, 9.5, 16, 60, 62),
}


@pytest.mark.parametrize("size", KNOWN, ids=lambda size: f"{size[1]}L-{size[0]}d")
def test_the_model_agrees_with_an_independent_estimate(size: tuple[int, int, int, int]) -> None:
    d_model, n_layers, d_head, n_tokens = size
    *parts, optimizer_and_gaps, mfu_1024, mfu_2048 = KNOWN[size]
    config = StepConfig(
        shape=model(d_model, n_layers, d_head),
        seq_len=1024,
        batch_seqs=n_tokens // 1024,
        attention="cudnn",
        head="fused" if d_model <= 256 else "chunked",
    )
    found = predict_step(H200, config)
    ms = {name: 1e3 * part.seconds for name, part in found.parts.items()}
    # The older code moved three rows more for each token and block: a residual addition (3 rows)
    # and a sum of gradients (3) beside a plain norm (5), where a fused norm moves 8.
    # The estimate leaves out the embedding.
    bandwidth = H200.memory_bytes_per_s * H200.memory_share
    embedding = next(work for work in step_work(config) if work.name == "embedding")
    ms["elementwise"] -= 1e3 * work_seconds(H200, embedding)
    ms["elementwise"] += 1e3 * n_layers * n_tokens * 2 * 3 * d_model / bandwidth
    copies = 8 * n_layers * 1e-3 * (1.6 + 2.0)
    for name, expected in zip(("matmul", "attention", "elementwise", "head"), parts, strict=True):
        assert ms[name] == pytest.approx(expected, rel=0.06), name
    # The estimate's host copies 8 bytes a token from pageable memory: up to 0.4 ms.
    assert ms["optimizer"] + ms["gaps"] + copies == pytest.approx(optimizer_and_gaps, abs=0.6)
    assert 100 * found.mfu == pytest.approx(mfu_1024, abs=2)
    longer = replace(config, seq_len=2048, batch_seqs=n_tokens // 2048)
    assert 100 * predict_step(H200, longer).mfu == pytest.approx(mfu_2048, abs=2)


@pytest.mark.parametrize(
    ("size", "mfu"), list(zip(KNOWN, (11, 16, 20, 23, 32), strict=True)), ids=str
)
def test_plain_eager_torch_is_as_slow_as_estimated(
    size: tuple[int, int, int, int], mfu: float
) -> None:
    d_model, n_layers, d_head, n_tokens = size
    config = StepConfig(
        shape=model(d_model, n_layers, d_head),
        seq_len=1024,
        batch_seqs=n_tokens // 1024,
        step="eager",
        kernels="reference",
        attention="cudnn",
    )
    assert 100 * predict_step(H200, config).mfu == pytest.approx(mfu, rel=0.09)


@pytest.mark.parametrize("name", ["h100", "h200"])
@pytest.mark.parametrize("vocab_size", [32_000, 50_304])
def test_the_route_of_the_head_changes_where_the_model_says(name: str, vocab_size: int) -> None:
    def is_fused_faster(d_model: int) -> bool:
        fused, chunked = (
            head_seconds(find_hardware(name), route, d_model=d_model, vocab_size=vocab_size)
            for route in ("fused", "chunked")
        )
        return fused < chunked

    widths = [32, 64, 96, 128, 160, 192, 256]
    fused = [d_model for d_model in widths if is_fused_faster(d_model)]
    assert max(fused) == FUSED_HEAD_MAX_WIDTH
    assert fused == [d_model for d_model in widths if d_model <= FUSED_HEAD_MAX_WIDTH]


def test_the_flops_of_muon_are_those_of_five_steps_of_three_products() -> None:
    assert newton_schulz_flops(64, 32) == newton_schulz_flops(32, 64)
    assert newton_schulz_flops(64, 64) == 5 * 3 * 2 * 64**3
    assert newton_schulz_flops(64, 64, halves_symmetric=True) == 5 * 2 * 2 * 64**3
    # 39 ms at 50 TFLOP/s in fp32, an independent estimate for 124M parameters.
    muon = replace(LARGE, optimizer="muon", kernels="reference")
    flops = total(muon, "optimizer", "flops")
    assert flops / 50e12 == pytest.approx(39e-3, rel=0.03)
    assert total(replace(muon, kernels="triton"), "optimizer", "flops") < 0.75 * flops


def test_fp8_makes_wide_products_faster_and_leaves_the_rest() -> None:
    wide = StepConfig(shape=model(4096, 8, 128), seq_len=2048, batch_seqs=16)
    bf16, fp8 = (predict_step(H200, replace(wide, precision=p)) for p in ("bf16", "fp8"))
    assert 0.5 < fp8.parts["matmul"].seconds / bf16.parts["matmul"].seconds < 0.8
    assert fp8.parts["attention"] == bf16.parts["attention"]
    assert fp8.parts["elementwise"] == bf16.parts["elementwise"]
    # The rounding of narrow layers takes longer than their products in fp8 save.
    narrow = replace(LARGE, shape=model(256, 3, 64))
    assert step_seconds(H200, replace(narrow, precision="fp8")) > step_seconds(H200, narrow)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_seqs": -1}, "batch_seqs = -1"),
        ({"seq_len": 0}, "seq_len = 0"),
        ({"batched_runs": 0}, "batched_runs"),
        ({"micro_batch_seqs": -2}, "micro_batch_seqs"),
        ({"step": "direct"}, "graph"),
        ({"attention": "auto"}, "flash"),
        ({"precision": "fp16"}, "bf16"),
    ],
)
def test_a_step_that_cannot_be_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replace(SMALL, **change)


def test_a_kernel_of_negative_work_or_in_a_missing_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="n_bytes"):
        kernel_seconds(H200, n_bytes=-1)
    with pytest.raises(UsageError, match="fp8 on h100"):
        kernel_seconds(find_hardware("a100"), flops=1e12, precision="fp8")


def test_every_constant_has_a_source_and_every_device_its_rates() -> None:
    for name, constant in CALIBRATION.items():
        assert len(constant.source) > 20, name
        assert constant.value > 0, name
    for item in HARDWARE.values():
        assert item.share_source
        assert 0.5 < item.matmul_share < 1
        assert 0.5 < item.memory_share < 1
        # FLOPs for each byte at which a product stops being bound by memory.
        assert 50 < item.peak_flops_per_s / item.memory_bytes_per_s < 500
        assert 32 <= item.n_multiprocessors <= 304
        assert 2**16 <= item.shared_memory_bytes < 2**18
        if item.fp8_flops_per_s is not None:
            assert item.fp8_flops_per_s == pytest.approx(2 * item.peak_flops_per_s, rel=0.01)
        for work in step_work(SMALL):
            assert work_seconds(item, work) > 0


def test_the_model_imports_with_the_standard_library_only() -> None:
    code = (
        "import sys\n"
        "for name in ('numpy', 'torch', 'pydantic', 'duckdb', 'rich', 'typer', 'scipy'):\n"
        "    sys.modules[name] = None\n"
        "import scalelab.theory.roofline\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_the_table_of_predictions_is_current() -> None:
    root = Path(__file__).parents[2]
    text = runpy.run_path(str(root / "tests/benchmarks/roofline_tables.py"))["text"]()
    stored = (root / "results/tables/roofline.md").read_text(encoding="utf-8")
    assert text == stored, "run: python tests/benchmarks/roofline_tables.py"
