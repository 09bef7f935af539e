"""Parts of the table ``[program]``: the result, the sizes and the files of a training program."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from scalelab.errors import UsageError
from scalelab.sweep.option import PROGRAM, Table
from scalelab.sweep.program import LOSS_UNITS, OWN_READER, SIZE_SOURCES


def key(default: Any, text: str, *, example: str = "", **bounds: Any) -> Any:
    """Declare a key that only sweep files have; ``...`` as the default makes it required."""
    return Field(default, description=text, examples=[example] if example else None, **bounds)


class ProgramResult(Table):
    """``[program.result]``: what the program leaves behind, and when a run is complete."""

    panel: ClassVar[str] = PROGRAM

    format: str = key(
        OWN_READER, "Format of the training log: scalelab (metrics.jsonl, which the program writes "
        "to {metrics}), or a format of `scalelab fit --format`", example="nanogpt"
    )  # fmt: skip
    final_step: str = key(
        "n_steps", "Step of the log at which a run is complete, an expression of placeholders",
        example="n_steps - 1"
    )  # fmt: skip
    loss_unit: Literal[LOSS_UNITS] = key(  # type: ignore[valid-type]
        "nats", "Unit of the losses, where the log does not name it", example="bits_per_byte"
    )
    bytes_per_token: float = key(
        0.0, "Bytes per token of the held-out text, to convert bits per byte", example="4.3", ge=0
    )
    path: str = key(
        "", "Glob of the log below {out_dir}. Default: the usual names of the format, and the "
        "program's output", example="logs/*.jsonl"
    )  # fmt: skip


class ProgramSize(Table):
    """``[program.size]``: where the parameters N of a run come from."""

    panel: ClassVar[str] = PROGRAM

    by: Literal[SIZE_SOURCES] = key(  # type: ignore[valid-type]
        "report", "report: the program states N, and runs are planned by their shape. checkpoint: "
        "the header of a safetensors checkpoint. shape: N of the shape, as for the built-in "
        "trainer. table: a table of sizes", example="table"
    )  # fmt: skip
    table: str | tuple[dict[str, int | float | str], ...] | None = key(
        None, "Table of sizes for by = table: a CSV file, or a list of rows. n_params and "
        "flops_per_token plan the runs, other columns are {size.COLUMN}", example="sizes.csv"
    )  # fmt: skip


class ProgramFile(Table):
    """``[[program.file]]``: a configuration file that is written for each run."""

    panel: ClassVar[str] = PROGRAM

    path: str = key(..., "Path of the file below {out_dir}", example="config.yaml")
    text: str | None = key(None, "Template of its content", example="lr: {lr}")
    template: str | None = key(
        None, "File with that template, instead of text", example="config.yaml.template"
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> ProgramFile:
        parts = PurePosixPath(self.path).parts
        if not parts or self.path.startswith("/") or ".." in parts:
            raise UsageError(
                f"program.file.path = {self.path!r}",
                "a path below the output folder of the run",
                "Write for example path = 'config.yaml'; the command names it as "
                "{out_dir}/config.yaml.",
            )
        if (self.text is None) == (self.template is None):
            raise UsageError(
                f"program.file {self.path} with {'neither' if self.text is None else 'both'} of "
                "text and template",
                "one of them",
                "Write text = 'lr: {lr}', or template = 'config.yaml.template'.",
            )
        return self
