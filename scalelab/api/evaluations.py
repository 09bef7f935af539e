"""The verb `evaluate`: tasks and texts on the kept weights of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.api.data import DEFAULT_RESULTS
from scalelab.api.folders import existing
from scalelab.api.weights import require_torch
from scalelab.errors import UsageError

if TYPE_CHECKING:
    from scalelab.corpus.tasks import Task
    from scalelab.launch.evaluation import Progress
    from scalelab.records.evaluation_report import EvaluationReport

HARNESS = "lm-eval:"


def evaluate(
    *names: str,
    tasks: Sequence[str] = (),
    sets: Mapping[str, str | Sequence[str]] | Sequence[str] = (),
    results: str | Path = DEFAULT_RESULTS,
    device: str | None = None,
    include: str | Path | None = None,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Evaluate the kept weights of runs; the table ``evals`` gets the numbers.

    What was evaluated before is not evaluated again, unless the items or the text have changed.
    After an interruption, the same call continues.

    Parameters
    ----------
    names : str
        Sweeps, run IDs, or their first characters.
    tasks : sequence of str
        ``FILE`` or ``NAME=FILE`` of a JSONL file (`scalelab.corpus.tasks`), or
        ``lm-eval:TASK,TASK`` of lm-evaluation-harness.
    sets : Mapping or sequence of str
        Texts by name, or ``NAME=PATH``: evaluation sets as in training.
    results : str or Path
        The results folder.
    device : str, optional
        ``cpu`` or ``cuda``; default ``cuda`` if there is a GPU.
    include : str or Path, optional
        Folder of further task definitions for lm-evaluation-harness.
    progress : callable, optional
        Receives what is evaluated, how much of it is done, and how much there is.

    Raises
    ------
    UsageError
        If a run or an option is not valid, or a needed package is missing.
    DataError
        If a file cannot be used, a text was trained on, or no run has weights.
    """
    from scalelab.corpus.dataset import ignore_progress
    from scalelab.corpus.eval_text import EvalText, read_eval_sets
    from scalelab.launch.evaluation import KeptEvaluation, Wanted
    from scalelab.launch.speed import default_device
    from scalelab.records.run_names import find_runs
    from scalelab.store.collect import collect

    if not names:
        raise UsageError(
            "no run and no sweep",
            "what to evaluate",
            "Name a sweep or run IDs, for example: scalelab evaluate demo --tasks facts.jsonl",
        )
    folder = existing(results)
    files, harness = _read_tasks(tasks)
    texts = {name: EvalText(**text) for name, text in read_eval_sets(sets).items()}
    if not (files or harness or texts):
        raise UsageError(
            "nothing to evaluate on",
            "--tasks FILE, --tasks lm-eval:TASK or --eval-set NAME=PATH",
            "Add for example --tasks facts.jsonl",
        )
    for name in texts.keys() & files.keys():
        raise UsageError(
            f"a task and an evaluation set named {name}",
            "a name for each",
            f"Write another name, for example --eval-set {name}_text=PATH.",
        )
    runs = find_runs(folder, names)
    require_torch()
    work = KeptEvaluation(
        folder,
        Wanted(
            files=files,
            harness=harness,
            include=None if include is None else Path(include),
            texts=texts,
        ),
        device or default_device(),
        progress or ignore_progress,
    )
    try:
        for index, run in enumerate(runs, start=1):
            work.evaluate(run, f"run {index} of {len(runs)}, {run.run_id}")
    finally:
        if any(row.is_new for row in work.rows):
            collect(folder)
    return work.report()


def _read_tasks(words: Iterable[str]) -> tuple[dict[str, Task], tuple[str, ...]]:
    """Return the tasks of files by name, and the names of tasks of the harness."""
    from scalelab.corpus.tasks import read_task, require_name

    files: dict[str, Task] = {}
    harness: list[str] = []
    for word in words:
        if word.startswith(HARNESS):
            named = [name.strip() for name in word.removeprefix(HARNESS).split(",")]
            if not all(named):
                raise UsageError(
                    f"--tasks {word}",
                    "names of tasks of lm-evaluation-harness after lm-eval:",
                    "Write for example --tasks lm-eval:arc_easy,hellaswag.",
                )
            harness += named
            continue
        name, equals, file = word.partition("=")
        path = Path(file if equals else word)
        name = require_name(name if equals else path.name.partition(".")[0], f"--tasks {word}")
        if name in files:
            raise UsageError(
                f"--tasks {word}, the second task named {name}",
                "a name for each task",
                f"Write another name before it, for example {name}_2={path}.",
            )
        files[name] = read_task(path, name)
    return files, tuple(harness)
