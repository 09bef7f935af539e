"""The verb `evaluate`: tasks and texts on the kept weights of runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.api.data import DEFAULT_RESULTS
from scalelab.api.folders import existing
from scalelab.api.weights import dataset_of, require_torch
from scalelab.errors import DataError, UsageError
from scalelab.units import plural

if TYPE_CHECKING:
    from scalelab.corpus.dataset import Dataset
    from scalelab.corpus.task_tokens import TaskTokens
    from scalelab.corpus.tasks import Task
    from scalelab.corpus.tokenizer import Tokenizer
    from scalelab.records.evaluation_report import EvaluatedRun, EvaluationReport
    from scalelab.records.evaluations import Evaluation
    from scalelab.records.run_dir import RunDir
    from scalelab.sweep.run_spec import RunSpec
    from scalelab.train.weights import Weights

HARNESS = "lm-eval:"
Progress = Callable[[str, int, int], None]
"""Called with what is evaluated, how much of it is done, and how much there is."""


def evaluate(
    *names: str,
    tasks: Sequence[str] = (),
    results: str | Path = DEFAULT_RESULTS,
    device: str | None = None,
    include: str | Path | None = None,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Evaluate the kept weights of runs on tasks; the table ``evals`` gets the numbers.

    What was evaluated before is not evaluated again, unless the items have changed. After an
    interruption, the same call continues.

    Parameters
    ----------
    names : str
        Sweeps, run IDs, or their first characters.
    tasks : sequence of str
        ``FILE`` or ``NAME=FILE`` of a JSONL file (`scalelab.corpus.tasks`), or
        ``lm-eval:TASK,TASK`` of lm-evaluation-harness.
    results : str or Path
        The results folder.
    device : str, optional
        ``cpu`` or ``cuda``; default ``cuda`` if there is a GPU.
    include : str or Path, optional
        Folder of further task definitions for lm-evaluation-harness.
    progress : callable, optional
        Receives what is done.

    Raises
    ------
    UsageError
        If a run or an option is not valid, or a needed package is missing.
    DataError
        If a file cannot be used, or no run has weights.
    """
    from scalelab.launch.speed import default_device
    from scalelab.records.evaluation_report import EvaluationReport
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
    if not (files or harness):
        raise UsageError(
            "no task", "--tasks FILE or --tasks lm-eval:TASK", "Add for example --tasks facts.jsonl"
        )
    runs = find_runs(folder, names)
    require_torch()
    work = _Work(folder, files, harness, device or default_device(), include, progress or _ignore)
    try:
        for index, run in enumerate(runs):
            work.evaluate(run, index, len(runs))
    finally:
        if any(row.is_new for row in work.rows):
            collect(folder)
    if not work.rows:
        raise _nothing(work.left_out)
    return EvaluationReport(
        rows=tuple(work.rows), left_out=work.left_out, warnings=tuple(work.warnings())
    )


def _read_tasks(words: Iterable[str]) -> tuple[dict[str, Task], list[str]]:
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
    return files, harness


def _nothing(left_out: dict[str, str]) -> DataError:
    (reason, n), *_ = Counter(left_out.values()).most_common(1)
    return DataError(
        f"no run to evaluate: {plural(n, 'run')} of {len(left_out)}: {reason}",
        "runs that are done and kept their weights",
        "Train with --keep-weights. To train a run again: `scalelab remove RUN --yes`, then the "
        "command of its sweep with --keep-weights.",
    )


def _ignore(stage: str, done: int, total: int) -> None:
    """Ignore the progress."""


@dataclass(slots=True)
class _Work:
    """The evaluation of runs, one after the other."""

    folder: Path
    files: dict[str, Task]
    harness: list[str]
    device: str
    include: str | Path | None
    progress: Progress
    rows: list[EvaluatedRun] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    tokenizers: dict[str, tuple[Dataset, Tokenizer]] = field(default_factory=dict)
    encoded: dict[tuple[str, str, int], TaskTokens] = field(default_factory=dict)

    def evaluate(self, run: RunDir, index: int, n_runs: int) -> None:
        """Evaluate one run, or note why not."""
        from scalelab.records.evaluations import read_evaluations
        from scalelab.train.weights import load_weights

        spec = run.read_spec()
        known = {(found.set, found.kind): found for found in read_evaluations(run.path)}
        todo = []
        for task in self.files.values():
            earlier = known.get((task.name, task.kind))
            if earlier is not None and earlier.fingerprint == task.fingerprint:
                self._add(run, spec, earlier, is_new=False)
            else:
                todo.append(task)
        later = self._harness_todo(run, spec, known.values())
        if not (todo or later):
            return
        stage = f"run {index + 1} of {n_runs}, {run.run_id}"
        try:
            weights = load_weights(run)
            dataset, tokenizer = self._data(spec.data_fingerprint)
        except (DataError, UsageError) as error:
            self.left_out[run.run_id] = error.given.partition(", ")[2] or error.given
            return
        self._files(run, weights, todo, tokenizer, stage)
        if later:
            self._harness(run, weights, dataset, later, stage)

    def _files(
        self, run: RunDir, weights: Weights, todo: list[Task], tokenizer: Tokenizer, stage: str
    ) -> None:
        from scalelab.records.evaluations import save_evaluations
        from scalelab.train.task_scores import score, summarize
        from scalelab.train.weights import WeightsModel

        if not todo:
            return
        model = WeightsModel(weights, self.device)
        for task in todo:
            tokens = self._tokens(task, weights.spec, tokenizer)
            total = len(tokens.scored)

            def report(done: int, stage: str = f"{stage}: {task.name}", total: int = total) -> None:
                self.progress(stage, done, total)

            found = summarize(tokens, score(model, tokens.scored, report), weights.step)
            save_evaluations(run.path, [found])
            self._add(run, weights.spec, found, is_new=True)

    def _harness_todo(self, run: RunDir, spec: RunSpec, known: Iterable[Evaluation]) -> list[str]:
        """Return the tasks of the harness that the run does not have yet."""
        if not self.harness:
            return []
        from scalelab.train.harness import harness_fingerprint

        by_fingerprint = {found.fingerprint: found for found in known}
        later = []
        for name in self.harness:
            earlier = by_fingerprint.get(harness_fingerprint(name))
            if earlier is None:
                later.append(name)
            else:
                self._add(run, spec, earlier, is_new=False)
        return later

    def _harness(
        self, run: RunDir, weights: Weights, dataset: Dataset, names: list[str], stage: str
    ) -> None:
        from scalelab.records.evaluations import save_evaluations
        from scalelab.train.harness import run_harness

        self.progress(f"{stage}: {', '.join(names)}", 0, 1)
        include = None if self.include is None else Path(self.include)
        found = run_harness(weights, dataset, names, self.device, include)
        save_evaluations(run.path, found)
        for each in found:
            self._add(run, weights.spec, each, is_new=True)
        self.progress(f"{stage}: {', '.join(names)}", 1, 1)

    def _data(self, fingerprint: str) -> tuple[Dataset, Tokenizer]:
        from scalelab.corpus.prepared_tokenizer import prepared_tokenizer

        if fingerprint not in self.tokenizers:
            dataset = dataset_of(self.folder, fingerprint)
            if dataset is None:
                raise DataError(
                    f"run of data {fingerprint}, whose tokenizer is not in the results folder",
                    "the data that the run was trained on",
                    "Prepare the data again with `scalelab data prepare`.",
                )
            self.tokenizers[fingerprint] = dataset, prepared_tokenizer(dataset)
        return self.tokenizers[fingerprint]

    def _tokens(self, task: Task, spec: RunSpec, tokenizer: Tokenizer) -> TaskTokens:
        from scalelab.corpus.task_tokens import encode_task

        key = (task.name, spec.data_fingerprint, spec.seq_len)
        if key not in self.encoded:
            self.encoded[key] = encode_task(task, tokenizer, spec.seq_len, spec.shape.vocab_size)
        return self.encoded[key]

    def _add(self, run: RunDir, spec: RunSpec, found: Evaluation, *, is_new: bool) -> None:
        from scalelab.records.evaluation_report import EvaluatedRun
        from scalelab.theory.accounting import count_params

        row: dict[str, Any] = {"run_id": run.run_id, "label": spec.shape.label()}
        n_params = count_params(spec.shape).by_convention()["chinchilla"]
        self.rows.append(
            EvaluatedRun(
                **row,
                n_params=n_params,
                n_tokens=spec.n_tokens,
                evaluation=found,
                is_new=is_new,
            )
        )

    def warnings(self) -> list[str]:
        """Return what to know about the numbers."""
        found = []
        for (name, _, seq_len), tokens in self.encoded.items():
            if tokens.n_cut:
                found.append(
                    f"{name}: the contexts of {plural(tokens.n_cut, 'item')} of "
                    f"{len(tokens.task.items):,} are longer than the model ({seq_len} tokens); "
                    "their beginning was cut, as lm-evaluation-harness does"
                )
        for reason, n in Counter(self.left_out.values()).items():
            found.append(f"{plural(n, 'run')} not evaluated: {reason}")
        return found
