"""``scalelab export-model``: the kept weights of a run for other programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from scalelab.cli.options import DEFAULT_RESULTS, JsonOption, ResultsOption
from scalelab.cli.output import console, emit_json, warn
from scalelab.errors import EXIT_OK
from scalelab.units import format_bytes

RunArgument = Annotated[str, typer.Argument(help="run_id, or its first characters.")]
AverageOption = Annotated[
    bool,
    typer.Option("--average", help="Use the weight average (--ema-decay), not the last weights."),
]


def export_model(
    run: RunArgument,
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[OUT]", help="A new folder; default RUN-hf in the current folder."),
    ] = None,
    format: Annotated[
        str, typer.Option("--format", help="Format of the folder: hf, which transformers loads.")
    ] = "hf",
    dtype: Annotated[
        str, typer.Option("--dtype", help="Type of the tensors: float32, bfloat16 or float16.")
    ] = "float32",
    average: AverageOption = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Load the folder with transformers and print the largest difference of a logit.",
        ),
    ] = False,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Write the weights of a finished run for transformers.

    The run must have been trained with --keep-weights. The folder has the tensors, config.json and
    the tokenizer. transformers loads it without a network.

    Example: scalelab export-model 3f9a model/ --check
    """
    from scalelab import api

    model = api.export_model(
        run, folder, results=results, format=format, dtype=dtype, average=average, check=check
    )
    if as_json:
        emit_json({"schema": 1, "command": "export-model", **asdict(model)})
        return EXIT_OK
    for text in model.warnings:
        warn(text)
    out = console()
    tokenizer = "with its tokenizer" if model.has_tokenizer else "without a tokenizer"
    out.print(
        f"{model.folder}: run {model.run_id} as {model.class_name}, {model.dtype}, "
        f"{format_bytes(model.n_bytes)}, {tokenizer}",
        soft_wrap=True,
    )
    if model.max_logit_difference is not None:
        out.print(
            f"checked with transformers: logits differ from ours by at most "
            f"{model.max_logit_difference:.2g}",
            soft_wrap=True,
        )
    out.print(
        f"Load it with: transformers.AutoModelForCausalLM.from_pretrained({str(model.folder)!r})",
        soft_wrap=True,
    )
    return EXIT_OK
