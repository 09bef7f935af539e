"""Fits beside the server: one worker process, so that a long fit never makes a page wait.

The worker calls the very verb that the command line calls. Results are kept by what was asked and
by the state of the file it was asked of; a file that changed is fitted anew.
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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from scalelab.records.machine import ctrl_c_blocked

if TYPE_CHECKING:
    from scalelab.fit.outcome import ParametricFit
    from scalelab.forecast.fit_report import FitReport

KEPT = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class FitKey:
    """What is fitted; two equal keys have the same answer.

    Attributes
    ----------
    stamp : str
        State of the snapshot or file.
    results : str
        The results folder.
    file : str or None
        A table to fit in place of a sweep.
    sweep : str or None
    mapping : tuple of (str, str)
    where, holdout : str or None
    form : str
    level : float
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

    def arguments(self) -> dict[str, Any]:
        """Return what the verbs of the api take."""
        return {
            "data": self.file,
            "sweep": self.sweep,
            "results": self.results,
            "mapping": dict(self.mapping),
            "where": self.where,
            "holdout": self.holdout,
            "level": self.level,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why there is no answer, in our three parts."""

    given: str
    allowed: str
    do: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One question that was asked, and since when."""

    future: Future[Any]
    started_s: float

    @property
    def elapsed_s(self) -> float:
        """Seconds since it was asked."""
        return time.monotonic() - self.started_s


class Fits:
    """The worker and what it has answered; one for the whole server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._jobs: OrderedDict[tuple[str, FitKey], Job] = OrderedDict()

    def fit(self, key: FitKey) -> Job:
        """Return the job that fits this, started if it was not."""
        return self._ask("fit", key, _fit)

    def budgets_left_out(self, key: FitKey) -> Job:
        """Return the job that leaves out each budget in turn."""
        return self._ask("left_out", key, _left_out)

    def comparison(self, key: FitKey) -> Job:
        """Return the job that ranks other forms beside this one."""
        return self._ask("comparison", key, _comparison)

    def _ask(self, kind: str, key: FitKey, work: Callable[[FitKey], Any]) -> Job:
        with self._lock:
            job = self._jobs.get((kind, key))
            if job is None or _is_lost(job):
                job = Job(future=self._submit(work, key), started_s=time.monotonic())
                self._jobs[kind, key] = job
            self._jobs.move_to_end((kind, key))
            while len(self._jobs) > KEPT:
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
            # A worker that was killed takes its pool with it: a new one answers.
            self._pool = None
        raise RuntimeError("the worker for fits does not start")


def answer(job: Job, wait_s: float = 0.0) -> Any:
    """Return a job's answer, a failure in words, or None while it goes on."""
    try:
        return job.future.result(timeout=wait_s)
    except TimeoutError:
        return None
    except Exception as error:  # Whatever the worker died of is told to the person.
        return Failure(
            given=f"{type(error).__name__}: {error}",
            allowed="a fit that ends",
            do="Fit the same with `scalelab fit` to see the whole message.",
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
    """Let this worker end when the server is gone: one that was killed ends nobody else."""
    server = multiprocessing.parent_process()
    assert server is not None

    def follow() -> None:
        server.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _told(work: Callable[[], Any]) -> Any:
    from scalelab.errors import ScalelabError

    try:
        return work()
    except ScalelabError as error:
        return Failure(given=error.given, allowed=error.allowed, do=error.do)


_FITTED: OrderedDict[FitKey, ParametricFit] = OrderedDict()
"""In the worker: what was fitted, whatever the level, which moves the intervals alone."""


def _fit(key: FitKey) -> Any:
    return _told(lambda: _report(key))


def _report(key: FitKey, *, is_compared: bool = False) -> FitReport:
    """Return the answer of ``scalelab fit``, its law fitted once for every level."""
    from scalelab import api

    whatever = replace(key, level=0.0)
    report = api.fit(
        **key.arguments(),
        form=key.form,
        is_compared=is_compared,
        fitted=_FITTED.get(whatever),
    )
    _FITTED[whatever] = report.fit
    while len(_FITTED) > KEPT:
        _FITTED.popitem(last=False)
    return report


def _comparison(key: FitKey) -> Any:
    return _told(lambda: _report(key, is_compared=True).comparison)


def _left_out(key: FitKey) -> Any:
    from scalelab.api import assess as api_assess

    return _told(lambda: api_assess.leave_one_out(_report(key)))
