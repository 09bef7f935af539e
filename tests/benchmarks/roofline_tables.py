"""Write results/tables/roofline.md: what the roofline predicts for the GPU benchmarks.

Nothing is measured. Run it again after a change of `scalelab.theory.roofline`, of
`scalelab.theory.step_work` or of hardware.toml::

    python tests/benchmarks/roofline_tables.py
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from scalelab.theory.accounting import count_params
from scalelab.theory.hardware import find_hardware
from scalelab.theory.roofline import head_seconds, predict_step
from scalelab.theory.shape import ModelShape
from scalelab.theory.step_work import FUSED_HEAD_MAX_WIDTH, StepConfig
from scalelab.units import format_quantity

TARGET = Path(__file__).parents[2] / "results" / "tables" / "roofline.md"
DEVICES = ("h100", "h200")
VOCAB = 32_000
MODELS = {
    "10M": (256, 3, 64, 131_072, 36),
    "50M": (512, 11, 64, 65_536, 46),
    "124M": (768, 14, 64, 65_536, 50),
    "350M": (1024, 25, 64, 32_768, 53),
    "1.3B": (2048, 24, 128, 16_384, 60),
}
"""Width, blocks, head size, tokens per step, and MFU goal in per cent at 2,048 positions."""
SMALL = {"0.1M": (48, 3), "0.3M": (80, 4), "1M": (128, 5)}
HEAD_WIDTHS = (32, 64, 96, 128, 160, 192, 256)
HEAD_VOCABS = (256, 4_096, 32_000, 50_304)
HEAD_TOKENS = 65_536
BATCHED = 16


def large_step(name: str) -> StepConfig:
    """Return the step of a benchmark model: tied head, 2,048 positions, bf16, AdamW."""
    d_model, n_layers, d_head, n_tokens, _ = MODELS[name]
    return StepConfig(
        shape=ModelShape(
            n_layers=n_layers,
            d_model=d_model,
            n_heads=d_model // d_head,
            d_head=d_head,
            d_ff=-(-d_model * 8 // 192) * 64,
            vocab_size=VOCAB,
            is_tied=True,
        ),
        seq_len=2048,
        batch_seqs=n_tokens // 2048,
    )


def small_step(name: str) -> StepConfig:
    """Return the step of a small model on bytes: 8 sequences of 256."""
    d_model, n_layers = SMALL[name]
    shape = ModelShape(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=d_model // 16,
        d_head=16,
        d_ff=-(-d_model * 8 // 192) * 64,
        vocab_size=256,
    )
    return StepConfig(shape=shape, seq_len=256, batch_seqs=8)


def rows(header: tuple[str, ...], body: Iterator[tuple[str, ...]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    for cells in body:
        yield f"| {' | '.join(cells)} |"
    yield ""


def step_rows(device: str) -> Iterator[tuple[str, ...]]:
    """Yield the row of each benchmark model on a device."""
    hardware = find_hardware(device)
    for name, (*_, goal) in MODELS.items():
        config = large_step(name)
        found = predict_step(hardware, config)
        yield (
            name,
            " / ".join(f"{1e3 * part.seconds:.3g}" for part in found.parts.values()),
            f"{1e3 * found.seconds:.3g}",
            *(
                f"{100 * predict_step(hardware, replace(config, attention=path)).mfu:.0f}"
                for path in ("flash", "triton", "cudnn")
            ),
            f"{goal}",
            f"{100 * predict_step(hardware, replace(config, precision='fp8')).mfu:.0f}",
            f"{100 * predict_step(hardware, replace(config, optimizer='muon')).mfu:.0f}",
            f"{100 * plain_mfu(device, name):.0f}",
        )


def plain_mfu(device: str, name: str) -> float:
    """Return the MFU of eager steps of plain torch operations with FlashAttention."""
    config = replace(large_step(name), step="eager", kernels="reference")
    return predict_step(find_hardware(device), config).mfu


def head_rows(device: str) -> Iterator[tuple[str, ...]]:
    """Yield the times of both routes of the head, ms, by width."""
    for d_model in HEAD_WIDTHS:
        cells = []
        for vocab_size in HEAD_VOCABS:
            fused, chunked = (
                1e3
                * head_seconds(
                    find_hardware(device),
                    route,
                    d_model=d_model,
                    vocab_size=vocab_size,
                    n_tokens=HEAD_TOKENS,
                )
                for route in ("fused", "chunked")
            )
            cells.append(f"{fused:.3g} / {chunked:.3g}")
        yield (f"{d_model}", *cells)


def batched_rows() -> Iterator[tuple[str, ...]]:
    """Yield the gain of batched runs by size."""
    for name in SMALL:
        config = small_step(name)
        alone, batched = (
            predict_step(find_hardware("h200"), replace(config, batched_runs=n))
            for n in (1, BATCHED)
        )
        yield (
            f"{name} ({format_quantity(count_params(config.shape).total)})",
            f"{1e3 * alone.seconds:.3g}",
            f"{1e3 * batched.seconds:.3g}",
            f"{batched.tokens_per_s / alone.tokens_per_s:.1f}",
            batched.longest,
        )


def text() -> str:
    """Return the page."""
    lines = [
        "# Predicted by the roofline, not measured",
        "",
        "    python tests/benchmarks/roofline_tables.py",
        "",
        "`scalelab bench roofline` predicts other shapes. Its constants and their sources are in",
        "`scalelab/theory/hardware.toml`; those marked est. need a measurement.",
        "",
        "## A training step at 2,048 positions",
        "",
        f"Vocabulary {VOCAB:,}, tied head, bf16, AdamW, one CUDA graph with our kernels. MFU is in "
        "per cent by the PaLM",
        "convention. Times are with `flash` attention; `cudnn` does not repeat bitwise, so `auto` "
        "never takes it.",
        "fp8 rounds each factor with torch's own operations, so it pays only for wide models.",
        "",
    ]
    header = (
        "model",
        "matmul / attention / elementwise / head / optimizer / gaps, ms",
        "step, ms",
        "MFU flash",
        "triton",
        "cudnn",
        "goal",
        "fp8, flash",
        "Muon, flash",
        "plain eager",
    )
    for device in DEVICES:
        lines += [f"On an {device.upper()}:", "", *rows(header, step_rows(device))]
    lines += [
        "## Linear + cross-entropy by two routes",
        "",
        f"Forward and backward of {HEAD_TOKENS:,} tokens in bf16, ms: fused kernel (recomputed "
        "tiles of logits) / chunks of",
        "cuBLAS products. The fused kernel pads the width to a power of two, and its tiles are "
        "half as fast above 128.",
        f"So it is faster up to d = {FUSED_HEAD_MAX_WIDTH} and slower from the next width of the "
        "shape tables, 160, with",
        "large and small vocabularies.",
        "",
    ]
    header = ("d", *(f"V = {vocab_size:,}" for vocab_size in HEAD_VOCABS))
    for device in DEVICES:
        lines += [f"On an {device.upper()}:", "", *rows(header, head_rows(device))]
    header = ("model", "one run, ms", f"{BATCHED} runs, ms", "gain", "longest part")
    lines += [
        f"## {BATCHED} batched runs on an H200",
        "",
        "8 sequences of 256 bytes for each run; heads of size 16.",
        "",
        *rows(header, batched_rows()),
    ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
