"""Fits in one worker process, so that pages do not wait for a long fit.

The worker calls the verb that the command line calls. Results are cached by request and state of
the file: a changed file is fitted again.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from scalelab.records.machine import ctrl_c_blocked
from scalelab.store.reading import Reading

if TYPE_CHECKING:
    from scalelab.fit.mixing import MixtureFit
    from scalelab.forecast.fit_report import FitReport

KEPT = 12
KEPT_JOBS = 2 * KEPT
FRONTIER_POINTS = 60
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class FitKey:
    """A fit request; equal keys have the same answer.

    Attributes
    ----------
    stamp : str
        State of the file, or of the finished runs of the sweep, which changes with them.
    results : str
        The results folder.
    file : str or None
        Table to fit instead of a sweep.
    sweep : str or None
    mapping : tuple of (str, str)
    where, holdout : str or None
    form : str
    level : float
    reading : Reading
        How the table is read.
    """

    stamp: str
    results: str
    file: str | None = None
    sweep: str | None = None
    mapping: tuple[tuple[str, str], ...] = ()
    where: str | None = None
    holdout: str | None = None
    form: str = "chinchilla"
    level: float = 0.9
    reading: Reading = field(default_factory=Reading)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the API verbs."""
        return {
            "data": self.file,
            "sweep": self.sweep,
            "results": self.results,
            "mapping": dict(self.mapping),
            "where": self.where,
            "holdout": self.holdout,
            "level": self.level,
            "reading": self.reading,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An error, in the three parts of `scalelab.errors.ScalelabError`."""

    given: str
    allowed: str
    do: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A running or finished request, with its start time.

    Attributes
    ----------
    kind : str
        What is asked about the fit; equal kinds and keys have the same answer.
    key : FitKey
    work : callable
        What answers it for a key, in the worker.
    future : Future
    started_s : float
        Of `time.monotonic`.
    """

    kind: str
    key: FitKey
    work: Callable[[FitKey], Any]
    future: Future[Any]
    started_s: float

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started_s


class Fits:
    """The worker process and its answers; one per server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._jobs: OrderedDict[tuple[str, FitKey], Job] = OrderedDict()

    def fit(self, key: FitKey) -> Job:
        """Return the job of a fit; start it if needed."""
        return self._ask("fit", key, _fit)

    def done(self, key: FitKey) -> FitReport | None:
        """Return a fit that has ended; None while it runs, after a failure, or if not asked."""
        with self._lock:
            job = self._jobs.get(("fit", key))
        found = None if job is None or not job.future.done() else answer(job)
        return None if found is None or isinstance(found, Failure) else found

    def budgets_left_out(self, key: FitKey) -> Job:
        """Return the job that refits without each budget in turn."""
        return self._ask("left_out", key, _left_out)

    def comparison(self, key: FitKey) -> Job:
        """Return the job that ranks other forms against this one."""
        return self._ask("comparison", key, _comparison)

    def metrics(self, key: FitKey) -> Job:
        """Return the job that fits every metric of the runs of a fit and compares them."""
        any_metric = replace(key, reading=replace(key.reading, metric=None))
        return self._ask("metrics", any_metric, _metrics)

    def mixture(self, key: FitKey, target: str, n_tokens: str) -> Job:
        """Return the job that finds the best weights of the sources for a target."""
        work = partial(_mixture, target=target, n_tokens=n_tokens)
        return self._ask(f"mixture {target} {n_tokens}", key, work)

    def explorer(self, key: FitKey, asked: str | None) -> Job:
        """Return the job that computes the compute slider, which starts at a request."""
        return self._ask(f"explorer {asked}", key, partial(_explorer, asked=asked))

    def frontier(self, key: FitKey) -> Job:
        """Return the job that computes the frontier over the compute of the runs.

        This takes up to two seconds, in which the server would not answer its other pages.
        """
        return self._ask("frontier", key, _frontier)

    def again(self, job: Job, key: FitKey) -> Job:
        """Return the job that asks the same about another fit."""
        return self._ask(job.kind, key, job.work)

    def _ask(self, kind: str, key: FitKey, work: Callable[[FitKey], Any]) -> Job:
        with self._lock:
            job = self._jobs.get((kind, key))
            if job is None or _is_lost(job):
                job = Job(
                    kind=kind,
                    key=key,
                    work=work,
                    future=self._submit(work, key),
                    started_s=time.monotonic(),
                )
                self._jobs[kind, key] = job
            self._jobs.move_to_end((kind, key))
            while len(self._jobs) > KEPT_JOBS:
                self._jobs.popitem(last=False)[1].future.cancel()
            return job

    def _submit(self, work: Callable[[FitKey], Any], key: FitKey) -> Future[Any]:
        for _ in range(2):
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    1, mp_context=_context(), initializer=_end_with_the_server
                )
                atexit.register(self._pool.shutdown, wait=False, cancel_futures=True)
            with contextlib.suppress(BrokenProcessPool), ctrl_c_blocked():
                return self._pool.submit(work, key)
            # A killed worker breaks its pool: start another.
            self._pool = None
        raise RuntimeError("the fit worker does not start")


def answer(job: Job, wait_s: float = 0.0) -> Any:
    """Return the answer or failure of a job, or None while it runs."""
    try:
        return job.future.result(timeout=wait_s)
    except TimeoutError:
        return None
    except Exception as error:  # any error of the worker is shown
        return Failure(
            given=f"{type(error).__name__}: {error}",
            allowed="a fit that finishes",
            do="Run `scalelab fit` with the same options to see the full error.",
        )


def _is_lost(job: Job) -> bool:
    return job.future.cancelled() or (
        job.future.done() and isinstance(job.future.exception(), BrokenProcessPool)
    )


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "scalelab.fit.parametric", "pandas", "duckdb"])
    return context


def _end_with_the_server() -> None:
    """Exit when the server exits, even if the server was killed."""
    server = multiprocessing.parent_process()
    assert server is not None

    def follow() -> None:
        server.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def attempt(work: Callable[[], T]) -> T | Failure:
    """Return the result of a call, or its `ScalelabError` as a Failure."""
    from scalelab.errors import ScalelabError

    try:
        return work()
    except ScalelabError as error:
        return Failure(given=error.given, allowed=error.allowed, do=error.do)


_FITTED: OrderedDict[FitKey, FitReport] = OrderedDict()
"""Fits in the worker, shared by all levels: the level changes only the intervals."""
_MIXTURES: OrderedDict[FitKey, MixtureFit] = OrderedDict()
"""Mixture laws in the worker, shared by all targets."""


def _fit(key: FitKey) -> Any:
    return attempt(lambda: _report(key))


def _report(key: FitKey, *, compare_forms: bool = False) -> FitReport:
    """Return the answer of ``scalelab fit``; it is fitted once for all levels."""
    from scalelab import api

    any_level = replace(key, level=0.0)
    report = api.fit(
        **key.arguments(),
        form=key.form,
        compare_forms=compare_forms,
        fitted=_FITTED.get(any_level),
    )
    _FITTED[any_level] = report
    while len(_FITTED) > KEPT:
        _FITTED.popitem(last=False)
    return report


def _comparison(key: FitKey) -> Any:
    return attempt(lambda: _report(key, compare_forms=True).comparison)


def _left_out(key: FitKey) -> Any:
    from scalelab_dashboard import assess

    return attempt(lambda: assess.leave_one_out(_report(key)))


def _metrics(key: FitKey) -> Any:
    from scalelab.api.metrics import fit_metrics

    def work() -> Any:
        options = {name: value for name, value in key.arguments().items() if name != "holdout"}
        return fit_metrics(**options, form=key.form)

    return attempt(work)


def _mixture(key: FitKey, target: str, n_tokens: str) -> Any:
    from scalelab.api.mixtures import fit_mixture, parse_target, target_sets
    from scalelab.report.mixture_answer import mixture_answer
    from scalelab.units import parse_quantity

    def work() -> Any:
        goal = parse_target(target, "Target") if target else None  # before a long fit
        tokens = parse_quantity(n_tokens, what="Training tokens D") if n_tokens else None
        fit = _MIXTURES.get(key)
        if fit is None:
            given = key.arguments()
            names = ("data", "sweep", "results", "mapping", "where", "level", "reading")
            fit = fit_mixture(**{name: given[name] for name in names})
            _MIXTURES[key] = fit
            while len(_MIXTURES) > KEPT:
                _MIXTURES.popitem(last=False)
        goal = None if goal is None else target_sets(fit, goal)
        return mixture_answer(fit, goal, n_tokens=tokens)

    return attempt(work)


def _frontier(key: FitKey) -> Any:
    import numpy as np

    from scalelab_dashboard import assess

    def work() -> Any:
        report = _report(key)
        low, high, largest = assess.span(report.observations)
        flops = np.union1d(np.geomspace(low, high, FRONTIER_POINTS), [largest])
        return report.forecaster.bands(flops)

    return attempt(work)


def _explorer(key: FitKey, asked: str | None) -> Any:
    from scalelab.forecast.allocate import parse_request
    from scalelab.report.explorer import explorer

    def work() -> Any:
        report = _report(key)
        start = None if asked is None else report.forecaster.forecast(parse_request(asked))
        return explorer(report, start)

    return attempt(work)
