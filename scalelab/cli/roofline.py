"""``scalelab bench roofline``: the predicted time of a training step on a named GPU."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalelab.cli.options import EXECUTION, JsonOption, option
from scalelab.errors import EXIT_OK, UnknownHardwareError, UsageError, did_you_mean
from scalelab.sweep.execution import ATTENTIONS, KERNELS, STEPS

if TYPE_CHECKING:
    from rich.table import Table

    from scalelab.theory.hardware import Hardware
    from scalelab.theory.roofline import StepTime
    from scalelab.theory.step_work import StepConfig

DEFAULT_TOKENS = 65_536
"""Tokens per step if ``--batch-seqs`` is not given."""
GPU_STEPS = tuple(step for step in STEPS if step != "direct")


def roofline(
    shape: Annotated[
        str,
        typer.Option(
            "--shape",
            help="Layers, width and heads, such as 12L-768d-12h, or a size in the "
            "aligned table of shapes, such as 124M; several with commas.",
        ),
    ] = "124M",
    device: Annotated[
        str,
        option(EXECUTION, "GPU of the hardware table, such as h100, h200 or a100.", "--device"),
    ] = "h200",
    seq_len: Annotated[int, typer.Option(min=1, help="Tokens per sequence.")] = 2048,
    batch_seqs: Annotated[
        int | None,
        typer.Option(min=1, help="Sequences per step; default 65,536 tokens per step."),
    ] = None,
    vocab_size: Annotated[int, typer.Option(min=2, help="Vocabulary size.")] = 50_304,
    tied: Annotated[
        bool, typer.Option("--tied", help="The output head is the embedding matrix.")
    ] = False,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp8.")] = "bf16",
    optimizer: Annotated[str, typer.Option(help="adamw or muon.")] = "adamw",
    batched_runs: Annotated[
        int, typer.Option(min=1, help="Runs trained together in each step.")
    ] = 1,
    step: Annotated[
        str | None,
        option(EXECUTION, f"{', '.join(GPU_STEPS)}; default what a sweep plans.", "--step"),
    ] = None,
    kernels: Annotated[
        str | None,
        option(EXECUTION, f"{' or '.join(KERNELS)}; default what a sweep plans.", "--kernels"),
    ] = None,
    attention: Annotated[
        str | None,
        option(EXECUTION, f"{', '.join(ATTENTIONS)}; default what a sweep plans.", "--attention"),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Predict the time of a training step on a named GPU.

    Nothing is measured. Each part is bound by compute, by memory or by kernel launches.

    Example: scalelab bench roofline --shape 124M --device h200
    """
    from scalelab.cli.layout import Fitting
    from scalelab.cli.output import console, emit_json
    from scalelab.theory.roofline import copy_bytes_per_s, matmul_flops_per_s, predict_step

    hardware = _device(device)
    configs = [
        _config(
            name.strip(),
            seq_len=seq_len,
            batch_seqs=batch_seqs or max(1, DEFAULT_TOKENS // seq_len),
            vocab_size=vocab_size,
            is_tied=tied,
            precision=precision,
            optimizer=optimizer,
            batched_runs=batched_runs,
            named={"step": step, "kernels": kernels, "attention": attention},
        )
        for name in shape.split(",")
    ]
    found = [(config, predict_step(hardware, config)) for config in configs]
    if as_json:
        emit_json(
            {
                "schema": 1,
                "command": "bench roofline",
                "device": hardware.name,
                "matmul_flops_per_s": matmul_flops_per_s(hardware, precision),
                "copy_bytes_per_s": copy_bytes_per_s(hardware),
                "n_multiprocessors": hardware.n_multiprocessors,
                "shared_memory_bytes": hardware.shared_memory_bytes,
                "share_source": hardware.share_source,
                "shapes": [_row(config, time) for config, time in found],
            }
        )
        return EXIT_OK
    out = console()
    for line in headline(hardware, found):
        out.print(line, soft_wrap=False)
    out.print()
    out.print(Fitting(_parts_table(*found[0]) if len(found) == 1 else _shapes_table(found)))
    out.print()
    out.print(
        f"Predicted, not measured: large products at "
        f"{matmul_flops_per_s(hardware, precision) / 1e12:.0f} TFLOP/s, memory at "
        f"{copy_bytes_per_s(hardware) / 1e12:.2f} TB/s. These shares of the data sheet are "
        f"{hardware.share_source}."
    )
    return EXIT_OK


def _device(name: str) -> Hardware:
    from scalelab.theory.hardware import HARDWARE, find_hardware

    if name.lower() not in HARDWARE:
        raise UnknownHardwareError(
            f"--device {name}",
            f"a GPU of the hardware table: {', '.join(sorted(HARDWARE))}",
            f"{did_you_mean(name, HARDWARE)}Use for example --device h200.",
        )
    return find_hardware(name)


def _config(
    shape: str,
    *,
    seq_len: int,
    batch_seqs: int,
    vocab_size: int,
    is_tied: bool,
    precision: str,
    optimizer: str,
    batched_runs: int,
    named: dict[str, str | None],
) -> StepConfig:
    """Return the step of a shape as a sweep on a GPU plans it, with what the options name."""
    from scalelab.cli.bench import shape_named
    from scalelab.sweep.execution import AUTO, ExecutionSpec, planned_execution
    from scalelab.sweep.predicted import step_config
    from scalelab.sweep.run_spec import RunSpec
    from scalelab.sweep.shape_rule import ALIGNED
    from scalelab.theory.step_work import CHOICES

    given = {"precision": precision, "optimizer": optimizer, **named}
    for option_name, value in given.items():
        if value is not None and value not in CHOICES[option_name]:
            raise UsageError(
                f"--{option_name} {value}",
                ", ".join(CHOICES[option_name]),
                f"Use for example --{option_name} {CHOICES[option_name][-1]}.",
            )
    named_shape = shape_named(shape, vocab_size, ALIGNED)
    spec = RunSpec(
        shape=replace(named_shape, is_tied=is_tied or named_shape.is_tied),
        seq_len=seq_len,
        batch_seqs=batch_seqs,
        n_steps=1,
        lr=1e-3,
        warmup_steps=0,
        data_fingerprint="none",
        eval_fingerprint="none",
        tokenizer="bytes",
        seed=0,
        precision=precision,
        optimizer=optimizer,
    )
    request = ExecutionSpec(
        device="cuda",
        step=named["step"] or AUTO,
        kernels=named["kernels"] or AUTO,
        attention=named["attention"] or AUTO,
    )
    return step_config(spec, planned_execution(request, spec), n_runs=batched_runs)


def _row(config: StepConfig, time: StepTime) -> dict[str, Any]:
    from scalelab.theory.accounting import count_params

    fields = asdict(config)
    return {
        **fields,
        "shape": config.shape.label(),
        "head": config.head_route,
        "n_params": count_params(config.shape).total,
        "step_s": time.seconds,
        "tokens_per_s": time.tokens_per_s,
        "mfu": time.mfu,
        "longest": time.longest,
        "parts": {name: asdict(part) for name, part in time.parts.items()},
    }


def headline(hardware: Hardware, found: list[tuple[StepConfig, StepTime]]) -> list[str]:
    """Return what was predicted, and the result, as sentences."""
    from scalelab.theory.accounting import count_params
    from scalelab.units import format_quantity

    config, time = found[0]
    how = (
        f"{config.batch_seqs}x{config.seq_len} tokens per step, {config.precision}, "
        f"{config.optimizer}, {config.step} + {config.kernels} + {config.attention}"
        + (f", {config.batched_runs} batched runs" if config.batched_runs > 1 else "")
        + f", on one {hardware.name}"
    )
    if len(found) == 1:
        n_params = format_quantity(count_params(config.shape).total)
        part = time.parts[time.longest]
        return [
            f"{config.shape.label()}, {n_params} parameters, {how}",
            f"Predicted: {1e3 * time.seconds:.3g} ms per step, {time.tokens_per_s:,.0f} tokens/s, "
            f"MFU {time.mfu:.1%}. The longest part is {time.longest} "
            f"({part.seconds / time.seconds:.0%} of the step), bound by {part.bound}.",
        ]
    slowest, fastest = sorted((time.mfu, config.shape.label()) for config, time in found)[
        :: len(found) - 1
    ]
    return [
        f"{len(found)} shapes, {how}",
        f"Predicted: MFU from {slowest[0]:.1%} ({slowest[1]}) to {fastest[0]:.1%} ({fastest[1]}).",
    ]


def _parts_table(config: StepConfig, time: StepTime) -> Table:
    from scalelab.cli.layout import number_table

    table = number_table(
        "part", "ms", "share", "TFLOP", "GB", "kernels", "bound by", texts=("part", "bound by")
    )
    for name, part in time.parts.items():
        label = f"{name} ({config.head_route})" if name == "head" else name
        table.add_row(
            label,
            f"{1e3 * part.seconds:.3g}",
            f"{part.seconds / time.seconds:.1%}",
            f"{part.flops / 1e12:.3g}",
            f"{part.n_bytes / 1e9:.3g}",
            f"{part.n_launches:.0f}",
            part.bound,
        )
    return table


def _shapes_table(found: list[tuple[StepConfig, StepTime]]) -> Table:
    from scalelab.cli.layout import number_table
    from scalelab.theory.accounting import count_params
    from scalelab.units import format_quantity

    sizes = [format_quantity(count_params(config.shape).total) for config, _ in found]
    table = number_table("", *sizes, texts=("",))
    times = [time for _, time in found]
    for name in times[0].parts:
        table.add_row(f"{name}, ms", *(f"{1e3 * time.parts[name].seconds:.3g}" for time in times))
    table.add_row("step, ms", *(f"{1e3 * time.seconds:.3g}" for time in times))
    table.add_row("tokens/s", *(format_quantity(time.tokens_per_s) for time in times))
    table.add_row("MFU", *(f"{time.mfu:.1%}" for time in times))
    table.add_row("longest part", *(time.longest for time in times))
    table.add_row("bound by", *(time.parts[time.longest].bound for time in times))
    table.add_row("head", *(config.head_route for config, _ in found))
    return table
