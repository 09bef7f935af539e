"""The search of a tuning: ask for trials, launch, prune and tell, until all trials are used.

Each trial is an ordinary run, trained by the tuning's launcher and never trained twice: the same
command resumes an interrupted search.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalelab.errors import RunsFailedError
from scalelab.launch.base import LaunchReport, LaunchView, Watcher
from scalelab.launch.cancel import cancel_runs
from scalelab.launch.execute import resume
from scalelab.launch.proposal import Proposal
from scalelab.launch.saved_options import save_launch
from scalelab.records.metric import HELDOUT, Metric, parse_metric
from scalelab.records.run_metric import check_in_training
from scalelab.records.sweep_dir import TUNE_KIND, Results
from scalelab.sweep.plan import Plan
from scalelab.sweep.planned_run import PlannedRun, planned_run
from scalelab.sweep.run_size import run_size
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import DEFAULT_PARAM_CONVENTION
from scalelab.tune.run_end import DIVERGED, curve_by_percent, final_loss
from scalelab.tune.runs_table import COLUMNS, TunedRuns
from scalelab.tune.spec import TuneSpec
from scalelab.tune.study import RUN_ID, OpenTrial, Studies
from scalelab.units import plural

CHECK_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchReport:
    """How the search of a tuning ended.

    Attributes
    ----------
    counts : dict of str to int
        Trials by state: ``complete``, ``diverged``, ``pruned``, ``fail``, ``running``.
    wall_s : float
        Duration, seconds.
    is_interrupted : bool
        Whether Ctrl-C stopped it; the same command resumes it.
    """

    counts: dict[str, int]
    wall_s: float
    is_interrupted: bool


class Search:
    """The search of one tuning.

    Parameters
    ----------
    spec : TuneSpec
    proposal : Proposal
        Of ``spec.sweep``: its rows are the cells, with the sweep's learning rates and batches.
    results : Results
    watch : callable
        Called with a `LaunchView` at every change.
    """

    def __init__(
        self, spec: TuneSpec, proposal: Proposal, results: Results, watch: Watcher
    ) -> None:
        proposal.plan.refuse_repeats(allow_repeats=spec.sweep.allow_repeats)
        self.spec, self.proposal, self.results, self.watch = spec, proposal, results, watch
        self.cells = cells_of(proposal.plan)
        self.metric = parse_metric(spec.metric)
        check_in_training(self.metric, (row.spec for row in self.cells))
        # Without rows: raises if another tuning or sweep has this name.
        results.save_plan(self._plan(()), spec.science(), extend=False)
        save_launch(results, spec.name, spec.sweep)
        self.studies = Studies(results.sweep(spec.name), spec, self.cells)
        self.pruned: set[str] = set()
        self.checked_s = 0.0

    def run(self) -> SearchReport:
        """Run waves until every cell has its trials.

        Raises
        ------
        RunsFailedError
            If all runs of a wave failed.
        """
        started_s = time.time()
        while wave := self._next_wave():
            report = self._launch(wave)
            n_failed = self._tell(wave, report)
            if report.is_interrupted:
                return self._report(started_s, is_interrupted=True)
            if n_failed == len(wave):
                raise RunsFailedError(
                    f"a wave in which all {plural(n_failed, 'run')} failed",
                    "runs that finish",
                    f"Read `scalelab status {self.spec.name}` and `scalelab logs RUN`, then run "
                    "the same command again.",
                )
        return self._report(started_s, is_interrupted=False)

    def _next_wave(self) -> list[OpenTrial]:
        """Return the open trials of an interrupted search, else new trials for every cell."""
        if left := self.studies.open_trials():
            return left
        wave, rows = [], []
        for cell, row in enumerate(self.cells):
            for _ in range(self.studies.n_wanted(cell)):
                trial, values = self.studies.ask(cell)
                planned = self._planned(row, values)
                trial.set_user_attr(RUN_ID, planned.spec.run_id)
                wave.append(OpenTrial(cell=cell, trial=trial, run_id=planned.spec.run_id))
                rows.append(planned)
        if rows:
            self.results.save_plan(self._plan(rows), self.spec.science(), extend=True)
        return wave

    def _planned(self, row: PlannedRun, values: dict[str, float]) -> PlannedRun:
        """Return the run of a cell with these hyperparameters."""
        changed = {"batch_seqs": row.spec.batch_seqs, **values}
        planned = planned_run(
            row.spec.shape,
            row.spec.n_tokens,
            None,
            self.spec.sweep.train.model_copy(update=changed),
            self.proposal.plan.data,
            row.spec.precision,
            row.spec.program,
        )
        spec = dataclasses.replace(planned.spec, seed=row.spec.seed)
        return dataclasses.replace(planned, spec=spec)

    def _launch(self, wave: Sequence[OpenTrial]) -> LaunchReport:
        saved = self.results.load_plan(self.spec.name)
        ids = tuple(dict.fromkeys(opened.run_id for opened in wave))
        by_id = {opened.run_id: opened for opened in wave}
        return resume(
            dataclasses.replace(saved, run_ids=ids),
            self.results,
            self._pruning(by_id.__getitem__),
            execution=self.proposal.execution,
            n_workers=self.proposal.cost.speed.n_workers,
            allow_source_change=self.proposal.allows_source_change,
        )

    def _pruning(self, opened_of: Callable[[str], OpenTrial]) -> Watcher:
        """Return a watcher that cancels runs to prune, then calls the given watcher."""

        def watch(view: LaunchView) -> None:
            if self.spec.is_pruned and time.monotonic() - self.checked_s >= CHECK_EVERY_S:
                for run_id in view.running:
                    curve = curve_by_percent(self.results.run(run_id))
                    if run_id not in self.pruned and self.studies.should_prune(
                        opened_of(run_id), curve
                    ):
                        self.pruned.add(run_id)
                        cancel_runs(self.results, self.spec.name, [run_id])
                self.checked_s = time.monotonic()
            self.watch(view)

        return watch

    def _tell(self, wave: Sequence[OpenTrial], report: LaunchReport) -> int:
        """Tell the studies how the runs ended; return how many failed. Interrupted ones stay."""
        n_failed = 0
        for opened in wave:
            run = self.results.run(opened.run_id)
            status, loss = run.status(), final_loss(run, self.metric)
            if loss is None and report.is_interrupted and opened.run_id not in self.pruned:
                continue
            if loss is not None and self.spec.is_pruned:
                self.studies.should_prune(opened, curve_by_percent(run))
            is_pruned = opened.run_id in self.pruned
            n_failed += loss is None and not is_pruned and status != "cancelled"
            self.studies.tell(opened, loss, is_pruned=is_pruned)
        return n_failed

    def _report(self, started_s: float, *, is_interrupted: bool) -> SearchReport:
        counts: dict[str, int] = {}
        for _, trial in self.studies.trials():
            word = "diverged" if trial.value == DIVERGED else trial.state.name.lower()
            counts[word] = counts.get(word, 0) + 1
        return SearchReport(
            counts=counts, wall_s=time.time() - started_s, is_interrupted=is_interrupted
        )

    def _plan(self, rows: Sequence[PlannedRun]) -> Plan:
        plan = self.proposal.plan
        rules = {**plan.rules, "lr": "searched", "batch": "searched"}
        return dataclasses.replace(
            plan, name=self.spec.name, kind=TUNE_KIND, rows=tuple(rows), rules=rules
        )


def cells_of(plan: Plan) -> list[PlannedRun]:
    """Return the rows of a plan that differ in N or D, the first seed of each."""
    cells: dict[tuple[int, int], PlannedRun] = {}
    for row in plan.rows:
        cells.setdefault((row.n_params, row.spec.n_tokens), row)
    return list(cells.values())


def runs_of(
    results: Results, name: str, metric: Metric = HELDOUT
) -> tuple[TunedRuns, list[RunSpec]]:
    """Return the finished runs of a tuning and their specs, N in the default convention.

    Diverged runs are only counted; pruned and failed runs are left out.
    """
    rows: list[tuple[float, ...]] = []
    specs = []
    n_diverged = 0
    for run_id in results.load_plan(name).run_ids:
        run = results.run(run_id)
        loss = final_loss(run, metric)
        if loss is None or loss == DIVERGED:
            n_diverged += loss == DIVERGED
            continue
        spec = run.read_spec()
        size = run_size(spec).active
        rows.append((size, spec.n_tokens, spec.lr, spec.tokens_per_step, loss))
        specs.append(spec)
    columns: Any = np.array(rows, dtype=float).reshape(-1, 5).T
    runs = TunedRuns(
        **dict(zip(COLUMNS, columns, strict=True)),
        param_convention=DEFAULT_PARAM_CONVENTION,
        n_diverged=n_diverged,
    )
    return runs, specs


def best_of_others(
    runs: TunedRuns, specs: Sequence[RunSpec]
) -> dict[str, tuple[float, float, float]]:
    """Return median, minimum and maximum of weight decay and beta2 in the best quarter of cells.

    Only hyperparameters that differ between the runs are returned.
    """
    cell = runs.cells() if len(runs) else np.zeros(0, dtype=np.int64)
    best: list[int] = []
    for one in np.unique(cell):
        own = np.flatnonzero(cell == one)
        best.extend(own[np.argsort(runs.loss[own])[: max(1, len(own) // 4)]])
    found = {}
    for name in ("weight_decay", "beta2"):
        if len({getattr(spec, name) for spec in specs}) > 1:
            values = [getattr(specs[i], name) for i in best]
            found[name] = (float(np.median(values)), min(values), max(values))
    return found
