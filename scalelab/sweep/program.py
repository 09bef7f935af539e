"""A training program of the user: what it computes (`ProgramSpec`) and how it is started.

`ProgramSpec` is part of a run's identity, `ProgramExecution` is not. Both are plain dataclasses, so
that a worker reads them without pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LAUNCHERS = ("single", "torchrun", "srun")
SIZE_SOURCES = ("report", "checkpoint", "shape", "table")
LOSS_UNITS = ("nats", "bits", "bits_per_byte", "perplexity")
OWN_READER = "scalelab"
"""Name of the format of ``metrics.jsonl``, which a program writes for scalelab."""

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramSpec:
    """What a user's program computes, as far as it changes the result.

    Attributes
    ----------
    command : tuple of str
        Template of the arguments, ``{placeholder}`` and ``{{ }}``; never given to a shell.
    derive : tuple of (str, str)
        Names and expressions of `scalelab.sweep.expression`, usable as placeholders.
    files : tuple of (str, str)
        Path below ``{out_dir}`` and template of each configuration file that a run gets.
    env : tuple of (str, str)
        Environment variables and templates of their values.
    version : str
        Declared version, or commit and hash of the changed files of the program's folder.
    container : str
        Digest or name of the container; empty for none.
    reader : str
        Format of what the program leaves behind: `OWN_READER` or one of `scalelab.logs`.
    result_path : str
        Glob below ``{out_dir}`` of that output; empty uses the reader's usual names.
    final_step : str
        Expression for the step of the log at which the run is complete.
    loss_unit : str
        One of `LOSS_UNITS`.
    bytes_per_token : float
        For bits per byte; 0 if it is not needed.
    size_by : str
        One of `SIZE_SOURCES`: where N comes from.
    size : tuple of (str, int | float | str)
        Columns of the run's row in the table of sizes; empty without a table.
    n_params : int
        All parameters by that table; 0 if the shape gives them.
    flops_per_token : float
        Training FLOPs per token by that table; 0 if they follow from N or the shape.
    """

    command: tuple[str, ...]
    derive: Pairs = ()
    files: Pairs = ()
    env: Pairs = ()
    version: str = ""
    container: str = ""
    reader: str = OWN_READER
    result_path: str = ""
    final_step: str = "n_steps"
    loss_unit: str = "nats"
    bytes_per_token: float = 0.0
    size_by: str = "report"
    size: tuple[tuple[str, int | float | str], ...] = ()
    n_params: int = 0
    flops_per_token: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramExecution:
    """How a user's program is started, stopped and resumed; part of `ExecutionSpec`.

    Attributes
    ----------
    cwd : str
        Absolute folder in which the program starts.
    python : str
        Interpreter for ``{python}``; empty uses the worker's own.
    resume : tuple of str
        Templates of arguments that are appended when a checkpoint was found.
    checkpoint : str
        Glob template of checkpoints, ``{out_dir}/ckpt_{step}.pt``; empty for a program that does
        not resume.
    in_place : bool
        Whether all attempts of a run share one ``out_dir`` instead of cloning the checkpoint.
    pass_env : tuple of str
        Names of variables of the worker's environment that the program sees, globs allowed;
        empty for all.
    container : tuple of str
        Arguments before the command that start it in a container.
    launcher : str
        One of `LAUNCHERS`.
    stop_signal : str
        Name of the signal that asks the program to save and end.
    grace_s : float
        Seconds from that signal to SIGKILL.
    idle_min : float
        Minutes without a row and without output after which the program counts as hung; 0 never.
    train_data, eval_data, tokenizer : str
        Paths for the placeholders of these names; empty if not declared.
    unique_tokens : int
        Distinct training tokens of the program's data; 0 if not declared.
    """

    cwd: str
    python: str = ""
    resume: tuple[str, ...] = ()
    checkpoint: str = ""
    in_place: bool = False
    pass_env: tuple[str, ...] = ()
    container: tuple[str, ...] = ()
    launcher: str = "single"
    stop_signal: str = "TERM"
    grace_s: float = 60.0
    idle_min: float = 0.0
    train_data: str = ""
    eval_data: str = ""
    tokenizer: str = ""
    unique_tokens: int = 0


def as_tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping read from JSON with its lists as tuples, as these dataclasses have them."""
    return {name: _as_tuple(entry) for name, entry in content.items()}


def _as_tuple(entry: Any) -> Any:
    return tuple(map(_as_tuple, entry)) if isinstance(entry, list) else entry
