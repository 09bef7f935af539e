"""``scalelab evaluate``: tasks and texts on the kept weights of runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalelab.cli.options import DEFAULT_RESULTS, DeviceOption, JsonOption, ResultsOption
from scalelab.cli.output import console, emit_json, runnable, warn
from scalelab.errors import EXIT_OK
from scalelab.units import format_quantity, plural

if TYPE_CHECKING:
    from rich.progress import TaskID

    from scalelab.records.evaluation_report import EvaluatedRun, EvaluationReport


def evaluate(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="SWEEP|RUN...", help="Sweeps, and run IDs or their first characters."
        ),
    ],
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            metavar="[NAME=]FILE|lm-eval:TASK,..",
            help="JSONL file of items, or tasks of lm-evaluation-harness; repeatable.",
        ),
    ] = None,
    eval_set: Annotated[
        list[str] | None,
        typer.Option(
            "--eval-set",
            metavar="NAME=PATH",
            help="Text to evaluate on, as in a sweep; repeatable, the same name adds a path.",
        ),
    ] = None,
    include_path: Annotated[
        Path | None,
        typer.Option(
            "--include-path", help="Folder of your task definitions for lm-evaluation-harness."
        ),
    ] = None,
    device: DeviceOption = None,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Evaluate finished runs on tasks and texts.

    No run is trained again: it must have been trained with --keep-weights. Results go to the
    table evals; what was evaluated before is not computed again.

    A task file has one item per line: {"context": "The sky is", "choices": ["blue", "green"],
    "answer": 0}, or {"text": ".."} for perplexity.

    Example: scalelab evaluate demo --tasks examples/tasks/python.jsonl
    """
    from scalelab import api

    with _showing() as progress:
        report = api.evaluate(
            *names,
            tasks=tasks or (),
            sets=eval_set or (),
            results=results,
            device=device,
            include=include_path,
            progress=progress,
        )
    if as_json:
        emit_json(report.to_dict())
        return EXIT_OK
    _print(report)
    return EXIT_OK


def _print(report: EvaluationReport) -> None:
    from scalelab.cli.layout import Fitting, number_table

    for text in report.warnings:
        warn(text)
    table = number_table(
        *("run", "model", "N", "D", "set", "accuracy", "bits/byte", "nats/token", "items"),
        texts=("run", "model", "set"),
    )
    for row in sorted(report.rows, key=_order):
        found = row.evaluation
        table.add_row(
            row.run_id,
            row.label,
            format_quantity(row.n_params),
            format_quantity(row.n_tokens),
            found.set,
            _percent(found.accuracy, found.stderr),
            _number(found.bits_per_byte),
            _number(found.loss_nats),
            f"{found.n_items:,}" if found.n_items is not None else "",
        )
    out = console()
    out.print(Fitting(table))
    n_new = sum(row.is_new for row in report.rows)
    earlier = len(report.rows) - n_new
    out.print(
        f"{plural(n_new, 'new evaluation')}"
        + (f", {earlier:,} from before" if earlier else "")
        + ". bits/byte of a task is that of its right answers.",
        soft_wrap=True,
    )
    out.print(runnable("Next: scalelab export --table evals --out evals.csv"), soft_wrap=True)


def _order(row: EvaluatedRun) -> tuple[str, float, float]:
    return row.evaluation.set, row.n_params, row.n_tokens


def _percent(accuracy: float | None, error: float | None) -> str:
    if accuracy is None:
        return ""
    return f"{100 * accuracy:.1f} %" + (f" ± {100 * error:.1f}" if error is not None else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


@contextlib.contextmanager
def _showing() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback that shows progress: a bar on a terminal, else one line per run and set."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    out = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bars:
        shown: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in shown:
                for earlier in shown.values():
                    bars.remove_task(earlier)
                shown.clear()
                shown[stage] = bars.add_task(stage)
                if not out.is_terminal:
                    out.print(stage, soft_wrap=True)
            bars.update(shown[stage], completed=done, total=total)

        yield report
