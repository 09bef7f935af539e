"""The command, environment and files of a program's run: templates with their values put in.

A template holds ``{name}`` for a placeholder and ``{{`` ``}}`` for braces. Each argument is one
entry of argv and is never read by a shell. `values` lists the placeholders of a run. Workers
import this module: no pydantic, no torch.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from scalelab.errors import UsageError, did_you_mean
from scalelab.sweep.expression import Number, parse
from scalelab.sweep.program import ProgramExecution, ProgramSpec
from scalelab.sweep.run_size import NO_SHAPE, has_shape, planned_flops
from scalelab.sweep.run_spec import RunSpec
from scalelab.units import round_significant

Value = int | float | str

OF_SHAPE = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_ff", "vocab_size")
OF_DEVICES = ("micro_batch_seqs", "grad_accum", "n_devices", "n_nodes", "gpus_per_node")
OF_PLACE = (
    *("run_id", "sweep", "python", "out_dir", "metrics", "run_json"),
    *("train_data", "eval_data", "tokenizer", "checkpoint", "checkpoint_step"),
)
OF_RUN = (
    *("seq_len", "batch_seqs", "batch_tokens", "n_steps", "n_tokens", "n_samples"),
    *("warmup_steps", "decay_steps", "eval_every", "seed", "schedule"),
    *("lr", "lr_end", "lr_end_ratio", "warmup_ratio", "decay_ratio", "weight_decay"),
    *("beta1", "beta2", "grad_clip", "flops"),
)
PLACEHOLDERS = (*OF_SHAPE, *OF_RUN, *OF_DEVICES, *OF_PLACE)
"""Every placeholder, without ``size.COLUMN`` and the names of ``[program.derive]``."""
SIZE_PREFIX = "size."
MAX_EVALUATIONS = 10
"""Most evaluations of a run that ``eval_every`` gives; fewer if the steps have few divisors."""
PRODUCT_DIGITS = 12
"""Significant digits of products of settings, so that 0.003 x 0.1 is 0.0003."""
_YAML = (".yaml", ".yml")
_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where an attempt of a run executes.

    Attributes
    ----------
    run_id, sweep : str
        Names of the run and of its sweep.
    out_dir, metrics, run_json : str
        Folder of the program's output; file for its rows; file with the run's spec.
    checkpoint : str
        Checkpoint to resume from; empty for a fresh start.
    checkpoint_step : int
        Its step; 0 for a fresh start.
    python : str
        Interpreter where the program names none.
    n_devices, n_nodes, gpus_per_node : int
        Devices of the run over all nodes, nodes, and GPUs on each node.
    micro_batch_seqs : int
        Sequences in a device's forward pass; 0 means its whole share of the batch.
    train_data, eval_data : str
        Token files of the ``[data]`` table, where the program declares no data of its own.
    """

    run_id: str
    sweep: str
    out_dir: str
    metrics: str
    run_json: str
    checkpoint: str = ""
    checkpoint_step: int = 0
    python: str = "python3"
    n_devices: int = 1
    n_nodes: int = 1
    gpus_per_node: int = 1
    micro_batch_seqs: int = 0
    train_data: str = ""
    eval_data: str = ""


@dataclass(frozen=True, slots=True)
class Rendered:
    """What starts a program.

    Attributes
    ----------
    argv : tuple of str
        The arguments, with those of the container before them.
    env : Mapping
        Environment variables that the sweep file declares.
    files : Mapping
        Contents of the configuration files by their path below ``out_dir``.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    files: Mapping[str, str]


def rendered(spec: RunSpec, execution: ProgramExecution, place: Place) -> Rendered:
    """Return the command of a run; the arguments of ``resume`` only with a checkpoint.

    Raises
    ------
    UsageError
        If a template is not valid or names a placeholder that the run does not have.
    """
    program = _program_of(spec)
    found = values(spec, execution, place)
    resume = execution.resume if place.checkpoint else ()
    templates = (*execution.container, *program.command, *resume)
    return Rendered(
        argv=tuple(fill(template, found) for template in templates),
        env={name: fill(template, found) for name, template in program.env},
        files={
            fill(path, found): fill(text, found, is_yaml=PurePath(path).suffix in _YAML)
            for path, text in program.files
        },
    )


def values(spec: RunSpec, execution: ProgramExecution, place: Place) -> Mapping[str, Value]:
    """Return the value of each placeholder that a run has at a place.

    Raises
    ------
    UsageError
        If an entry of ``[program.derive]`` that the templates use has no value.
    """
    found = {**_run_values(spec), **_device_values(spec, place)}
    found |= {
        "run_id": place.run_id,
        "sweep": place.sweep,
        "python": execution.python or place.python,
        "out_dir": place.out_dir,
        "metrics": place.metrics,
        "run_json": place.run_json,
        "train_data": execution.train_data or place.train_data,
        "eval_data": execution.eval_data or place.eval_data,
        "tokenizer": execution.tokenizer or spec.tokenizer,
        "checkpoint": place.checkpoint,
        "checkpoint_step": place.checkpoint_step,
    }
    program = _program_of(spec)
    used = used_placeholders(program, execution)
    return _with_derived(program, found, used)


def final_step(spec: RunSpec) -> int:
    """Return the step of the program's log at which a run is complete.

    Raises
    ------
    UsageError
        If the expression has no value, or it is not a whole number from 0.
    """
    program = _program_of(spec)
    expression = parse(program.final_step)
    found = _with_derived(program, _run_values(spec), expression.names)
    value = expression.value(found)
    if value != int(value) or value < 0:
        raise UsageError(
            f"final_step = {program.final_step!r}, which is {value} for run {spec.run_id}",
            "a whole number from 0",
            "Write for example final_step = 'n_steps - 1'.",
        )
    return int(value)


def placeholders(template: str) -> tuple[str, ...]:
    """Return the names in a template, in order; raise UsageError if its braces do not match."""
    return tuple(name for _, name in _parts(template) if name)


def used_placeholders(program: ProgramSpec, execution: ProgramExecution) -> frozenset[str]:
    """Return the names in all templates of a program, with those behind derived names.

    ``step`` of the checkpoint's glob is not one of them.
    """
    templates = (
        *program.command,
        *execution.container,
        *execution.resume,
        *(part for pair in (*program.files, *program.env) for part in pair),
    )
    used = {name for template in templates for name in placeholders(template)}
    used |= set(placeholders(execution.checkpoint)) - {"step"}
    derive = dict(program.derive)
    todo = [name for name in used if name in derive]
    while todo:
        new = parse(derive[todo.pop()]).names - used
        used |= new
        todo += [name for name in new if name in derive]
    return frozenset(used)


@functools.lru_cache(maxsize=1024)
def used_names(program: ProgramSpec) -> frozenset[str]:
    """Return the placeholders of a program that change what it computes."""
    return used_placeholders(program, ProgramExecution(cwd=""))


def fill(template: str, found: Mapping[str, Value], *, is_yaml: bool = False) -> str:
    """Return a template with these values; raise UsageError for a name that is not among them."""
    return "".join(
        _text(_known(name, found, template), is_yaml) if name else text
        for text, name in _parts(template)
    )


def format_value(value: Value) -> str:
    """Return a value as placeholders have it: plain digits, or the shortest exact decimal."""
    return repr(value) if isinstance(value, float) else str(value)


def evaluation_interval(n_steps: int) -> int:
    """Return ``eval_every``: divides the steps, so that the last evaluation is of the last step."""
    return next(n_steps // n for n in range(MAX_EVALUATIONS, 0, -1) if n_steps % n == 0)


def steps_with_evaluations(n_steps: int) -> int:
    """Return steps near these that ``eval_every`` divides well: at most 1 % more or less.

    A prime number of steps would have one evaluation, and in many trainers one checkpoint, at the
    end.
    """
    unit = min(MAX_EVALUATIONS, max(1, n_steps // 50))
    return round(n_steps / unit) * unit


def step_ratio(part: int, n_steps: int) -> float:
    """Return a ratio whose product with the steps gives the part, rounded or rounded up.

    Hugging Face's Trainer rounds up, so the product must not be above the part.
    """
    ratio = part / n_steps
    near = (ratio, math.nextafter(ratio, 1.0), math.nextafter(ratio, 0.0))
    exact = (value for value in near if value * n_steps == part)
    return next(exact, next((value for value in near if value * n_steps <= part), ratio))


def _program_of(spec: RunSpec) -> ProgramSpec:
    assert spec.program is not None, "only runs of a program are rendered"
    return spec.program


def _run_values(spec: RunSpec) -> dict[str, Value]:
    """Return the values that do not depend on where the run executes."""
    shape, program = spec.shape, _program_of(spec)
    found: dict[str, Value] = {
        "seq_len": spec.seq_len,
        "batch_seqs": spec.batch_seqs,
        "batch_tokens": spec.tokens_per_step,
        "n_steps": spec.n_steps,
        "n_tokens": spec.n_tokens,
        "n_samples": spec.n_steps * spec.batch_seqs,
        "warmup_steps": spec.warmup_steps,
        "decay_steps": spec.decay_steps,
        "eval_every": evaluation_interval(spec.n_steps),
        "seed": spec.seed,
        "schedule": spec.schedule,
        "lr": spec.lr,
        "lr_end": round_significant(spec.lr * _end_ratio(spec), PRODUCT_DIGITS),
        "lr_end_ratio": _end_ratio(spec),
        "warmup_ratio": step_ratio(spec.warmup_steps, spec.n_steps),
        "decay_ratio": step_ratio(spec.decay_steps, spec.n_steps),
        "weight_decay": spec.weight_decay,
        "beta1": spec.beta1,
        "beta2": spec.beta2,
        "grad_clip": spec.grad_clip,
        "flops": planned_flops(spec),
    }
    if has_shape(spec):
        found |= {name: getattr(shape, name) for name in OF_SHAPE}
        found["n_kv_heads"] = shape.kv_heads
        if shape.vocab_size == NO_SHAPE.vocab_size:
            del found["vocab_size"]
    found |= {SIZE_PREFIX + column: value for column, value in program.size}
    if program.n_params:
        found[f"{SIZE_PREFIX}n_params"] = program.n_params
    if program.flops_per_token:
        found[f"{SIZE_PREFIX}flops_per_token"] = program.flops_per_token
    return found


def _end_ratio(spec: RunSpec) -> float:
    return 0.0 if spec.schedule == "wsd" else spec.lr_end_ratio


def _device_values(spec: RunSpec, place: Place) -> dict[str, Value]:
    found: dict[str, Value] = {
        "n_devices": place.n_devices,
        "n_nodes": place.n_nodes,
        "gpus_per_node": place.gpus_per_node,
    }
    share, rest = divmod(spec.batch_seqs, place.n_devices)
    micro = place.micro_batch_seqs or share
    if rest == 0 and share % micro == 0:
        found |= {"micro_batch_seqs": micro, "grad_accum": share // micro}
    return found


def _with_derived(
    program: ProgramSpec, found: Mapping[str, Value], used: Iterable[str]
) -> dict[str, Value]:
    """Return values with those of the derived names that are used, each after what it needs."""
    derive = dict(program.derive)
    result = dict(found)

    def add(name: str, path: tuple[str, ...]) -> None:
        if name in result or name not in derive:
            return
        if name in path:
            raise UsageError(
                f"[program.derive] {' -> '.join((*path, name))}",
                "entries that do not need themselves",
                f"Change the expression of {name}.",
            )
        expression = parse(derive[name])
        for needed in sorted(expression.names):
            add(needed, (*path, name))
            if needed not in result:
                raise unknown_placeholder(needed, f"derive.{name} = {derive[name]!r}", result)
        value: Number = expression.value(result)
        result[name] = value

    for name in sorted(used):
        add(name, ())
    return result


def unknown_placeholder(name: str, where: str, found: Iterable[str]) -> UsageError:
    """Return the error for a placeholder without a value, with the reason if there is one."""
    if name in OF_SHAPE:
        return UsageError(
            f"the placeholder {{{name}}} in {where}, which the table of sizes does not give",
            "placeholders {size.COLUMN}, or a table with the columns n_layers, d_model, n_heads "
            "and, unless program.vocab_size is set, vocab_size",
            f"Add these columns to the table, or remove {{{name}}}.",
        )
    if name in ("micro_batch_seqs", "grad_accum"):
        return UsageError(
            f"the placeholder {{{name}}} in {where}, where the batch is not a multiple of "
            "n_devices x micro_batch_seqs",
            "a batch that the devices and the micro-batch divide",
            "Use another --batch-seqs, --micro-batch or number of GPUs.",
        )
    names = sorted({*found, *PLACEHOLDERS})
    return UsageError(
        f"the unknown placeholder {{{name}}} in {where}",
        "a placeholder, a name of [program.derive], or {size.COLUMN} of a table of sizes; "
        "write {{ and }} for braces",
        f"{did_you_mean(name, names)}`scalelab program check FILE` lists every placeholder.",
    )


def _parts(template: str) -> Iterator[tuple[str, str]]:
    """Yield each part as (literal text, "") or ("", name)."""
    end = 0
    for match in _PART.finditer(template):
        if match.start() > end:
            yield template[end : match.start()], ""
        end = match.end()
        if match[0] in ("{{", "}}"):
            yield match[0][0], ""
            continue
        if match[1] is None or not _NAME.fullmatch(match[1]):
            raise UsageError(
                f"{match[0]!r} in the template {template!r}",
                "{name} for a placeholder, {{ and }} for braces",
                "Double every brace that is not around a placeholder.",
            )
        yield "", match[1]
    if end < len(template):
        yield template[end:], ""


def _known(name: str, found: Mapping[str, Value], template: str) -> Value:
    if name not in found:
        raise unknown_placeholder(name, repr(template), found)
    return found[name]


def _text(value: Value, is_yaml: bool) -> str:
    text = format_value(value)
    if is_yaml and isinstance(value, float) and "." not in text:
        # YAML 1.1, and so PyYAML, reads 1e-05 as text.
        text = text.replace("e", ".0e")
    return text
