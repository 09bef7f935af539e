"""The verbs `tune` and `tune_law`: hyperparameter search, and laws of the best LR and batch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.api.data import DEFAULT_RESULTS
from scalelab.api.sweeps import ignore, propose
from scalelab.api.tuning_reports import Tuning, TuningAnswer
from scalelab.errors import NotIdentifiedError, UsageError

if TYPE_CHECKING:
    from scalelab.fit.bootstrap import BootstrapSpec
    from scalelab.fit.outcome import FitWarning
    from scalelab.launch.base import LaunchReport, Watcher
    from scalelab.launch.proposal import Proposal
    from scalelab.tune.lr_check import Verdict
    from scalelab.tune.runs_table import TunedRuns
    from scalelab.tune.spec import TuneSpec


def tune(
    spec: TuneSpec,
    proposal: Proposal | None = None,
    *,
    results: str | Path = DEFAULT_RESULTS,
    watch: Watcher = ignore,
    predict: str | None = None,
    level: float | None = None,
    n_replicates: int | None = None,
) -> Tuning:
    """Search the best learning rate and batch of each cell, and fit their laws to the runs.

    The same specification again continues an interrupted search. The law is saved with the runs:
    later sweeps use it as the rule ``tuned:NAME``.

    Parameters
    ----------
    spec : TuneSpec
    proposal : Proposal, optional
        Of ``spec.sweep``, from `propose`, which is its default.
    results : str or Path
        The results folder.
    watch : callable, optional
        Receives a `LaunchView` after each change.
    predict, level, n_replicates
        As in `tune_law`; N counts all parameters.

    Raises
    ------
    UsageError
        If a sweep of that name exists with another specification.
    RunsFailedError
        If all runs of a wave fail.
    """
    from scalelab.records.metric import parse_metric
    from scalelab.records.sweep_dir import Results
    from scalelab.tune.rule import save_law

    if importlib.util.find_spec("optuna") is None:
        raise UsageError(
            "a search without Optuna, which is not installed",
            "an installation with the extra `tune`",
            "Run pip install 'scalelab[tune]'.",
        )
    from scalelab.tune.search import Search, best_of_others, runs_of

    asked = _asked(predict)
    level, bootstrap = intervals(level, n_replicates, spec.seed)
    folder = Results(Path(results))
    proposal = proposal or propose(spec.sweep, results=results)
    search = Search(spec, proposal, folder, watch).run()
    if search.is_interrupted:
        return Tuning(name=spec.name, search=search, answer=None, others={})
    runs, specs = runs_of(folder, spec.name, parse_metric(spec.metric))
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
    metric: str | None = None,
) -> TuningAnswer:
    """Fit the laws of the best learning rate and batch to a table of runs.

    Parameters
    ----------
    source : str or Path
        CSV or Parquet file with one row per run.
    mapping : Mapping[str, str], optional
        Maps ``n_params``, ``n_tokens``, ``loss_nats``, ``lr``, ``batch_tokens`` or ``batch_seqs``,
        and ``cluster`` (a label that separates cells of the same N and D) to a column of the file
        or a DuckDB expression. Columns with these names need no mapping.
    where : str, optional
        DuckDB condition on the file's columns.
    seq_len : int, optional
        Sequence length, tokens; the batch is then counted in sequences.
    predict : str, optional
        Model to predict, for example ``N=1e9,D=1e11``; N as the table counts it.
    level : float, optional
        Level of every interval; default 0.9.
    n_replicates : int, optional
        Bootstrap replicates; default 300.
    seed : int
        Seed of the bootstrap.
    metric : str, optional
        Which loss, as after ``--metric``; default: the held-out loss.

    Raises
    ------
    DataError, UsageError
        For a table or option that cannot be used. A law that is not identified is not an error:
        the warnings say so.
    """
    from scalelab.tune.read import read_tuned_runs

    asked = _asked(predict)
    level, bootstrap = intervals(level, n_replicates, seed)
    table = read_tuned_runs(source, mapping=mapping, where=where, seq_len=seq_len, metric=metric)
    return answer(table.runs, asked, level=level, bootstrap=bootstrap, warnings=table.warnings)


def intervals(
    level: float | None, n_replicates: int | None, seed: int
) -> tuple[float, BootstrapSpec]:
    """Return the level and the bootstrap, with defaults.

    Raises
    ------
    UsageError
        For a level outside (0, 1), a single replicate, or a negative count or seed.
    """
    from scalelab.fit.bootstrap import BootstrapSpec
    from scalelab.fit.intervals import check_level
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
    """Return the laws of the runs, and their values at ``asked`` (N, D)."""
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


def _asked(predict: str | None) -> tuple[float, float] | None:
    """Return N and D of ``N=..,D=..``.

    Raises
    ------
    UsageError
        If N or D is missing, or there is another name.
    """
    from scalelab.forecast.allocate import parse_request

    if predict is None:
        return None
    values = parse_request(predict).values
    if set(values) != {"n_params", "n_tokens"} or min(values.values()) <= 0:
        raise UsageError(
            f"--predict {predict!r}",
            "N and D, both above zero, because the best learning rate depends on both",
            "Write --predict N=1e9,D=1e11.",
        )
    return values["n_params"], values["n_tokens"]


def check_lr(
    proposal: Proposal, *, results: str | Path = DEFAULT_RESULTS, watch: Watcher = ignore
) -> tuple[LaunchReport, list[Verdict]]:
    """Train two neighbouring learning rates at the best run of each budget, and assess the rule.

    Same results and errors as `scalelab.tune.lr_check.check_lr`.
    """
    from scalelab.records.sweep_dir import Results
    from scalelab.tune.lr_check import check_lr as check

    return check(proposal, Results(Path(results)), watch)
