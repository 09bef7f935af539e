"""Evaluation of the kept weights of runs: task files, lm-evaluation-harness, and named texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.corpus.dataset import Dataset
from scalelab.corpus.eval_text import EvalText
from scalelab.corpus.mixed import MixedDataset, open_data
from scalelab.corpus.prepared_tokenizer import prepared_tokenizer
from scalelab.corpus.task_tokens import TaskTokens, encode_task
from scalelab.corpus.tasks import Task
from scalelab.corpus.tokenizer import Tokenizer
from scalelab.errors import DataError, UsageError
from scalelab.launch.later_sets import Known, LaterSets
from scalelab.records.evaluation_report import EvaluatedRun, EvaluationReport
from scalelab.records.evaluations import Evaluation, read_evaluations, save_evaluations
from scalelab.records.run_dir import RunDir
from scalelab.records.sweep_dir import Results
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import count_params
from scalelab.units import plural

if TYPE_CHECKING:
    from scalelab.train.weights import Weights, WeightsModel

Progress = Callable[[str, int, int], None]
"""Called with what is evaluated, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What to evaluate.

    Attributes
    ----------
    files : Mapping of Task
        Tasks by name.
    harness : tuple of str
        Names of tasks of lm-evaluation-harness.
    include : Path or None
        Folder of further task definitions of the harness.
    texts : Mapping of EvalText
        Named texts.
    """

    files: Mapping[str, Task] = field(default_factory=dict)
    harness: tuple[str, ...] = ()
    include: Path | None = None
    texts: Mapping[str, EvalText] = field(default_factory=dict)


def first_dataset(results: Path, fingerprint: str) -> Dataset | None:
    """Return the data of a run, of a mixture its first source, whose tokenizer is that of all.

    None if it is not in the results folder any more.
    """
    folder = Results(results).dataset(fingerprint)
    if not folder.is_dir():
        return None
    found = open_data(folder)
    return next(iter(found.sources.values())) if isinstance(found, MixedDataset) else found


def nothing_evaluated(left_out: Mapping[str, str]) -> DataError:
    """Return the error for runs of which none can be evaluated, by their reasons."""
    (reason, n), *_ = Counter(left_out.values()).most_common(1)
    return DataError(
        f"no run to evaluate: {plural(n, 'run')} of {len(left_out)}: {reason}",
        "runs that are done and kept their weights",
        "Train with --keep-weights. To train a run again: `scalelab remove RUN --yes`, then the "
        "command of its sweep with --keep-weights.",
    )


@dataclass(slots=True)
class KeptEvaluation:
    """The evaluation of runs, one after the other.

    Attributes
    ----------
    results : Path
    wanted : Wanted
    device : str
        ``cpu`` or ``cuda``.
    progress : callable
    rows : list of EvaluatedRun
        What was found so far.
    left_out : dict of str
        Why a run was left out, by run_id.
    """

    results: Path
    wanted: Wanted
    device: str
    progress: Progress
    rows: list[EvaluatedRun] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    _known_data: dict[str, tuple[Dataset, Tokenizer]] = field(default_factory=dict)
    _encoded: dict[tuple[str, str, int], TaskTokens] = field(default_factory=dict)
    _sets: LaterSets = field(init=False)

    def __post_init__(self) -> None:
        self._sets = LaterSets(self.results, self.wanted.texts, self.progress)

    def evaluate(self, run: RunDir, stage: str) -> None:
        """Evaluate a run on what it was not evaluated on before, or note why not.

        Raises
        ------
        UsageError, DataError
            If what is wanted cannot be evaluated on any run of this kind.
        """
        from scalelab.train.host import torch_settings
        from scalelab.train.weights import WeightsModel, load_weights

        spec = run.read_spec()
        known = {found.key: found for found in read_evaluations(run.path)}
        todo = [
            task
            for task in self.wanted.files.values()
            if not self._is_known(run, spec, task, known)
        ]
        later = self._harness_todo(run, spec, list(known.values()))
        if not (todo or later or self.wanted.texts):
            return
        try:
            weights = load_weights(run)
            dataset, tokenizer = self._data(spec.data_fingerprint)
        except (DataError, UsageError) as error:
            self.left_out[run.run_id] = error.given.partition(", ")[2] or error.given
            return
        # One CPU thread, as in training: two that wait for each other on a busy machine are slower.
        with torch_settings(ExecutionSpec(device=self.device)):
            model = WeightsModel(weights, self.device)
            for task in todo:
                self._score(run, model, weights, task, tokenizer, stage)
            for found, is_new in self._sets.evaluate(run, model, weights, known, stage):
                self._add(run, spec, found, is_new=is_new)
        if later:
            self._run_harness(run, weights, dataset, later, stage)

    def report(self) -> EvaluationReport:
        """Return what was found.

        Raises
        ------
        DataError
            If no run could be evaluated.
        """
        if not self.rows and self.left_out:
            raise nothing_evaluated(self.left_out)
        return EvaluationReport(
            rows=tuple(self.rows), left_out=self.left_out, warnings=tuple(self._warnings())
        )

    def _is_known(self, run: RunDir, spec: RunSpec, task: Task, known: Known) -> bool:
        """Say whether the run was evaluated on the items of a task; then add what was found."""
        found = known.get((spec.n_steps, task.name, task.kind))
        if found is None or found.fingerprint != task.fingerprint:
            return False
        self._add(run, spec, found, is_new=False)
        return True

    def _score(
        self,
        run: RunDir,
        model: WeightsModel,
        weights: Weights,
        task: Task,
        tokenizer: Tokenizer,
        stage: str,
    ) -> None:
        from scalelab.train.task_scores import score, summarize

        tokens = self._tokens(task, weights.spec, tokenizer)
        total = len(tokens.scored)

        def report(done: int) -> None:
            self.progress(f"{stage}: {task.name}", done, total)

        found = summarize(tokens, score(model, tokens.scored, report), weights.step)
        save_evaluations(run.path, [found])
        self._add(run, weights.spec, found, is_new=True)

    def _harness_todo(self, run: RunDir, spec: RunSpec, known: Sequence[Evaluation]) -> list[str]:
        """Return the tasks of the harness that the run does not have yet."""
        if not self.wanted.harness:
            return []
        from scalelab.train.harness import harness_fingerprint

        by_fingerprint = {found.fingerprint: found for found in known}
        later = []
        for name in self.wanted.harness:
            earlier = by_fingerprint.get(harness_fingerprint(name))
            if earlier is None:
                later.append(name)
            else:
                self._add(run, spec, earlier, is_new=False)
        return later

    def _run_harness(
        self, run: RunDir, weights: Weights, dataset: Dataset, names: list[str], stage: str
    ) -> None:
        from scalelab.train.harness import run_harness

        self.progress(f"{stage}: {', '.join(names)}", 0, 1)
        found = run_harness(weights, dataset, names, self.device, self.wanted.include)
        save_evaluations(run.path, found)
        for each in found:
            self._add(run, weights.spec, each, is_new=True)
        self.progress(f"{stage}: {', '.join(names)}", 1, 1)

    def _data(self, fingerprint: str) -> tuple[Dataset, Tokenizer]:
        if fingerprint not in self._known_data:
            dataset = first_dataset(self.results, fingerprint)
            if dataset is None:
                raise DataError(
                    f"run of data {fingerprint}, whose tokenizer is not in the results folder",
                    "the data that the run was trained on",
                    "Prepare the data again with `scalelab data prepare`.",
                )
            self._known_data[fingerprint] = dataset, prepared_tokenizer(dataset)
        return self._known_data[fingerprint]

    def _tokens(self, task: Task, spec: RunSpec, tokenizer: Tokenizer) -> TaskTokens:
        key = (task.name, spec.data_fingerprint, spec.seq_len)
        if key not in self._encoded:
            self._encoded[key] = encode_task(task, tokenizer, spec.seq_len, spec.shape.vocab_size)
        return self._encoded[key]

    def _add(self, run: RunDir, spec: RunSpec, found: Evaluation, *, is_new: bool) -> None:
        self.rows.append(
            EvaluatedRun(
                run_id=run.run_id,
                label=spec.shape.label(),
                n_params=count_params(spec.shape).total,
                n_tokens=spec.n_tokens,
                evaluation=found,
                is_new=is_new,
            )
        )

    def _warnings(self) -> list[str]:
        found = [
            f"{name}: the contexts of {plural(tokens.n_cut, 'item')} of {len(tokens.task.items):,} "
            f"are longer than the model ({seq_len} tokens); their beginning was cut, as "
            "lm-evaluation-harness does"
            for (name, _, seq_len), tokens in self._encoded.items()
            if tokens.n_cut
        ]
        found += self._sets.warnings
        for reason, n in Counter(self.left_out.values()).items():
            found.append(f"{plural(n, 'run')} not evaluated: {reason}")
        return found
