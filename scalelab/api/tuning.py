"""The verbs `tune` and `tune_law`: search, and the laws of the best learning rate and batch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.errors import EXIT_OK, NotIdentifiedError, UsageError

if TYPE_CHECKING:
    from scalelab.fit.bootstrap import BootstrapSpec
    from scalelab.fit.outcome import FitWarning
    from scalelab.launch.base import LaunchReport, Watcher
    from scalelab.launch.proposal import Proposal
    from scalelab.tune.law import Interval, PowerLaw, TuningLaw
    from scalelab.tune.lr_check import Verdict
    from scalelab.tune.runs_table import TunedRuns
    from scalelab.tune.search import SearchReport
    from scalelab.tune.spec import TuneSpec

UNKNOWN = {"value": None, "low": None, "high": None}


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningAnswer:
    """What `tune_law` says.

    Attributes
    ----------
    n_params, n_tokens : float or None
        What was asked for.
    lr, batch_tokens : Interval or None
        The answer; None when nothing was asked, or it is not identified.
    law : TuningLaw or None
        None when it is not identified.
    warnings : tuple of FitWarning
    """

    n_params: float | None
    n_tokens: float | None
    lr: Interval | None
    batch_tokens: Interval | None
    law: TuningLaw | None
    warnings: tuple[FitWarning, ...]

    @property
    def exit_code(self) -> int:
        """0, or 4 when the law or the prediction is not identified."""
        is_lost = any(warning.code == "not_identified" for warning in self.warnings)
        return NotIdentifiedError.exit_code if is_lost else EXIT_OK

    def to_dict(self) -> dict[str, Any]:
        """Return the answer of ``scalelab tune --json``."""
        return {
            "lr": _interval(self.lr),
            "batch_tokens": _interval(self.batch_tokens),
            "law": None if self.law is None else law_as_dict(self.law),
            "warnings": [{"code": w.code, "message": w.message} for w in self.warnings],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """What `tune` says: how the search ended, and the law of its runs.

    Attributes
    ----------
    name : str
        Of the tuning; ``tuned:NAME`` is its rule.
    search : SearchReport
    answer : TuningAnswer or None
        None when the search was interrupted.
    others : Mapping[str, tuple of float]
        Median, lowest and highest of each other hyperparameter over the best quarter of the runs
        of each cell.
    """

    name: str
    search: SearchReport
    answer: TuningAnswer | None
    others: Mapping[str, tuple[float, float, float]]

    def to_dict(self) -> dict[str, Any]:
        """Return the answer of ``scalelab tune --json``, and what ``tuned.json`` holds."""
        search = self.search
        said = TuningAnswer.to_dict(self.answer) if self.answer is not None else {}
        return {
            **said,
            "name": self.name,
            "status": "interrupted" if search.is_interrupted else "ok",
            "trials": search.counts,
            "wall_s": search.wall_s,
            "others": {
                name: dict(zip(("value", "low", "high"), values, strict=True))
                for name, values in self.others.items()
            },
        }


def tune(
    spec: TuneSpec,
    proposal: Proposal,
    *,
    results: str | Path,
    watch: Watcher,
    predict: str | None = None,
    level: float | None = None,
    n_replicates: int | None = None,
) -> Tuning:
    """Search the best learning rate and batch of each cell, and fit their laws to the runs.

    The same specification again goes on where it stopped. The law is kept beside the runs and is
    the rule ``tuned:NAME`` of later sweeps.

    Parameters
    ----------
    spec : TuneSpec
    proposal : Proposal
        Of ``spec.sweep``, from `scalelab.api.sweeps.propose`.
    results : str or Path
        The results folder.
    watch : callable
        Told what happens.
    predict, level, n_replicates
        As `tune_law` takes them; N counted with all parameters.

    Raises
    ------
    UsageError
        When a sweep of that name exists with another specification.
    RunsFailedError
        When runs fail throughout.
    """
    from scalelab.records.sweep_dir import Results
    from scalelab.tune.rule import save_law

    if importlib.util.find_spec("optuna") is None:
        raise UsageError(
            "a search without Optuna", "the extra `tune`", "Run pip install 'scalelab[tune]'."
        )
    from scalelab.tune.search import Search, best_of_others, runs_of

    asked = _asked(predict)
    level, bootstrap = intervals(level, n_replicates, spec.seed)
    folder = Results(Path(results))
    search = Search(spec, proposal, folder, watch).run()
    if search.is_interrupted:
        return Tuning(name=spec.name, search=search, answer=None, others={})
    runs, specs = runs_of(folder, spec.name)
    tuning = Tuning(
        name=spec.name,
        search=search,
        answer=answer(runs, asked, level=level, bootstrap=bootstrap),
        others=best_of_others(runs, specs),
    )
    save_law(folder, spec.name, tuning.to_dict())
    return tuning


def tune_law(
    source: str | Path,
    *,
    mapping: Mapping[str, str] | None = None,
    where: str | None = None,
    seq_len: int | None = None,
    predict: str | None = None,
    level: float | None = None,
    n_replicates: int | None = None,
    seed: int = 0,
) -> TuningAnswer:
    """Fit the laws of the best learning rate and batch to a table of runs.

    Parameters
    ----------
    source : str or Path
        CSV or Parquet file with a run a row.
    mapping, where, seq_len
        As `scalelab.tune.read.read_tuned_runs` takes them.
    predict : str, optional
        ``N=1e9,D=1e11``, N in the table's own convention.
    level : float, optional
        Level of every interval; default 0.9.
    n_replicates : int, optional
        Bootstrap replicates; default 300.
    seed : int
        Of the bootstrap.

    Raises
    ------
    DataError, UsageError
        For a table or option that cannot be used. A law that is not identified is an answer.
    """
    from scalelab.tune.read import read_tuned_runs

    asked = _asked(predict)
    level, bootstrap = intervals(level, n_replicates, seed)
    table = read_tuned_runs(source, mapping=mapping, where=where, seq_len=seq_len)
    return answer(table.runs, asked, level=level, bootstrap=bootstrap, warnings=table.warnings)


def intervals(
    level: float | None, n_replicates: int | None, seed: int
) -> tuple[float, BootstrapSpec]:
    """Return level and bootstrap of what was asked for, or the defaults.

    Raises
    ------
    UsageError
        For a level outside of (0, 1), a single replicate, or a negative number of them or seed.
    """
    from scalelab.fit.bootstrap import BootstrapSpec
    from scalelab.fit.outcome import check_level
    from scalelab.tune.law import DEFAULT_LEVEL, DEFAULT_REPLICATES

    level = DEFAULT_LEVEL if level is None else level
    check_level(level)
    k = DEFAULT_REPLICATES if n_replicates is None else n_replicates
    return level, BootstrapSpec(k=k, seed=seed)


def answer(
    runs: TunedRuns,
    asked: tuple[float, float] | None,
    *,
    level: float,
    bootstrap: BootstrapSpec,
    warnings: tuple[FitWarning, ...] = (),
) -> TuningAnswer:
    """Return the laws of these runs and their value at ``asked`` (N, D)."""
    from scalelab.fit.diagnose import replicate_warnings
    from scalelab.fit.outcome import FitWarning
    from scalelab.tune.law import fit_law

    law = lr = batch = None
    found = [*warnings, *replicate_warnings(bootstrap, level)]
    try:
        law = fit_law(runs, level=level, n_replicates=bootstrap.k, seed=bootstrap.seed)
        found += law.warnings
        if asked is not None:
            lr, batch = law.best(*asked)
            found += law.extrapolation_warnings(*asked)
    except NotIdentifiedError as error:
        message = f"Got {error.given}; needed: {error.allowed}. {error.do}"
        found.append(FitWarning(code="not_identified", message=message))
    return TuningAnswer(
        n_params=None if asked is None else asked[0],
        n_tokens=None if asked is None else asked[1],
        lr=lr,
        batch_tokens=batch,
        law=law,
        warnings=tuple(found),
    )


def law_as_dict(law: TuningLaw) -> dict[str, Any]:
    """Return a law as ``--json`` and ``law.json`` hold it."""
    from scalelab.tune.excess_loss import SHAPE

    batch = law.batch_tokens()
    shape = dict.fromkeys(SHAPE) | dict(
        zip(law.axes.shape_names, law.theta[-len(law.axes.shape_names) :].tolist(), strict=True)
    )
    return {
        "form": "k N^p D^q",
        "param_convention": law.param_convention,
        "lr": _power_law(law.lr()),
        "batch_tokens": None if batch is None else _power_law(batch),
        "valley": shape,
        "noise": law.scale.noise,
        "misfit": law.scale.misfit,
        "n_rows": law.n_rows,
        "n_cells": law.n_cells,
        "level": law.level,
        "bootstrap": {"of": law.bootstrap, "k": len(law.replicates)},
    }


def _power_law(law: PowerLaw) -> dict[str, Any]:
    return {"k": _interval(law.k), "p": _interval(law.p), "q": _interval(law.q)}


def _interval(found: Interval | None) -> dict[str, float | None]:
    if found is None:
        return dict(UNKNOWN)
    return {"value": found.value, "low": found.low, "high": found.high}


def _asked(predict: str | None) -> tuple[float, float] | None:
    """Return N and D of ``N=..,D=..``.

    Raises
    ------
    UsageError
        When one of the two is missing, or more is asked.
    """
    from scalelab.forecast.allocate import parse_request

    if predict is None:
        return None
    values = parse_request(predict).values
    if set(values) != {"n_params", "n_tokens"} or min(values.values()) <= 0:
        raise UsageError(
            f"--predict {predict!r}",
            "N and D, both above zero: the best rate depends on both",
            "Write --predict N=1e9,D=1e11.",
        )
    return values["n_params"], values["n_tokens"]


def check_lr(
    proposal: Proposal, *, results: str | Path, watch: Watcher
) -> tuple[LaunchReport, list[Verdict]]:
    """Train the two neighbouring learning rates at each budget's best run, and judge the rule.

    Raises and returns as `scalelab.tune.lr_check.check_lr`.
    """
    from scalelab.records.sweep_dir import Results
    from scalelab.tune.lr_check import check_lr as check

    return check(proposal, Results(Path(results)), watch)
