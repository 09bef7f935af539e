"""Checks of a program before its runs start, and the commands that a plan will render."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scalelab.errors import UsageError, did_you_mean
from scalelab.launch.programs.output import REPORTED_FILE
from scalelab.launch.programs.source import data_fingerprint
from scalelab.launch.slurm.resources import nodes_and_tasks
from scalelab.logs.registry import FORMATS
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.planned_run import PlannedRun
from scalelab.sweep.program import OWN_READER, ProgramExecution
from scalelab.sweep.program_render import Place, Rendered, final_step, rendered
from scalelab.sweep.program_table import ProgramTable
from scalelab.sweep.run_spec import RunSpec

N_SHOWN = 3
UNREADABLE_FORMATS = ("lm-eval",)


@dataclass(frozen=True, slots=True)
class RenderedRun:
    """The command of a planned run: smallest, middle or largest of its plan."""

    row: PlannedRun
    rendered: Rendered


def planned_place(
    spec: RunSpec, execution: ExecutionSpec, *, sweep: str, results: Path, gpus_per_node: int = 0
) -> Place:
    """Return where the first attempt of a run will execute; its token is not known yet."""
    folder = results / "runs" / spec.run_id
    attempt = folder / "attempts" / "1-TOKEN"
    n_nodes, n_tasks = 1, execution.n_devices
    if gpus_per_node:
        n_nodes, n_tasks = nodes_and_tasks(execution.n_devices, gpus_per_node)
    return Place(
        run_id=spec.run_id,
        sweep=sweep,
        out_dir=str(attempt / "out"),
        metrics=str(attempt / REPORTED_FILE),
        run_json=str(folder / "spec.json"),
        python=sys.executable,
        n_devices=execution.n_devices,
        n_nodes=n_nodes,
        gpus_per_node=n_tasks,
        micro_batch_seqs=execution.micro_batch_seqs,
    )


def shown_runs(rows: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return the smallest, the middle and the largest run of a plan, by FLOPs."""
    ordered = sorted(rows, key=lambda row: row.flops)
    chosen = sorted({0, len(ordered) // 2, len(ordered) - 1}) if ordered else []
    return [ordered[index] for index in chosen][:N_SHOWN]


def render_problems(
    rows: Sequence[PlannedRun], places: Mapping[str, Place], execution: ProgramExecution
) -> list[UsageError]:
    """Return the problems of rendering: runs that have none, and runs that have the same command.

    ``places`` has the place of each run by run_id.
    """
    found: list[UsageError] = []
    seen: dict[object, PlannedRun] = {}
    for row in rows:
        place = places[row.spec.run_id]
        same = replace(place, run_id="RUN", out_dir="OUT", metrics="METRICS", run_json="SPEC")
        try:
            final_step(row.spec)
            made = rendered(row.spec, execution, same)
        except UsageError as error:
            if str(error) not in {str(other) for other in found}:
                found.append(error)
            continue
        key = (made.argv, *(tuple(sorted(each.items())) for each in (made.env, made.files)))
        other = seen.setdefault(key, row)
        if other is not row and other.spec != row.spec:
            found.append(_same_command(other, row))
            break
    return found


def place_problems(
    table: ProgramTable, examples: Iterable[RenderedRun], *, is_prepared: bool
) -> list[UsageError]:
    """Return the problems of this machine: a missing folder, program, script or data.

    Parameters
    ----------
    table : ProgramTable
    examples : iterable of RenderedRun
    is_prepared : bool
        Whether the data of the placeholders is that of ``[data]``.
    """
    execution = table.execution()
    found = []
    folder = Path(execution.cwd)
    if not folder.is_dir():
        found.append(
            UsageError(
                f"program.cwd = {execution.cwd!r}, which is not a folder",
                "the folder in which the program starts",
                "Correct cwd; it starts from the folder of the sweep file.",
            )
        )
    example = next(iter(examples), None)
    if example is not None and folder.is_dir():
        problem = _program_problem(example.rendered.argv, folder, bool(execution.container))
        found += [] if problem is None else [problem]
    for name in ("train_data", "eval_data"):
        path = getattr(execution, name)
        if path and data_fingerprint(path) is None:
            found.append(
                UsageError(
                    f"program.{name} = {path!r}, which does not exist",
                    "a file, a folder, or the start of file names",
                    f"Correct {name}; it starts from the folder of the sweep file.",
                )
            )
    used = table.used()
    for name in ("train_data", "eval_data"):
        if name in used and not getattr(execution, name) and not is_prepared:
            found.append(
                UsageError(
                    f"{{{name}}} without program.{name}",
                    "a path for the placeholder",
                    f"Add {name} to [program].",
                )
            )
    return found


def require_format(table: ProgramTable) -> None:
    """Raise UsageError if no reader has the format of the program's log."""
    known = [OWN_READER, *(name for name in FORMATS if name not in UNREADABLE_FORMATS)]
    if table.result.format not in known:
        raise UsageError(
            f"program.result.format = {table.result.format!r}",
            f"one of {', '.join(known)}",
            f"{did_you_mean(table.result.format, known)}Or write metrics.jsonl with "
            "scalelab.program_log, and remove format.",
        )


def _program_problem(argv: Sequence[str], folder: Path, is_container: bool) -> UsageError | None:
    """Return the problem of a command: a program or script that is not there, or not executable."""
    program = argv[0]
    path = folder / program if "/" in program else None
    if path is None:
        found = shutil.which(program)
        if found is None:
            return UsageError(
                f"the program {program!r}, which is not in PATH",
                "a program that this machine has",
                "Install it, or write its path in program.command.",
            )
    elif not path.is_file():
        return UsageError(
            f"the program {str(path)!r}, which does not exist",
            "a program that this machine has",
            "Correct program.command or program.python.",
        )
    elif not os.access(path, os.X_OK):
        return UsageError(
            f"the program {str(path)!r}, which is not executable",
            "an executable file",
            f"Run `chmod +x {path}`, or start it with an interpreter: '{{python}}', '{program}'.",
        )
    script = next((word for word in argv[1:] if not word.startswith("-")), "")
    has_script = script.endswith(".py") and Path(program).name.startswith("python")
    if has_script and not is_container and not (folder / script).is_file():
        return UsageError(
            f"the script {script!r}, which is not in {folder}",
            "a script that exists",
            "Correct program.command, or program.cwd, in which the program starts.",
        )
    return None


def _same_command(one: PlannedRun, two: PlannedRun) -> UsageError:
    names = ("seed", "n_steps", "batch_seqs", "lr", "weight_decay", "beta2", "warmup_steps")
    differing = [name for name in names if getattr(one.spec, name) != getattr(two.spec, name)]
    if one.spec.shape != two.spec.shape or one.n_params != two.n_params:
        differing.insert(0, "the model")
    words = ", ".join(differing) or "settings without a placeholder"
    return UsageError(
        f"two runs with the same command, which differ in {words}",
        "a command that receives what differs between the runs",
        "Add the placeholders to program.command, for example '--seed={seed}' or "
        "'--n_layer={n_layers}'.",
    )
