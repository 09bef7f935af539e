"""One Optuna study per cell, all in one journal file in the sweep folder.

The first wave of a cell covers the search space evenly, so that it brackets the optimum. After that
the tree-structured Parzen estimator (TPE) chooses. The launcher trains the runs of trials.

References
----------
Akiba et al. 2019, arXiv:1907.10902 (Optuna). Bergstra et al. 2011 (TPE).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from scipy.stats import qmc

from scalelab.sweep.planned_run import PlannedRun
from scalelab.tune.run_end import REPORT_EVERY
from scalelab.tune.spec import Range, TuneSpec, powers_of_two

JOURNAL_FILE = "study.log"
RUN_ID = "run_id"
KEEP_PERCENT = 75.0
"""A run is pruned if its loss is above this percentile of the cell's runs at equal tokens."""

FIRST_REPORT = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenTrial:
    """A trial without a result yet."""

    cell: int
    trial: Trial
    run_id: str


class Studies:
    """The studies of a tuning."""

    def __init__(self, folder: Path, spec: TuneSpec, cells: Sequence[PlannedRun]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL_FILE)))
        self.spec = spec
        self.bounds = [spec.bounds(row) for row in cells]
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if spec.is_pruned:
            pruner = optuna.pruners.PercentilePruner(
                KEEP_PERCENT,
                n_startup_trials=spec.wave,
                n_warmup_steps=FIRST_REPORT,
                interval_steps=REPORT_EVERY,
            )
        self.studies = [
            optuna.create_study(
                study_name=f"{row.n_params}-{row.spec.n_tokens}",
                storage=storage,
                sampler=optuna.samplers.TPESampler(
                    n_startup_trials=spec.wave, seed=self._seed(cell)
                ),
                pruner=pruner,
                direction="minimize",
                load_if_exists=True,
            )
            for cell, row in enumerate(cells)
        ]

    def open_trials(self) -> list[OpenTrial]:
        """Return the trials of an interrupted search; mark those without a run as failed."""
        found = []
        for cell, study in enumerate(self.studies):
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if RUN_ID in trial.user_attrs:
                    handle = Trial(study, trial._trial_id)
                    found.append(
                        OpenTrial(cell=cell, trial=handle, run_id=trial.user_attrs[RUN_ID])
                    )
                else:
                    study.tell(trial.number, state=TrialState.FAIL)
        return found

    def n_wanted(self, cell: int) -> int:
        """Return how many trials of a cell the next wave needs."""
        counted = [
            t for t in self.studies[cell].get_trials(deepcopy=False) if RUN_ID in t.user_attrs
        ]
        return max(0, min(self.spec.wave, self.spec.trials - len(counted)))

    def ask(self, cell: int) -> tuple[Trial, dict[str, float]]:
        """Return a new trial of a cell and its hyperparameters."""
        study, bounds = self.studies[cell], self.bounds[cell]
        number = len(study.get_trials(deepcopy=False))
        if number < self.spec.wave:
            study.enqueue_trial(self._first_point(cell, number, bounds))
        trial = study.ask()
        values = {
            name: trial.suggest_float(name, *ends, log=name != "beta2")
            for name, ends in bounds.items()
            if name != "batch_seqs"
        }
        if "batch_seqs" in bounds:
            values["batch_seqs"] = 2 ** trial.suggest_int(
                "log2_batch_seqs", *powers_of_two(bounds["batch_seqs"])
            )
        return trial, values

    def tell(self, opened: OpenTrial, loss: float | None, *, is_pruned: bool) -> None:
        """Record the result of a trial; without a loss it was pruned or failed."""
        study = self.studies[opened.cell]
        if loss is not None:
            study.tell(opened.trial, loss)
        else:
            study.tell(opened.trial, state=TrialState.PRUNED if is_pruned else TrialState.FAIL)

    def should_prune(self, opened: OpenTrial, curve: Mapping[int, float]) -> bool:
        """Report a run's curve, loss by percent of its tokens; return whether to prune it."""
        trials = self.studies[opened.cell].get_trials(deepcopy=False)
        reported = trials[opened.trial.number].intermediate_values
        for percent, loss in sorted(curve.items()):
            if percent not in reported:
                opened.trial.report(loss, percent)
        return bool(curve) and bool(opened.trial.should_prune())

    def trials(self) -> list[tuple[int, FrozenTrial]]:
        """Return every trial that has a run, with its cell."""
        return [
            (cell, trial)
            for cell, study in enumerate(self.studies)
            for trial in study.get_trials(deepcopy=False)
            if RUN_ID in trial.user_attrs
        ]

    def _seed(self, cell: int) -> int:
        return 1000 * self.spec.seed + cell

    def _first_point(self, cell: int, number: int, bounds: Mapping[str, Range]) -> dict[str, Any]:
        """Return point ``number`` of a Latin hypercube over a cell's search space."""
        cover = qmc.LatinHypercube(d=len(bounds), rng=self._seed(cell), optimization="random-cd")
        point = cover.random(self.spec.wave)[number]
        values: dict[str, Any] = {}
        for share, (name, (low, high)) in zip(point, bounds.items(), strict=True):
            if name == "batch_seqs":
                least, most = powers_of_two((low, high))
                values["log2_batch_seqs"] = min(most, least + int(share * (most - least + 1)))
            elif name == "beta2":
                values[name] = low + share * (high - low)
            else:
                values[name] = low * (high / low) ** share
        return values
