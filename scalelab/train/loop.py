"""The training loop: take steps, observe losses, save checkpoints, stop on request."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scalelab.sweep.execution import ExecutionSpec
from scalelab.train.batches import open_batches
from scalelab.train.engine import Readings, batch_shape, learning_rates
from scalelab.train.evaluation import Evaluated
from scalelab.train.session import FencedError, Session

POLL_INTERVAL_S = 0.25
"""Seconds between checks for stop requests, newer attempts and due checkpoints."""
CHECKPOINT_SHARE = 0.02
"""Largest share of a run's time for checkpoints; slow checkpoints are written less often."""


class RunsEngine(Protocol):
    """Interface of an engine for K runs; `scalelab.train.engine.Engine` documents the shapes."""

    execution: ExecutionSpec

    def initialize(self, run: int) -> None:
        """Set a run's weights to their initial values."""

    def load_state(self, run: int, state: dict[str, Any]) -> None:
        """Restore a run from the result of `state`."""

    def state(self, run: int) -> dict[str, Any]:
        """Return the state that determines the rest of a run."""

    def step(self, tokens: Any) -> None:
        """Take one optimizer step of each run; tokens as `scalelab.train.batches` gives them."""

    def read(self) -> Readings:
        """Return and clear the readings of the steps since the last call."""

    def evaluate(self, run: int, sequences: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the mean loss of each sequence."""

    def evaluate_average(
        self, run: int, sequences: NDArray[np.int64]
    ) -> NDArray[np.float64] | None:
        """Return `evaluate` with the weight average; None if the run does not keep one."""


def train(
    engine: RunsEngine, sessions: Sequence[Session], stop_reason: Callable[[], str | None]
) -> None:
    """Train until at least one session has ended.

    The caller can continue the other sessions in a smaller engine, from their engine states.

    Parameters
    ----------
    engine : RunsEngine
        Holds the runs' states, in the order of ``sessions``.
    sessions : sequence of Session
        One for each run of the engine; all are running.
    stop_reason : Callable
        Called every `POLL_INTERVAL_S`. If it returns a text, all sessions save a checkpoint and end
        as preempted.
    """
    rates = [learning_rates(session.spec) for session in sessions]
    saved = polled = time.perf_counter()
    interval_s = engine.execution.checkpoint_interval_s
    with _batches(engine, sessions) as next_batch:
        while all(session.status is None for session in sessions):
            started = time.perf_counter()
            n_steps = min(session.steps_to_pause() for session in sessions)
            for _ in range(n_steps):
                engine.step(next_batch())
                if time.perf_counter() - polled >= POLL_INTERVAL_S:
                    break
            readings = engine.read()
            elapsed_s = time.perf_counter() - started
            for run, session in enumerate(sessions):
                with keeping_to_itself(session):
                    reason = session.observe(readings, run, rates[run], elapsed_s)
                    if reason is not None:
                        session.diverge(reason)
                        continue
                    if session.is_at_branch():
                        session.save_branch(engine.state(run))
                    if session.is_at_evaluation():
                        session.require_claim()
                        session.note_evaluation(_evaluated(engine, run, session))
                    if session.step == session.spec.n_steps:
                        _finish(engine, run, session)
            now = time.perf_counter()
            if now - polled < POLL_INTERVAL_S:
                continue
            polled = now
            active = [(k, session) for k, session in enumerate(sessions) if session.status is None]
            stop = stop_reason()
            is_due = now - saved >= interval_s
            for run, session in active:
                with keeping_to_itself(session):
                    _save(engine, run, session, is_due, stop)
            if is_due and stop is None:
                saved = time.perf_counter()
                interval_s = stretched_interval_s(
                    engine.execution.checkpoint_interval_s, saved - now
                )
                for _, session in active:
                    with keeping_to_itself(session):
                        session.note_checkpoint(saved - now, interval_s)


def _batches(
    engine: RunsEngine, sessions: Sequence[Session]
) -> contextlib.AbstractContextManager[Callable[[], Any]]:
    """Return the batches of the sessions' next steps, until the first session ends."""
    specs = [session.spec for session in sessions]
    begins = [(spec.seed, session.step) for spec, session in zip(specs, sessions, strict=True)]
    datasets, shape = [session.dataset for session in sessions], batch_shape(specs)
    is_shared = all(dataset == datasets[0] for dataset in datasets)

    def load(index: int, tokens: NDArray[np.integer]) -> None:
        if is_shared:
            datasets[0].read_batches([(seed, step + index) for seed, step in begins], tokens)
            return
        # Runs with different weights of a mixture.
        for dataset, (seed, step), part in zip(datasets, begins, tokens, strict=True):
            dataset.read_batches([(seed, step + index)], part)

    n_steps = min(session.spec.n_steps - session.step for session in sessions)
    return open_batches(engine.execution, load, shape, n_steps)


def stretched_interval_s(interval_s: float, took_s: float) -> float:
    """Return the seconds to the next checkpoint that keep checkpoints within `CHECKPOINT_SHARE`."""
    return max(interval_s, took_s * (1 / CHECKPOINT_SHARE - 1))


def _finish(engine: RunsEngine, run: int, session: Session) -> None:
    """Evaluate a run after its last step and record the result."""
    session.require_claim()
    evaluated = _evaluated(engine, run, session)
    state = engine.state(run) if engine.execution.keeps_weights else None
    session.finish(evaluated, state)


def _evaluated(engine: RunsEngine, run: int, session: Session) -> dict[str, Evaluated]:
    """Return a run's losses on each of its evaluation sets."""

    def evaluate(sequences: NDArray[np.int64]) -> Evaluated:
        average = engine.evaluate_average(run, sequences)
        return Evaluated(engine.evaluate(run, sequences), average)

    return session.sets.evaluated(evaluate)


def _save(engine: RunsEngine, run: int, session: Session, is_due: bool, stop: str | None) -> None:
    """Append collected rows; save a checkpoint if due; end the session on a stop request."""
    session.flush()
    if is_due or stop is not None:
        session.save(engine.state(run))
    if stop is not None:
        session.end("preempted", stop)


@contextlib.contextmanager
def keeping_to_itself(session: Session) -> Iterator[None]:
    """Turn an error of one session into its end, so that the other batched runs continue."""
    try:
        yield
    except FencedError:
        session.end("preempted", "a newer attempt has claimed the run")
    except OSError as error:
        session.fail(error)
