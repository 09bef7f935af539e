"""The verbs `tune` and `tune_law`: hyperparameter search, and laws of the best LR and batch."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.api.data import DEFAULT_RESULTS
from scalelab.api.notebook_view import NotebookView
from scalelab.api.sweeps import ignore, propose
from scalelab.errors import EXIT_OK, NotIdentifiedError, UsageError
from scalelab.units import plural

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from scalelab.fit.bootstrap import BootstrapSpec
    from scalelab.fit.outcome import FitWarning
    from scalelab.launch.base import LaunchReport, Watcher
    from scalelab.launch.proposal import Proposal
    from scalelab.tune.law import Estimate, TuningLaw
    from scalelab.tune.lr_check import Verdict
    from scalelab.tune.runs_table import TunedRuns
    from scalelab.tune.search import SearchReport
    from scalelab.tune.spec import TuneSpec

UNKNOWN = {"value": None, "low": None, "high": None}


def short_estimate(found: Estimate) -> str:
    """Return a value with its limits in brackets."""
    from scalelab.units import format_quantity

    if found.low is None or found.high is None:
        return format_quantity(found.value)
    low, high = format_quantity(found.low), format_quantity(found.high)
    return f"{format_quantity(found.value)} [{low}, {high}]"


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class TuningAnswer(NotebookView):
    """The answer of `tune_law`.

    Attributes
    ----------
    n_params, n_tokens : float or None
        The requested model.
    lr, batch_tokens : Estimate or None
        Best values for it; None if no model was requested or they are not identified.
    law : TuningLaw or None
        None if it is not identified.
    warnings : tuple of FitWarning
    """

    n_params: float | None
    n_tokens: float | None
    lr: Estimate | None
    batch_tokens: Estimate | None
    law: TuningLaw | None
    warnings: tuple[FitWarning, ...]

    @property
    def exit_code(self) -> int:
        """0, or 4 when the law or the prediction is not identified."""
        is_lost = any(warning.code == "not_identified" for warning in self.warnings)
        return NotIdentifiedError.exit_code if is_lost else EXIT_OK

    def sentence(self) -> str:
        """Return the answer: the best values of the requested model, else of the largest cell."""
        from scalelab.units import format_quantity

        law, lr, batch = self.law, self.lr, self.batch_tokens
        n_params, n_tokens, whose = self.n_params, self.n_tokens, ""
        if law is not None and lr is None and n_params is None:
            (n_params, n_tokens), whose = law.largest_cell(), ", your largest cell"
            try:
                lr, batch = law.best(n_params, n_tokens)
            except NotIdentifiedError:
                lr = None
        if lr is None or n_params is None or n_tokens is None:
            return "No answer: these runs do not determine the best learning rate."
        size = f"N {format_quantity(n_params)} on D {format_quantity(n_tokens)} tokens{whose}"
        words = f"For {size}: learning rate {short_estimate(lr)}"
        if batch is not None:
            words += f", batch {short_estimate(batch)} tokens"
        if law is not None:
            one = law.lr()
            words += f". The rate grows as N^{one.p.value:.2f} D^{one.q.value:.2f}"
        return f"{words}."

    def _lines(self) -> Iterator[str]:
        if self.law is None:
            yield "TuningAnswer: the law of the best learning rate is not identified"
        else:
            runs, cells = plural(self.law.n_rows, "run"), plural(self.law.n_cells, "cell")
            yield f"TuningAnswer: lr = k N^p D^q from {runs} in {cells}"
            for name, one, low, high in self._exponents():
                limits = "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
                yield f"{name} = {one:.3g}{limits}"
        for name, found in (("lr", self.lr), ("batch_tokens", self.batch_tokens)):
            if found is not None:
                yield f"best {name}: {found.value:.4g}"
        yield from (f"warning: {warning.message}" for warning in self.warnings[:3])

    def _exponents(self) -> list[tuple[str, float, float | None, float | None]]:
        laws = {} if self.law is None else {"lr": self.law.lr(), "batch": self.law.batch_tokens()}
        return [
            (f"{name} {letter}", one.value, one.low, one.high)
            for name, law in laws.items()
            if law is not None
            for letter, one in (("p", law.p), ("q", law.q))
        ]

    def to_frame(self) -> pd.DataFrame:
        """Return the exponents of N (p) and D (q) with their intervals."""
        import pandas as pd

        return pd.DataFrame(self._exponents(), columns=["name", "value", "low", "high"])

    def plot(self) -> Figure | None:
        """Return the exponents with their intervals; None if the law is not identified."""
        from scalelab.report.plots import interval_figure

        rows = self._exponents()
        return interval_figure(rows, "exponent of N (p) or D (q)") if rows else None

    def to_dict(self) -> dict[str, Any]:
        """Return the answer of ``scalelab tune --json``."""
        return {
            "lr": UNKNOWN if self.lr is None else asdict(self.lr),
            "batch_tokens": UNKNOWN if self.batch_tokens is None else asdict(self.batch_tokens),
            "law": None if self.law is None else law_as_dict(self.law),
            "warnings": [{"code": w.code, "message": w.message} for w in self.warnings],
        }


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Tuning(NotebookView):
    """The answer of `tune`: how the search ended, and the law of its runs.

    Attributes
    ----------
    name : str
        Name of the tuning; ``tuned:NAME`` is its learning-rate rule.
    search : SearchReport
    answer : TuningAnswer or None
        None if the search was interrupted.
    others : Mapping[str, tuple of float]
        Median, minimum and maximum of each other hyperparameter over the best quarter of the runs
        of each cell.
    """

    name: str
    search: SearchReport
    answer: TuningAnswer | None
    others: Mapping[str, tuple[float, float, float]]

    def _lines(self) -> Iterator[str]:
        counts = ", ".join(f"{n} {status}" for status, n in self.search.counts.items())
        end = "interrupted" if self.answer is None else f"its rule is tuned:{self.name}"
        yield f"Tuning {self.name}: {counts}; {end}"
        if self.answer is not None:
            yield repr(self.answer)

    def to_frame(self) -> pd.DataFrame:
        """Return the exponents of the laws, as `TuningAnswer.to_frame`."""
        import pandas as pd

        return pd.DataFrame() if self.answer is None else self.answer.to_frame()

    def plot(self) -> Figure | None:
        """Return the exponents with their intervals, if the search is complete."""
        return None if self.answer is None else self.answer.plot()

    def to_dict(self) -> dict[str, Any]:
        """Return the answer of ``scalelab tune --json``, which ``tuned.json`` also has."""
        search = self.search
        return {
            **({} if self.answer is None else self.answer.to_dict()),
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


def law_as_dict(law: TuningLaw) -> dict[str, Any]:
    """Return a law as ``--json`` and ``law.json`` have it."""
    from scalelab.tune.excess_loss import SHAPE

    batch = law.batch_tokens()
    shape = dict.fromkeys(SHAPE) | dict(
        zip(law.axes.shape_names, law.theta[-len(law.axes.shape_names) :].tolist(), strict=True)
    )
    return {
        "form": "k N^p D^q",
        "param_convention": law.param_convention,
        "lr": asdict(law.lr()),
        "batch_tokens": None if batch is None else asdict(batch),
        "valley": shape,
        "noise": law.scale.noise,
        "misfit": law.scale.misfit,
        "n_rows": law.n_rows,
        "n_cells": law.n_cells,
        "level": law.level,
        "bootstrap": {"of": law.bootstrap, "k": len(law.replicates)},
    }


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
