"""The local launcher: a pool of worker processes on this machine.

Workers are forked from a server that has already imported the trainer. When a worker is killed,
its runs lose one attempt and resume from their checkpoint. When the launcher is killed or gets
Ctrl-C, each worker saves a checkpoint and ends.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, TextIO

from scalelab.errors import RunsFailedError
from scalelab.launch.base import LaunchReport, LaunchRequest, LaunchView, Watcher
from scalelab.launch.batching import batched_runs_kept
from scalelab.launch.devices import worker_slots
from scalelab.launch.local.worker import (
    Worker,
    describe_exit,
    hold_run,
    start_process,
    worker_context,
)
from scalelab.launch.lock import launcher_lock
from scalelab.launch.programs.usage_failures import UsageFailures
from scalelab.launch.reconcile import MAX_LOST_ATTEMPTS, RunState, reconcile
from scalelab.launch.source import source_note
from scalelab.launch.worker import CANCELLED_FILE, is_cancelled, is_stopped
from scalelab.records.machine import ctrl_c_blocked, is_process_alive
from scalelab.records.qualification import is_measuring
from scalelab.records.run_dir import LOG_FILE, RunDir, end_of
from scalelab.records.states import ENDED, FINAL, PRUNED
from scalelab.sweep.batched_runs import batch_key
from scalelab.sweep.execution import QualifyRequest
from scalelab.sweep.run_spec import RunSpec
from scalelab.sweep.trunk import branch_step, predecessors, trunk_id
from scalelab.units import plural

if TYPE_CHECKING:
    from scalelab.launch.prune import Pruner

TICK_S = 0.25
STOP_GRACE_S = 30.0
QUALIFYING = "qualification: a worker checks and times the ways to execute a step (2 minutes)"


class LocalPool:
    """The workers of one launch; see `launch_local`."""

    def __init__(self, request: LaunchRequest, watch: Watcher) -> None:
        self.request = request
        self.watch = watch
        self.started_s = time.time()
        self.n_started = 0
        slots = worker_slots(request.execution.device)
        self.free = [slots[i % len(slots)] for i in range(request.n_workers)]
        self.workers: list[Worker] = []
        for run_id in request.run_ids:
            (self._folder(run_id).path / CANCELLED_FILE).unlink(missing_ok=True)
        self.states = {run_id: self._state_on_disk(run_id) for run_id in request.run_ids}
        actions = reconcile(request.run_ids, self.states, retry_failed=request.retry_failed)
        self.queue = list(actions.start)
        at_once = min(request.n_workers, max(len(self.queue), 1))
        self.n_failed_starts, self.max_failed_starts = 0, MAX_LOST_ATTEMPTS * at_once
        # Includes finished runs, which locate the trunks of branches. Empty if nothing is left.
        to_do = request.run_ids if actions.start or actions.wait else ()
        specs = [self._folder(run_id).read_spec() for run_id in to_do]
        self.before = predecessors(specs)
        first = {spec.run_id for spec in self.before.values()}
        self.on_trunks = first.union(self.before)
        self.batch_keys = {spec.run_id: batch_key(spec) for spec in specs}
        self.elsewhere = list(actions.wait)
        self.host_note = {**source_note(request.results.path), "sweep": request.sweep}
        program = request.execution.program
        self.context = worker_context(has_program=program is not None)
        self.stop_grace_s = STOP_GRACE_S + (program.grace_s if program is not None else 0.0)
        self.is_measuring = False
        self.usage_failures = UsageFailures(request.sweep)
        self.pruner: Pruner | None = None

    def run(self) -> LaunchReport:
        """Train the runs of the request until each has ended."""
        is_interrupted = False
        try:
            self._notify()
            while self.queue or self.workers or self.elsewhere:
                self._check_elsewhere()
                while self.free and (run_id := self._next_run()) is not None:
                    self.queue.remove(run_id)
                    self._start(run_id)
                sentinels = [worker.process.sentinel for worker in self.workers]
                if not wait(sentinels, timeout=TICK_S) and not sentinels:
                    time.sleep(TICK_S)
                ended = [w for w in self.workers if w.process.exitcode is not None]
                for worker in ended:
                    self._end(worker)
                for note in self._prune():
                    self._notify(note)
                if not ended:
                    self._notify(self._qualification_note())
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

    def _prune(self) -> list[str]:
        if self.request.stop_hopeless and self.pruner is None:
            # Only here: a machine that trains with torch and NumPy alone cannot compare runs.
            from scalelab.launch.prune import Pruner

            self.pruner = Pruner(self.request)
        running = [run_id for worker in self.workers for run_id in worker.locks]
        return [] if self.pruner is None else self.pruner.look(running)

    def _qualification_note(self) -> str:
        """Return a note when a worker begins to qualify its device, during which no run starts."""
        was, folder = self.is_measuring, self.request.results.qualification
        self.is_measuring = is_measuring(folder)
        return QUALIFYING if self.is_measuring and not was else ""

    def _next_run(self) -> str | None:
        """Return the next run to start; a branch waits for the checkpoint that it starts from."""
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
        """Start a run, batched with runs from the queue if the request says so."""
        lock = self._hold(run_id)
        if lock is None:
            return
        locks = {run_id: lock}
        size = self._batched_runs(run_id)
        for other in list(self.queue):
            if len(locks) >= size:
                break
            is_equal = self.batch_keys[other] == self.batch_keys[run_id]
            if not is_equal or self._batched_runs(other) != size:
                continue
            self.queue.remove(other)
            held = self._hold(other)
            if held is not None:
                locks[other] = held
        slot = self.free.pop(0)
        results = self.request.results
        # A Ctrl-C must not come between the start of a worker and its entry in the list.
        with ctrl_c_blocked():
            process, lifeline = start_process(
                self.context,
                f"scalelab-{run_id}",
                [self._folder(member).path for member in locks],
                results.dataset(self._folder(run_id).read_spec().data_fingerprint),
                self.request.execution,
                slot,
                self.host_note,
                results.trunks if run_id in self.on_trunks else None,
                QualifyRequest(results.qualification, self.request.qualify),
            )
            self.workers.append(Worker(locks, self._n_attempts(locks), slot, process, lifeline))
        self.n_started += len(locks)
        for member in locks:
            self._set_status(member, "running", "started")

    def _batched_runs(self, run_id: str) -> int:
        """Return the largest number of runs in a run's step; a branch is trained alone."""
        if run_id in self.on_trunks:
            return 1
        return batched_runs_kept(self._folder(run_id), self.request.batched_runs.get(run_id, 1))

    def _hold(self, run_id: str) -> TextIO | None:
        """Return the lock of a run to start, or None if it must not be started now."""
        if is_stopped(self._folder(run_id)):
            word = "cancelled" if is_cancelled(self._folder(run_id)) else PRUNED
            self._set_status(run_id, word, word)
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
        """Return whether the launcher of another sweep has finished or started the run."""
        state = self._state_on_disk(run_id)
        if state.status in FINAL:
            self._set_status(run_id, state.status, state.status)
            return True
        if state.is_alive:
            self.states[run_id] = state
            self.elsewhere.append(run_id)
        return state.is_alive

    def _check_elsewhere(self) -> None:
        """Queue the runs that another sweep's launcher was training and has stopped."""
        for run_id in list(self.elsewhere):
            self.states[run_id] = self._state_on_disk(run_id)
            actions = reconcile([run_id], self.states)
            if not actions.wait:
                self.elsewhere.remove(run_id)
                self.queue.extend(actions.start)

    def _end(self, worker: Worker) -> None:
        code = worker.close()
        self.workers.remove(worker)
        self.free.append(worker.slot)
        has_begun = self._n_attempts(worker.locks) > worker.n_attempts
        self.n_failed_starts = 0 if has_begun else self.n_failed_starts + 1
        # Cancelling a run stops the runs batched with it; these do not lose an attempt.
        is_split = len(worker.locks) > 1 and any(
            is_stopped(self._folder(run_id)) for run_id in worker.locks
        )
        for run_id in worker.locks:
            self._settle(run_id, code, counts_lost=not is_split)
        if self.n_failed_starts >= self.max_failed_starts:
            raise self._no_worker_begins(worker, code)

    def _n_attempts(self, run_ids: Iterable[str]) -> int:
        return sum(len(self._folder(run_id).attempts()) for run_id in run_ids)

    def _no_worker_begins(self, worker: Worker, code: int | None) -> RunsFailedError:
        """Return the error for workers that all end before they begin an attempt."""
        log = self._folder(next(iter(worker.locks))).path / LOG_FILE
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        last = next((f"; {line.strip()}" for line in reversed(lines) if line.strip()), "")
        return RunsFailedError(
            f"{plural(self.n_failed_starts, 'worker')} that ended before training began "
            f"({describe_exit(code)}{last})",
            "workers that begin to train",
            f"Read {log}, check this machine with `scalelab doctor`, then run `scalelab resume "
            f"{self.request.sweep}`. No results were lost.",
        )

    def _settle(self, run_id: str, code: int | None, *, counts_lost: bool) -> None:
        """Set the state of a run whose worker has ended; queue it again if it is unfinished."""
        folder = self._folder(run_id)
        folder.accept_finished()
        status = "cancelled" if is_cancelled(folder) else ""
        if (found := folder.status()) in ENDED:
            status = found
        if status:
            self._set_status(run_id, status, _event(folder, status))
            if status == "failed":
                self.usage_failures.add([folder])
            return
        if self._was_taken(run_id):
            return
        n_lost = self.states[run_id].n_lost + counts_lost
        self.states[run_id] = RunState(status="planned", n_lost=n_lost)
        attempts = folder.attempts()
        ended = end_of(attempts[-1].read_note()) if attempts else {}
        # A program that ended because of its machine says more than the exit code of the worker.
        how = str(ended["reason"]) if ended.get("kind") else describe_exit(code)
        if n_lost < MAX_LOST_ATTEMPTS:
            self.queue.insert(0, run_id)
            self._notify(f"{run_id} lost its worker ({how}); it resumes from its last checkpoint")
            return
        reason = f"its worker was lost {n_lost} times; the last time: {how}"
        if attempts:
            ended = {**ended, "status": "failed", "reason": reason, "time_s": time.time()}
            attempts[-1].write_note({**attempts[-1].read_note(), "ended": ended})
        self._set_status(run_id, "failed", f"failed: {reason}")

    def _stop_workers(self) -> None:
        """Ask workers to save a checkpoint and end; kill those that do not within 30 seconds.

        A user's program has its ``grace_s`` in addition.
        """
        for worker in self.workers:
            worker.process.terminate()
        deadline = time.monotonic() + self.stop_grace_s
        for worker in self.workers:
            with contextlib.suppress(KeyboardInterrupt):
                worker.process.join(max(deadline - time.monotonic(), 0))
            if worker.process.exitcode is None:
                worker.process.kill()
            worker.close()
            for run_id in worker.locks:
                self._folder(run_id).accept_finished()
        self.workers.clear()

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
        # The folder of a cancelled or lost run that never began does not show that it ended.
        is_final = known in (*ENDED, "cancelled")
        return known if is_final else self._folder(run_id).status()

    def _set_status(self, run_id: str, status: str, note: str) -> None:
        self.states[run_id] = RunState(status=status, n_lost=self.states[run_id].n_lost)
        self._notify(f"{run_id} {note}")

    def _notify(self, note: str = "") -> None:
        self.watch(
            LaunchView(
                statuses={run_id: state.status for run_id, state in self.states.items()},
                running=tuple(run_id for worker in self.workers for run_id in worker.locks),
                started_s=self.started_s,
                note=note,
            )
        )


def _event(folder: RunDir, status: str) -> str:
    """Return the end of a run as a note; of a failed run with the first line of the reason."""
    if status not in ("failed", "diverged"):
        return status
    attempts = folder.attempts()
    reason = str(end_of(attempts[-1].read_note()).get("reason") or "") if attempts else ""
    return f"{status}: {reason.splitlines()[0]}" if reason else status


def launch_local(request: LaunchRequest, watch: Watcher) -> LaunchReport:
    """Train the runs of a request on this machine until each has ended.

    Calls ``watch`` with a `LaunchView` at every change and a few times a second.

    Raises
    ------
    UsageError
        If another process is launching this sweep.
    RunsFailedError
        If several workers in a row end before they begin a run, or the program of two runs fails
        before its first row.
    """
    with launcher_lock(request.results.sweep(request.sweep)):
        return LocalPool(request, watch).run()
