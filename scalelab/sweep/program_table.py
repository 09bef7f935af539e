"""The table ``[program]`` of a sweep file: a training program that trains the runs.

`ProgramTable.spec` gives what the program computes, which is part of each run, and
`ProgramTable.execution` how it is started.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from scalelab.errors import DataError, UsageError, did_you_mean
from scalelab.sweep.expression import parse
from scalelab.sweep.option import PROGRAM, Table
from scalelab.sweep.program import (
    LAUNCHERS,
    ProgramExecution,
    ProgramSpec,
)
from scalelab.sweep.program_parts import ProgramFile, ProgramResult, ProgramSize, key
from scalelab.sweep.program_render import (
    OF_SHAPE,
    PLACEHOLDERS,
    SIZE_PREFIX,
    placeholders,
    unknown_placeholder,
    used_placeholders,
)
from scalelab.sweep.run_size import NO_SHAPE
from scalelab.sweep.size_table import MEASURED, SizeRow, read_size_table, require_sizes
from scalelab.sweep.values import Quantity

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_EXECUTION_KEYS = (
    *("folder", "source", "cwd", "python", "resume", "checkpoint", "in_place", "pass_env"),
    *("launcher", "stop_signal", "grace_s", "idle_min", "tokens_per_s"),
)
"""Keys on which the runs do not depend."""


class ProgramTable(Table):
    """``[program]``: a training program that trains the runs instead of the built-in trainer."""

    panel: ClassVar[str] = PROGRAM

    command: tuple[str, ...] = key(
        ..., "Arguments that start the program, a template each. No shell reads them",
        example='["{python}", "train.py", "--lr={lr}", "--out_dir={out_dir}"]', min_length=1
    )  # fmt: skip
    resume: tuple[str, ...] = key(
        (), "Arguments that are added when a checkpoint was found", example='["--resume"]'
    )
    checkpoint: str = key(
        "", "Glob of the checkpoints, in which {step} may stand for the step. Without it, an "
        "interrupted run starts from the beginning", example="{out_dir}/ckpt_{step}.pt"
    )  # fmt: skip
    in_place: bool = key(
        False, "Use one output folder for all attempts of a run, instead of a copy of the newest "
        "checkpoint in the folder of each attempt", example="true"
    )  # fmt: skip
    cwd: str = key(
        "", "Folder in which the program starts, from that of the sweep file. Default: the folder "
        "of the sweep file", example="../nanoGPT"
    )  # fmt: skip
    python: str = key(
        "", "Interpreter of {python}. Default: the one that runs scalelab",
        example="../nanoGPT/.venv/bin/python"
    )  # fmt: skip
    env: dict[str, str] = key(
        {}, "Environment variables, a template each", example='{OMP_NUM_THREADS = "1"}'
    )
    pass_env: tuple[str, ...] = key(
        (), "Names or globs of the variables of your environment that the program sees. Default: "
        "all of them", example='["PATH", "HOME", "CUDA_*"]'
    )  # fmt: skip
    container: tuple[str, ...] = key(
        (), "Arguments before the command that start a container",
        example='["apptainer", "exec", "--nv", "train.sif"]'
    )  # fmt: skip
    launcher: Literal[LAUNCHERS] = key(  # type: ignore[valid-type]
        "single", "single: one process. torchrun: torchrun is put before the command and starts "
        "one process for each GPU. srun: SLURM starts one process for each GPU", example="torchrun"
    )  # fmt: skip
    stop_signal: str = key("TERM", "Signal that asks the program to save and end", example="USR1")
    grace_s: float = key(60.0, "Seconds from that signal to SIGKILL", example="300", ge=0)
    idle_min: float = key(
        0.0, "Minutes without output after which a run counts as hung; 0 for no limit",
        example="30", ge=0
    )  # fmt: skip
    version: str = key(
        "", "Version of the program, part of each run. Default: git commit and changes of cwd",
        example="v1.2"
    )  # fmt: skip
    vocab_size: int = key(
        0, "Tokens of the program's vocabulary, for runs that are planned by shape",
        example="50304", ge=0
    )  # fmt: skip
    unique_tokens: Quantity | None = key(
        None, "Unique tokens of the training data, for the check of epochs", example="9B"
    )
    tokens_per_s: Quantity | None = key(
        None, "Training tokens per second of a run, for the estimated time. Default: learned from "
        "the finished runs of the sweep", example="180K"
    )  # fmt: skip
    train_data: str = key(
        "", "Training data for {train_data}: a file, a folder or the start of file names, whose "
        "content is part of the runs. Without it, a command with {train_data} gets the tokens of "
        "[data]", example="data/train.bin"
    )  # fmt: skip
    eval_data: str = key("", "Held-out data for {eval_data}", example="data/val.bin")
    tokenizer: str = key("", "Tokenizer for {tokenizer}: a file, folder or name", example="gpt2")
    result: ProgramResult = ProgramResult()
    size: ProgramSize = ProgramSize()
    derive: dict[str, str] = key(
        {}, "Names of your own and their expressions: + - * / // ** %, min, max, round, int",
        example='{accum = "batch_seqs // micro_batch_seqs"}'
    )  # fmt: skip
    file: tuple[ProgramFile, ...] = key((), "Configuration files that are written for each run")
    folder: str = key("", "Folder from which paths start. Default: the folder of the sweep file")
    source: str = key("", "The sweep file; changes of it are not changes of the program")

    @field_validator("command", "resume", "container", mode="before")
    @classmethod
    def _no_shell(cls, value: Any, info: Any) -> Any:
        if isinstance(value, str):
            words = ", ".join(f'"{word}"' for word in value.split())
            raise UsageError(
                f"program.{info.field_name} = {value!r}, one text",
                "a list of arguments, because no shell reads them",
                f"Write {info.field_name} = [{words}].",
            )
        return value

    @model_validator(mode="after")
    def _is_consistent(self) -> ProgramTable:
        name = self.stop_signal.removeprefix("SIG")
        if f"SIG{name}" not in signal.Signals.__members__ or name in ("KILL", "STOP"):
            raise UsageError(
                f"program.stop_signal = {self.stop_signal!r}",
                "a signal that a program can handle, such as TERM, INT, USR1 or USR2",
                "Write for example stop_signal = 'TERM'.",
            )
        for name, words in (
            ("resume", "arguments that continue from a checkpoint"),
            ("in_place", "one output folder for all attempts"),
        ):
            if getattr(self, name) and not self.checkpoint:
                raise UsageError(
                    f"program.{name} ({words}) without program.checkpoint",
                    "the glob of the checkpoints beside it",
                    "Add for example checkpoint = '{out_dir}/ckpt.pt'.",
                )
        if (self.size.by == "table") != (self.size.table is not None):
            raise UsageError(
                f"program.size.by = {self.size.by} "
                f"{'with' if self.size.table is not None else 'without'} program.size.table",
                "by = table and a table of sizes together",
                "Write for example size = {by = 'table', table = 'sizes.csv'}.",
            )
        if self.result.loss_unit == "bits_per_byte" and not self.result.bytes_per_token:
            raise UsageError(
                "program.result.loss_unit = bits_per_byte without bytes_per_token",
                "the bytes per token of the held-out text, which give nats per token",
                "Add for example bytes_per_token = 4.3.",
            )
        self._check_names()
        return self

    def _check_names(self) -> None:
        """Raise UsageError for names that templates and expressions do not have."""
        columns = {SIZE_PREFIX + name for row in self.rows() for name, _ in row.cells}
        for name in self.derive:
            if not _NAME.fullmatch(name) or name in PLACEHOLDERS:
                raise UsageError(
                    f"program.derive.{name}",
                    "a name of letters, digits and _ that is not a placeholder",
                    "Choose another name, for example my_" + re.sub(r"\W", "_", name) + ".",
                )
        known = {*PLACEHOLDERS, *self.derive, *columns}
        templates = [*self.command, *self.resume, *self.container, *self.env.values()]
        templates += [part for pair in self.files() for part in pair]
        problems: dict[str, UsageError] = {}
        for template in (*templates, self.checkpoint):
            also = {"step"} if template == self.checkpoint else set()
            for name in placeholders(template):
                if name not in known | also:
                    problems.setdefault(name, unknown_placeholder(name, repr(template), known))
        for text in (*self.derive.values(), self.result.final_step):
            for name in sorted(parse(text).names - known):
                problems.setdefault(
                    name,
                    UsageError(
                        f"the name {name} in {text!r}",
                        "a placeholder of a number, or an entry of [program.derive]",
                        f"{did_you_mean(name, known)}Correct or remove the name.",
                    ),
                )
        if problems:
            first, *others = problems.values()
            more = "".join(f"; and {other.given}" for other in others)
            raise UsageError(f"{first.given}{more}", first.allowed, first.do)

    def spec(self, *, version: str, container: str = "", row: SizeRow | None = None) -> ProgramSpec:
        """Return what the program computes, for a row of the table of sizes."""
        return ProgramSpec(
            command=self.command,
            derive=tuple(self.derive.items()),
            files=self.files(),
            env=tuple(self.env.items()),
            version=version,
            container=container,
            reader=self.result.format,
            result_path=self.result.path,
            final_step=self.result.final_step,
            loss_unit=self.result.loss_unit,
            bytes_per_token=self.result.bytes_per_token,
            size_by=self.size.by,
            size=() if row is None else row.identity,
            n_params=0 if row is None else row.n_params,
            flops_per_token=0.0 if row is None else row.flops_per_token,
        )

    def execution(self) -> ProgramExecution:
        """Return how the program is started, with absolute paths."""
        return ProgramExecution(
            cwd=str(self.path(self.cwd or ".")),
            python=self._program_path(self.python),
            resume=self.resume,
            checkpoint=self.checkpoint,
            in_place=self.in_place,
            pass_env=self.pass_env,
            container=self.container,
            launcher=self.launcher,
            stop_signal=self.stop_signal.removeprefix("SIG"),
            grace_s=self.grace_s,
            idle_min=self.idle_min,
            train_data=self._data_path(self.train_data),
            eval_data=self._data_path(self.eval_data),
            tokenizer=self._data_path(self.tokenizer),
        )

    def rows(self) -> tuple[SizeRow, ...]:
        """Return the rows of the table of sizes; empty without one."""
        if self.size.table is None:
            return ()
        return read_size_table(self.size.table, self.path("."))

    def sizes(self) -> tuple[SizeRow, ...]:
        """Return `rows`, each with its parameters; UsageError if some were not measured yet."""
        rows = self.rows()
        require_sizes(rows, self.source or "FILE")
        return rows

    def used(self) -> frozenset[str]:
        """Return the placeholders that the program uses, directly or through derived names."""
        return used_placeholders(self.spec(version=""), self.execution())

    def needs_shape(self) -> bool:
        """Say whether runs need a shape: they are planned by it, or the command has it."""
        return self.size.by != "table" or bool(self.used() & set(OF_SHAPE))

    def has_shapes(self) -> bool:
        """Say whether the shapes of the runs are known."""
        rows = self.rows()
        return not rows or all(row.shape(self.vocab_size) != NO_SHAPE for row in rows)

    def files(self) -> tuple[tuple[str, str], ...]:
        """Return path and template of each configuration file."""
        return tuple((file.path, self._text_of(file)) for file in self.file)

    def path(self, text: str) -> Path:
        """Return a path of the table, which starts from the folder of the sweep file."""
        joined = Path(self.folder or ".").absolute().joinpath(Path(text).expanduser())
        return Path(os.path.normpath(joined))

    def science(self) -> dict[str, Any]:
        """Return the keys on which the runs depend, with the contents of the files they name."""
        content: dict[str, Any] = self.model_dump(
            mode="json", exclude={*_EXECUTION_KEYS, "file", "size"}, exclude_defaults=True
        )
        content["size"] = {
            "by": self.size.by,
            "rows": [
                dict(cell for cell in row.cells if cell[0] not in MEASURED) for row in self.rows()
            ],
        }
        return content | {"file": [list(pair) for pair in self.files()]}

    def _text_of(self, file: ProgramFile) -> str:
        if file.text is not None:
            return file.text
        path = self.path(str(file.template))
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DataError(
                f"program.file.template {path}: {reason}",
                "a readable text file",
                "Correct the path, which starts from the folder of the sweep file.",
            ) from None

    def _program_path(self, text: str) -> str:
        """Return a program's path; one without ``/`` is searched in PATH when it starts."""
        return str(self.path(text)) if "/" in text else text

    def _data_path(self, text: str) -> str:
        """Return an existing path as an absolute one, and anything else as it is."""
        return str(self.path(text)) if text and self.path(text).exists() else text


def read_program(value: Any) -> Any:
    """Return the table ``[program]`` of a sweep file for its path; other values unchanged.

    Raises
    ------
    UsageError
        If the file has no such table.
    DataError
        If it cannot be read.
    """
    if not isinstance(value, (str, Path)):
        return value
    path = Path(value)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"program file {path}: {reason}",
            "a readable TOML file with the table [program]",
            "Check the path, for example --program examples/programs/nanogpt.toml.",
        ) from None
    return located_program(content.get("program"), path) or _no_program(path)


def located_program(program: Any, path: Path) -> Any:
    """Return the table ``[program]`` of a sweep file with the place of that file."""
    if not isinstance(program, Mapping):
        return program
    place = {"folder": str(path.absolute().parent), "source": str(path.absolute())}
    return {**place, **program}


def shown_command(words: tuple[str, ...]) -> str:
    """Return arguments as a shell would need them, to read and to try by hand."""
    return shlex.join(words)


def _no_program(path: Path) -> Any:
    raise UsageError(
        f"{path} without the table [program]",
        "a sweep file whose [program] trains the runs",
        "Add [program] with command = ['python', 'train.py', ..], or name another file.",
    )
