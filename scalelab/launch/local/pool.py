"""The local launcher: a pool of processes, a run or a pack each, forked from one preloaded server.

A worker that is killed costs its runs one attempt and nothing else; a launcher that is killed takes
its workers with it, each leaving a checkpoint; Ctrl-C asks them to leave one and waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TextIO

from scalelab.errors import RunsFailedError
from scalelab.launch.base import LaunchReport, LaunchRequest, LaunchView, Watcher
from scalelab.launch.batching import batched_runs_kept
from scalelab.launch.devices import worker_slots
from scalelab.launch.job import CANCELLED_FILE, work_locally
from scalelab.launch.lock import launcher_lock
from scalelab.launch.reconcile import MAX_LOST_ATTEMPTS, RunState, reconcile
from scalelab.launch.source import source_note
from scalelab.records.machine import is_process_alive
from scalelab.records.run_dir import LOG_FILE, RunDir
from scalelab.records.states import ENDED, FINAL
from scalelab.sweep.batched_runs import batch_key
from scalelab.sweep.run_spec import RunSpec
from scalelab.sweep.trunk import branch_step, predecessors, trunk_id

TICK_S = 0.25
STOP_GRACE_S = 30.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(slots=True)
class _Worker:
    locks: dict[str, TextIO]
    n_attempts: int
    slot: int | str
    process: BaseProcess
    lifeline: Connection


class LocalPool:
    """Workers of this machine for one launch; see `launch_local`."""

    def __init__(self, request: LaunchRequest, watch: Watcher) -> None:
        self.request = request
        self.watch = watch
        self.started_s = time.time()
        self.n_started = 0
        slots = worker_slots(request.execution.device)
        self.free = [slots[i % len(slots)] for i in range(request.n_workers)]
        self.workers: list[_Worker] = []
        for run_id in request.run_ids:
            (self._folder(run_id).path / CANCELLED_FILE).unlink(missing_ok=True)
        self.states = {run_id: self._state_on_disk(run_id) for run_id in request.run_ids}
        actions = reconcile(request.run_ids, self.states, retry_failed=request.retry_failed)
        self.queue = list(actions.start)
        at_once = min(request.n_workers, max(len(self.queue), 1))
        self.n_stillborn, self.max_stillborn = 0, MAX_LOST_ATTEMPTS * at_once
        # Of all runs, finished ones too: they are where a branch finds its trunk. A launch with
        # nothing to do has no use for them.
        to_do = request.run_ids if actions.start or actions.wait else ()
        specs = [self._folder(run_id).read_spec() for run_id in to_do]
        self.before = predecessors(specs)
        first = {spec.run_id for spec in self.before.values()}
        self.on_trunks = first.union(self.before)
        self.pack_keys = {spec.run_id: batch_key(spec) for spec in specs}
        self.elsewhere = list(actions.wait)
        self.host_note = source_note(request.results.path)
        self.context = worker_context()

    def run(self) -> LaunchReport:
        """Bring every run of the request to its end."""
        is_interrupted = False
        try:
            self._notify()
            while self.queue or self.workers or self.elsewhere:
                self._look_elsewhere()
                while self.free and (run_id := self._next_run()) is not None:
                    self.queue.remove(run_id)
                    self._start(run_id)
                sentinels = [worker.process.sentinel for worker in self.workers]
                if not wait(sentinels, timeout=TICK_S) and not sentinels:
                    time.sleep(TICK_S)
                ended = [w for w in self.workers if w.process.exitcode is not None]
                for worker in ended:
                    self._end(worker)
                if not ended:
                    self._notify()
        except KeyboardInterrupt:
            is_interrupted = True
        finally:
            self._stop_workers()
        statuses = {run_id: self._final_status(run_id) for run_id in self.request.run_ids}
        return LaunchReport(
            statuses=statuses,
            n_started=self.n_started,
            wall_s=time.time() - self.started_s,
            is_interrupted=is_interrupted,
        )

    def _next_run(self) -> str | None:
        """Return the next run to start; a branch waits until the one before has left the trunk."""
        working = (worker.locks for worker in self.workers)
        pending = set[str]().union(*working, self.queue, self.elsewhere)
        for run_id in self.queue:
            before = self.before.get(run_id)
            if before is None or before.run_id not in pending or self._has_left(before):
                return run_id
        return None

    def _has_left(self, branch: RunSpec) -> bool:
        folder = self.request.results.trunks / trunk_id(branch)
        return (folder / f"checkpoint-{branch_step(branch)}").exists()

    def _start(self, run_id: str) -> None:
        """Start a run, with as many others from the queue as share its step by the request."""
        lock = self._hold(run_id)
        if lock is None:
            return
        locks = {run_id: lock}
        size = self._batched_runs(run_id)
        for other in list(self.queue):
            if len(locks) >= size:
                break
            is_equal = self.pack_keys[other] == self.pack_keys[run_id]
            if not is_equal or self._batched_runs(other) != size:
                continue
            self.queue.remove(other)
            held = self._hold(other)
            if held is not None:
                locks[other] = held
        slot = self.free.pop(0)
        folder = self._folder(run_id)
        receiver, sender = self.context.Pipe(duplex=False)
        process = self.context.Process(
            target=work_locally,
            args=(
                [self._folder(member).path for member in locks],
                self.request.results.dataset(folder.read_spec().data_fingerprint),
                self.request.execution,
                slot,
                receiver,
                self.host_note,
                self.request.results.trunks if run_id in self.on_trunks else None,
            ),
            name=f"scalelab-{run_id}",
        )
        with _single_threaded_environment():
            process.start()
        receiver.close()
        self.workers.append(_Worker(locks, self._n_attempts(locks), slot, process, sender))
        self.n_started += len(locks)
        for member in locks:
            self._set_status(member, "running")
            self._notify(f"{member} started")

    def _batched_runs(self, run_id: str) -> int:
        """Return the most runs in a run's step; a branch of a trunk is trained by itself."""
        if run_id in self.on_trunks:
            return 1
        return batched_runs_kept(self._folder(run_id), self.request.batched_runs.get(run_id, 1))

    def _hold(self, run_id: str) -> TextIO | None:
        """Return the lock of a run that is to be started now, or None where it is not."""
        if (self._folder(run_id).path / CANCELLED_FILE).exists():
            self._set_status(run_id, "cancelled")
            self._notify(f"{run_id} cancelled")
            return None
        lock = hold_run(self._folder(run_id).path)
        if lock is None:
            self.elsewhere.append(run_id)
            return None
        if self._was_taken(run_id):
            lock.close()
            return None
        return lock

    def _was_taken(self, run_id: str) -> bool:
        """Say whether another sweep that shares the run has finished or claimed it meanwhile."""
        state = self._state_on_disk(run_id)
        if state.status in FINAL:
            self._set_status(run_id, state.status)
            self._notify(f"{run_id} {state.status}")
            return True
        if state.is_alive:
            self.states[run_id] = state
            self.elsewhere.append(run_id)
        return state.is_alive

    def _look_elsewhere(self) -> None:
        """Take over the runs that another sweep's launcher was training and has let go of."""
        for run_id in list(self.elsewhere):
            self.states[run_id] = self._state_on_disk(run_id)
            actions = reconcile([run_id], self.states)
            if not actions.wait:
                self.elsewhere.remove(run_id)
                self.queue.extend(actions.start)

    def _end(self, worker: _Worker) -> None:
        worker.process.join()
        code = worker.process.exitcode
        worker.process.close()
        worker.lifeline.close()
        self.workers.remove(worker)
        self.free.append(worker.slot)
        has_begun = self._n_attempts(worker.locks) > worker.n_attempts
        self.n_stillborn = 0 if has_begun else self.n_stillborn + 1
        folders = [self._folder(run_id).path for run_id in worker.locks]
        # A cancelled run stops its pack, which costs the others nothing.
        is_split = len(folders) > 1 and any((path / CANCELLED_FILE).exists() for path in folders)
        for run_id, lock in worker.locks.items():
            lock.close()
            self._settle(run_id, code, counts_lost=not is_split)
        if self.n_stillborn >= self.max_stillborn:
            raise self._no_worker_begins(worker, code)

    def _n_attempts(self, run_ids: Iterable[str]) -> int:
        return sum(len(self._folder(run_id).attempts()) for run_id in run_ids)

    def _no_worker_begins(self, worker: _Worker, code: int | None) -> RunsFailedError:
        """Return what to say when one worker after the other ends before it begins an attempt."""
        log = self._folder(next(iter(worker.locks))).path / LOG_FILE
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        last = next((f", {line.strip()}" for line in reversed(lines) if line.strip()), "")
        return RunsFailedError(
            f"{self.n_stillborn} workers that ended before they began a run ({_how(code)}{last})",
            "workers that train",
            f"Read {log}, check this machine with `scalelab doctor`, then `scalelab resume "
            f"{self.request.sweep}`: nothing is lost.",
        )

    def _settle(self, run_id: str, code: int | None, *, counts_lost: bool) -> None:
        """Say how a run stands whose worker has ended; put it back where it has not."""
        folder = self._folder(run_id)
        folder.accept_finished()
        status = folder.status()
        if status in ENDED:
            self._set_status(run_id, status)
            self._notify(f"{run_id} {status}")
            return
        if (folder.path / CANCELLED_FILE).exists():
            self._set_status(run_id, "cancelled")
            self._notify(f"{run_id} cancelled")
            return
        if self._was_taken(run_id):
            return
        n_lost = self.states[run_id].n_lost + counts_lost
        self.states[run_id] = RunState(status="planned", n_lost=n_lost)
        how = _how(code)
        if n_lost < MAX_LOST_ATTEMPTS:
            self.queue.insert(0, run_id)
            self._notify(f"{run_id} lost its worker ({how}); it goes on from its checkpoint")
            return
        self._note_failure(folder, f"its worker was lost {n_lost} times, the last by {how}")
        self._set_status(run_id, "failed")
        self._notify(f"{run_id} failed: its worker was lost {n_lost} times ({how})")

    def _stop_workers(self) -> None:
        """Ask every worker to leave a checkpoint and wait; whoever does not end is killed."""
        for worker in self.workers:
            worker.process.terminate()
        deadline = time.monotonic() + STOP_GRACE_S
        for worker in self.workers:
            with contextlib.suppress(KeyboardInterrupt):
                worker.process.join(max(deadline - time.monotonic(), 0))
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()
            worker.process.close()
            worker.lifeline.close()
            for run_id, lock in worker.locks.items():
                lock.close()
                self._folder(run_id).accept_finished()
        self.workers.clear()

    def _note_failure(self, folder: RunDir, reason: str) -> None:
        attempts = folder.attempts()
        if attempts:
            ended = {"status": "failed", "reason": reason, "time_s": time.time()}
            attempts[-1].write_note({**attempts[-1].read_note(), "ended": ended})

    def _state_on_disk(self, run_id: str) -> RunState:
        folder = self._folder(run_id)
        folder.accept_finished()
        status = folder.status()
        attempts = folder.attempts()
        alive = status == "running" and is_process_alive(attempts[-1].read_note())
        return RunState(status=status, is_alive=alive)

    def _folder(self, run_id: str) -> RunDir:
        return self.request.results.run(run_id)

    def _final_status(self, run_id: str) -> str:
        known = self.states[run_id].status
        # A result stays; of a cancelled or lost run that never began its folder says nothing.
        is_final = known in (*ENDED, "cancelled")
        return known if is_final else self._folder(run_id).status()

    def _set_status(self, run_id: str, status: str) -> None:
        self.states[run_id] = RunState(status=status, n_lost=self.states[run_id].n_lost)

    def _notify(self, note: str = "") -> None:
        self.watch(
            LaunchView(
                statuses={run_id: state.status for run_id, state in self.states.items()},
                running=tuple(run_id for worker in self.workers for run_id in worker.locks),
                started_s=self.started_s,
                note=note,
            )
        )


def launch_local(request: LaunchRequest, watch: Watcher) -> LaunchReport:
    """Bring the runs of a request to their end on this machine.

    Parameters
    ----------
    request : LaunchRequest
    watch : callable
        Called with a `LaunchView` at every change and a few times a second.

    Raises
    ------
    UsageError
        When another process is launching this sweep.
    RunsFailedError
        When one worker after the other ends before it begins a run.
    """
    with launcher_lock(request.results.sweep(request.sweep)):
        return LocalPool(request, watch).run()


def worker_context() -> ForkServerContext:
    """Return what starts workers: forks of a server that has imported all that they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", work_locally.__module__, "scalelab.train.worker"])
    return context


def hold_run(run_path: Path) -> TextIO | None:
    """Return a lock on a run, or None while another launcher of this machine works on it.

    The system lets go of it when the launcher dies.
    """
    file = (run_path / "launcher.lock").open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _how(code: int | None) -> str:
    return f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"


@contextlib.contextmanager
def _single_threaded_environment() -> Iterator[None]:
    """Let the server, started by the first worker, see one thread per process."""
    earlier = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
