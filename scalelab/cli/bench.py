"""``scalelab bench``: measure the training speed, on which time and cost estimates are based."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalelab.cli.options import (
    AttentionOption,
    DeviceOption,
    JsonOption,
    KernelsOption,
    PrecisionOption,
    StepOption,
    WorkersOption,
    checked_device,
)
from scalelab.cli.qualify import qualify
from scalelab.cli.roofline import roofline
from scalelab.errors import EXIT_OK, UsageError, did_you_mean
from scalelab.sweep.execution import ATTENTIONS, AUTO, KERNELS, STEPS, ExecutionSpec

if TYPE_CHECKING:
    from scalelab.sweep.run_spec import RunSpec
    from scalelab.theory.shape import ModelShape

TIED = "-tied"

app = typer.Typer(
    help="Measure this machine, or predict a GPU's speed. Example: scalelab bench device",
    no_args_is_help=True,
)


@app.command("device")
def device(
    device: DeviceOption = None,
    workers: WorkersOption = None,
    step: StepOption = AUTO,
    kernels: KernelsOption = AUTO,
    attention: AttentionOption = AUTO,
    as_json: JsonOption = False,
) -> int:
    """Measure the training speed of this machine.

    All workers train models of several widths; plans use the saved result.

    Example: scalelab bench device
    """
    from dataclasses import asdict

    from scalelab.cli.layout import Fitting, number_table
    from scalelab.cli.output import console, emit_json
    from scalelab.launch.speed import default_workers, measure_machine_speed
    from scalelab.units import plural

    execution = requested(device, step=step, kernels=kernels, attention=attention)
    speed = measure_machine_speed(execution, workers or default_workers(execution.device))
    if as_json:
        emit_json({"schema": 1, "command": "bench device", **asdict(speed)})
        return EXIT_OK
    columns = ("d_model", "training GFLOP/s per worker", "evaluation GFLOP/s per worker")
    title = f"{plural(speed.n_workers, 'worker')} on {speed.device}"
    table = number_table(*columns, title=title)
    for point in speed.points:
        table.add_row(
            str(point.d_model),
            f"{point.flops_per_s / 1e9:.1f}",
            f"{point.eval_flops_per_s / 1e9:.1f}",
        )
    console().print(Fitting(table))
    return EXIT_OK


@app.command("train")
def train(
    shape: Annotated[
        str,
        typer.Option(
            "--shape",
            help="Layers, width and heads, such as 4L-64d-2h, or a model size, such as 1M.",
        ),
    ] = "4L-64d-2h",
    device: DeviceOption = None,
    seq_len: Annotated[int, typer.Option(min=1, help="Tokens per sequence.")] = 256,
    batch_seqs: Annotated[int, typer.Option(min=1, help="Sequences per step.")] = 8,
    vocab_size: Annotated[int, typer.Option(min=2, help="Vocabulary size.")] = 256,
    precision: PrecisionOption = None,
    step: StepOption = AUTO,
    kernels: KernelsOption = AUTO,
    attention: AttentionOption = AUTO,
    batched_runs: Annotated[
        int, typer.Option(min=1, help="Runs trained together in each step.")
    ] = 1,
    seconds: Annotated[float, typer.Option(min=0.1, help="Duration of the timed steps, s.")] = 5.0,
    as_json: JsonOption = False,
) -> int:
    """Measure the training speed of one shape.

    On random tokens: tokens/s, TFLOP/s and MFU; on a known GPU also the predicted time
    (scalelab bench roofline).

    Example: scalelab bench train --shape 4L-64d-2h --device cpu
    """
    from dataclasses import replace

    from scalelab.cli.output import console, emit_json
    from scalelab.launch.executable import require_executable
    from scalelab.sweep.execution import CHOICES, default_precision, execution_words
    from scalelab.train.calibrate import synthetic_run, timed_execution
    from scalelab.train.engine import require_device
    from scalelab.train.precision import require_precision_here
    from scalelab.units import format_quantity

    request = requested(device, step=step, kernels=kernels, attention=attention)
    require_device(request)
    spec = replace(
        synthetic_run(shape_named(shape, vocab_size), seq_len=seq_len, batch_seqs=batch_seqs),
        precision=precision or default_precision(request.device),
    )
    require_executable(request, [spec])
    require_precision_here(spec, request.device)
    execution = timed_execution(replace(request, batched_runs=batched_runs), spec)
    found = _measured(spec, execution, n_runs=batched_runs, seconds=seconds)
    if as_json:
        taken = {name: getattr(execution, name) for name in CHOICES}
        shown = {"schema": 1, "command": "bench train", "shape": spec.shape.label()}
        emit_json({**shown, "execution": taken, **found})
        return EXIT_OK
    out = console()
    out.print(
        f"{spec.shape.label()}, {format_quantity(found['n_params'])} parameters, "
        f"{batch_seqs}x{seq_len} tokens per step, {spec.precision}, "
        + execution_words(execution)
        + (f", {batched_runs} batched runs" if batched_runs > 1 else "")
        + f", on {found['device']}"
    )
    mfu = "unknown for this device" if found["mfu"] is None else f"{found['mfu']:.1%}"
    out.print(
        f"{found['tokens_per_s']:,.0f} tokens/s, {found['tflops_per_s']:.4g} TFLOP/s, "
        f"{found['share_of_matmul']:.1%} of matmul speed here, MFU {mfu} "
        f"(medians of {found['n_steps']} steps of {1e3 * found['step_s']:.3g} ms)",
        soft_wrap=True,
    )
    if found["predicted_s"] is not None:
        out.print(
            f"predicted {1e3 * found['predicted_s']:.3g} ms per step (roofline), reached "
            f"{found['share_of_predicted']:.0%} of that speed",
            soft_wrap=True,
        )
    return EXIT_OK


def requested(device: str | None, *, step: str, kernels: str, attention: str) -> ExecutionSpec:
    """Return the request that the options describe, on this machine's device by default.

    Raises
    ------
    UsageError
        When a value is unknown.
    """
    from scalelab.launch.speed import default_device

    for name, value, known in (
        ("step", step, STEPS),
        ("kernels", kernels, KERNELS),
        ("attention", attention, ATTENTIONS),
    ):
        if value not in (AUTO, *known):
            raise UsageError(
                f"--{name} {value}",
                f"one of {', '.join((AUTO, *known))}",
                f"{did_you_mean(value, known)}Try --{name} auto.",
            )
    device = checked_device(device) or default_device()
    return ExecutionSpec(device=device, step=step, kernels=kernels, attention=attention)


app.command("roofline")(roofline)
app.command("qualify")(qualify)


def _measured(
    spec: RunSpec, execution: ExecutionSpec, *, n_runs: int, seconds: float
) -> dict[str, Any]:
    """Return the speed; UsageError if a step does not fit into memory."""
    from scalelab.cli.machine import free_memory_bytes
    from scalelab.theory.accounting import count_params
    from scalelab.train.bench import bench_train
    from scalelab.train.execution import is_out_of_memory

    shape = spec.shape
    # Lower bound: weights, gradients and two moments, and one fp32 activation per token and layer.
    # Checked first because Linux may overcommit memory and then kill the process.
    least = n_runs * (
        16 * count_params(shape).total + 4 * spec.tokens_per_step * shape.d_model * shape.n_layers
    )
    free = free_memory_bytes() if execution.device == "cpu" else None
    too_small = UsageError(
        f"a step of {n_runs} x {spec.batch_seqs:,} sequences, which needs more than "
        f"{least / 1e9:.3g} GB",
        "a step that fits into memory" + ("" if free is None else f", {free / 1e9:.3g} GB free"),
        "Lower --batch-seqs, --seq-len, --vocab-size, --batched-runs or --shape.",
    )
    if free is not None and least > free:
        raise too_small
    try:
        return bench_train(spec, execution, n_runs=n_runs, seconds=seconds)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise too_small from error


def shape_named(text: str, vocab_size: int, table: str = "fine") -> ModelShape:
    """Return the shape of a label such as ``4L-64d-2h``, or of a size such as ``1M`` in a table.

    A label is as a plan prints it, with ``-2kv`` for key heads and ``-tied`` for a tied head.

    Raises
    ------
    UsageError
        When the text is neither.
    """
    from scalelab.sweep.shape_list import parse_label
    from scalelab.sweep.shape_rule import ShapeRule
    from scalelab.sweep.shapes import nearest_shape
    from scalelab.units import parse_quantity

    rule = ShapeRule(table=table, is_tied=text.endswith(TIED))
    if "L" not in text:
        return nearest_shape(parse_quantity(text, what="model size"), vocab_size, rule)
    return rule.complete(parse_label(text.removesuffix(TIED), "--shape"), vocab_size)
