"""The verb `fit_chain`: accuracy of tasks from scale, through the task loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.errors import DataError, ScalelabError, UsageError, did_you_mean

if TYPE_CHECKING:
    from scalelab.api.arguments import Asked
    from scalelab.api.data import Data
    from scalelab.forecast.chain import TaskChain
    from scalelab.store.reading import Reading

EVERY_TASK = "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainReport:
    """The chains of one or several tasks.

    Attributes
    ----------
    chains : tuple of TaskChain
    failed : Mapping[str, ScalelabError]
        Tasks whose task loss could not be fitted.
    source : str
        Where the runs come from.
    """

    chains: tuple[TaskChain, ...]
    failed: Mapping[str, ScalelabError]
    source: str

    def __getitem__(self, task: str) -> TaskChain:
        """Return the chain of a task."""
        return next(each for each in self.chains if each.task == task)

    def to_dict(self) -> dict[str, Any]:
        """Return the chains as JSON types."""
        return {
            "command": "fit",
            "chain": True,
            "source": self.source,
            "tasks": [each.to_dict() for each in self.chains],
            "failed": {task: error.as_dict() for task, error in self.failed.items()},
        }


def fit_chain(
    data: Data | None = None,
    *,
    tasks: str | Sequence[str] = EVERY_TASK,
    chance: float | None = None,
    predict: Asked = (),
    sweep: str | None = None,
    results: str | Path = "results",
    mapping: Mapping[str, str] | None = None,
    where: str | None = None,
    level: float = 0.9,
    bootstrap: Any = None,
    reading: Reading | None = None,
    **options: Any,
) -> ChainReport:
    """Fit task loss from N and D, and accuracy from task loss, for each task.

    Parameters
    ----------
    data, sweep, results, mapping, where, reading
        As in `fit`. With ``reading.last_of``, the task loss is fitted to the last checkpoint of
        each run, and the accuracy to all checkpoints.
    tasks : str or sequence of str
        Names of tasks with ``bpb_NAME`` and ``acc_NAME``; ``"all"`` takes every one.
    chance : float, optional
        Accuracy of guessing; default: known for usual benchmarks, else chosen by fit.
    predict : str, dict, DataFrame or a sequence of them
        Runs to predict, as in `fit`.
    level : float
        Level of the intervals.
    bootstrap : BootstrapSpec or int, optional
        As in `fit`.
    options
        Further arguments of `fit` for the task loss, such as ``form`` and ``forecaster``.

    Raises
    ------
    UsageError, DataError
        If a task is not known, has no accuracy, or no task can be fitted.
    """
    from scalelab.api.arguments import as_names, as_requests
    from scalelab.store.reading import Reading

    if chance is not None and not 0 <= chance < 1:
        raise UsageError(f"chance {chance:g}", "from 0 to below 1", "Write --chance 0.25.")
    reading = reading or Reading()
    source: dict[str, Any] = {"sweep": sweep, "results": results, "mapping": mapping}
    names = _tasks(data, as_names(tasks, "tasks", "hellaswag"), source, reading)
    shared = {**source, "where": where, "level": level, "bootstrap": bootstrap, **options}
    requests = as_requests(predict) if predict else []
    chains: list[TaskChain] = []
    failed: dict[str, ScalelabError] = {}
    for name in names:
        try:
            chains.append(_chain(data, name, chance, requests, reading, shared))
        except DataError as error:
            if len(names) == 1:
                raise
            failed[name] = error
    if not chains:
        raise next(iter(failed.values()))
    return ChainReport(
        chains=tuple(chains), failed=failed, source=chains[0].report.observations.source
    )


def _tasks(
    data: Data | None, asked: Sequence[str], source: dict[str, Any], reading: Reading
) -> list[str]:
    """Return the names of the tasks to fit."""
    from scalelab.api.metrics import list_metrics
    from scalelab.records.metric import ACCURACY, TASK

    every = list_metrics(data, reading=reading, **source)
    terms = [each.terms[0] for each in every if len(each.terms) == 1]
    losses = [term.name for term in terms if term.kind == TASK]
    scored = {term.name for term in terms if term.kind == ACCURACY}
    known = [name for name in losses if name in scored]
    if not known:
        raise DataError(
            "runs without a task",
            "columns bpb_NAME (bits per byte of the right answer) and acc_NAME (accuracy)",
            "Add both columns, or run `scalelab evaluate` on the models of a sweep.",
        )
    if list(asked) == [EVERY_TASK]:
        return known
    for name in asked:
        if name not in known:
            raise UsageError(
                f"task {name!r}",
                f"all, or a task with bits per byte and accuracy: {', '.join(known)}",
                did_you_mean(name, known, prefix="--metric task:")
                or f"Write for example --metric task:{known[0]}.",
            )
    return list(asked)


def _chain(
    data: Data | None,
    task: str,
    chance: float | None,
    requests: Sequence[Any],
    reading: Reading,
    options: dict[str, Any],
) -> TaskChain:
    from scalelab.api.arguments import as_bootstrap
    from scalelab.api.data import read_runs
    from scalelab.api.fits import fit
    from scalelab.fit.task_accuracy import DEFAULT_REPLICATES, fit_direct, fit_link
    from scalelab.forecast.chain import chain_of
    from scalelab.records.metric import ACCURACY, Term
    from scalelab.store.metric import metrics_of

    reading = replace(reading, metric=f"task:{task}")
    report = fit(data, reading=reading, **options)
    keys = ("sweep", "results", "mapping", "where")
    selection = {name: options[name] for name in keys}
    if reading.last_of is not None:
        # The checkpoints of a run are one cluster.
        selection["mapping"] = {"cluster": reading.last_of, **(selection["mapping"] or {})}
    every = replace(reading, last_of=None)
    rows = read_runs(data, reading=every, **selection).observations

    def accuracy_in(found: Any) -> Any:
        column = metrics_of(found.extra)[Term(kind=ACCURACY, name=task).text]
        return np.asarray(found.extra[column], dtype=np.float64)

    accuracy = accuracy_in(rows)
    seen = np.isfinite(accuracy) & (accuracy > 0)
    spec = as_bootstrap(options["bootstrap"])
    link = fit_link(
        rows.take(seen),
        accuracy[seen],
        task,
        chance=chance,
        bootstrap=replace(spec, k=min(spec.k, DEFAULT_REPLICATES), method="auto"),
    )
    final = report.observations
    direct = None
    if final.has("flops"):
        measured = accuracy_in(final)
        here = np.isfinite(measured)
        direct = fit_direct(final.flops[here], measured[here], link.chance, seed=spec.seed)
    return chain_of(task, report, link, direct, requests, level=options["level"], seed=spec.seed)
