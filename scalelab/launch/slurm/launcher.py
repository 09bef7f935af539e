"""The SLURM launcher: submits the runs of a sweep that are missing, until each has ended.

Every two seconds it compares plan, run folders and queue. It may die at any moment: the next
launcher finds the whole state in the results folder and the queue. SLURM requeues preempted jobs
and jobs of failed nodes; the launcher resubmits only jobs that have ended.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from scalelab.errors import RunsFailedError, SpecError, UsageError
from scalelab.launch.base import LaunchReport, LaunchRequest, LaunchView, Watcher
from scalelab.launch.lock import launcher_lock, submission_lock
from scalelab.launch.programs.usage_failures import UsageFailures
from scalelab.launch.prune import Pruner
from scalelab.launch.reconcile import RunState, reconcile
from scalelab.launch.slurm.arrays import Arrays, SlurmOptions
from scalelab.launch.slurm.queue import Slurm
from scalelab.launch.slurm.retries import Retry, decide_retry
from scalelab.launch.slurm.submissions import Submissions, other_sweeps
from scalelab.launch.worker import CANCELLED_FILE, is_cancelled
from scalelab.records.files import read_json, write_atomically
from scalelab.records.machine import is_process_alive
from scalelab.records.run_dir import RunDir
from scalelab.records.states import FINAL, PRUNED
from scalelab.sweep.site_options import refuse_unknown
from scalelab.sweep.tables import SlurmTable


class SlurmLaunch:
    """One launch; see `launch_slurm`."""

    def __init__(
        self, request: LaunchRequest, options: SlurmOptions, watch: Watcher, slurm: Slurm
    ) -> None:
        self.request = request
        self.options = options
        self.watch = watch
        self.slurm = slurm
        self.started_s = time.time()
        self.n_started = 0
        self.results = request.results
        self.folder = self.results.sweep(request.sweep)
        self.own = Submissions(self.results, self.folder, is_owner=True)
        self.arrays = Arrays(request, options, self.own, slurm)
        self.pruner = Pruner(request) if request.stop_hopeless else None
        self.others: dict[Path, Submissions] = {}
        self.forgiven = self._read_forgiven()
        self.retries: dict[str, Retry] = {}
        self.states: dict[str, RunState] = {}
        self.broken: set[str] = set()
        self.usage_failures = UsageFailures(request.sweep)

    def run(self) -> LaunchReport:
        """Launch until every run of the request has ended or, if detached, is submitted."""
        is_interrupted = False
        for run_id in self.request.run_ids:
            (self._run(run_id).path / CANCELLED_FILE).unlink(missing_ok=True)
        was_silent = False
        try:
            self._update_states()
            while not self._is_over():
                queue = self.slurm.read_queue()
                if queue is None and not was_silent:
                    self.own.notes.append(f"SLURM does not answer, retrying: {self.slurm.error}")
                was_silent = queue is None
                self.own.update(queue)
                for other in self.others.values():
                    other.reload()
                    other.update(queue)
                self._update_states()
                self._stop_wrong_command()
                self._prune()
                if queue is not None:
                    self.arrays.cancel_held(queue)
                    self._submit_missing()
                    self.arrays.balance()
                    self._cancel_unneeded()
                self._notify()
        except KeyboardInterrupt:
            is_interrupted = True
        return LaunchReport(
            statuses={run_id: state.status for run_id, state in self.states.items()},
            n_started=self.n_started,
            wall_s=time.time() - self.started_s,
            is_interrupted=is_interrupted,
        )

    def _stop_wrong_command(self) -> None:
        """Cancel the jobs of this sweep and end the launch if the program's command is wrong."""
        # The queue may still show a job whose run has failed.
        begun = [r for r, state in self.states.items() if state.status in ("running", "failed")]
        try:
            self.usage_failures.add(self._run(run_id) for run_id in begun)
        except RunsFailedError:
            self.slurm.cancel(self.own.unneeded_elements(set(self.states), lambda run_id: True))
            raise

    def _is_over(self) -> bool:
        actions = reconcile(self.request.run_ids, self.states)
        if self.options.is_detached and not actions.start and not self._unsettled():
            return True
        return not actions.start and not actions.wait

    def _unsettled(self) -> bool:
        """Return whether an own submission has no known job number yet."""
        return any(self.own.job_of(intent) is None for intent, _ in self.own.open_elements())

    def _update_states(self) -> None:
        """Set the state of each unfinished run from its folder and the queue."""
        live = self.own.live_runs()
        for other in self.others.values():
            live = {**other.live_runs(), **live}
        for run_id in self.request.run_ids:
            known = self.states.get(run_id)
            if known is None or known.status not in FINAL:
                self.states[run_id] = self._state(run_id, live.get(run_id))

    def _state(self, run_id: str, live: str | None) -> RunState:
        run = self._run(run_id)
        if run_id in self.broken:
            return RunState(status="failed")
        run.accept_finished()
        status = run.status()
        if status in FINAL:
            return RunState(status=status)
        if status == PRUNED:
            return RunState(status=status, is_alive=live is not None, is_wanted=False)
        if is_cancelled(run):
            return RunState(status="cancelled", is_alive=live is not None, is_wanted=False)
        if live is not None:
            return RunState(status=live, is_alive=True)
        attempts = run.attempts()
        if status == "running" and is_process_alive(attempts[-1].read_note()):
            return RunState(status="running", is_alive=True)
        if self.request.retry_failed and run_id not in self.forgiven:
            self._forgive(run_id)
        failures = self.own.failures(run_id)[self.forgiven.get(run_id, 0) :]
        retry = decide_retry(
            failures,
            self._batch_seqs(run) if failures else 1,
            micro_batch_seqs=self.request.execution.micro_batch_seqs,
        )
        if retry.reason and self.retries.get(run_id) != retry:
            self.own.notes.append(f"{run_id} failed: {retry.reason}")
        self.retries[run_id] = retry
        if failures:
            return RunState(status="planned" if retry.is_allowed else "failed")
        return RunState(status="planned" if run_id in self.forgiven else status)

    def _batch_seqs(self, run: RunDir) -> int:
        """Return the sequences per device in a step; a broken spec is reported later."""
        try:
            table = self.options.table
            n_groups = max(1, self.options.needs[run.run_id].gpus) // table.tensor_parallel
            return max(1, run.read_spec().batch_seqs // n_groups)
        except SpecError:
            return 1

    def _submit_missing(self) -> None:
        """Write the intents of the missing runs, then submit them."""
        if not reconcile(self.request.run_ids, self.states).start:
            return
        with submission_lock(self.results.path):
            for folder in other_sweeps(self.results, self.folder):
                if folder not in self.others:
                    self.others[folder] = Submissions(self.results, folder, is_owner=False)
                self.others[folder].reload()
            self._update_states()
            wanted = reconcile(self.request.run_ids, self.states).start
            intact = [run_id for run_id in wanted if self._is_intact(run_id)]
            micro_batches = {
                run_id: size
                for run_id in intact
                if (size := self.retries[run_id].micro_batch_seqs) is not None
            }
            intents = self.arrays.write_intents(intact, micro_batches)
        for intent in intents:
            self.n_started += self.arrays.submit(intent)
        self._update_states()

    def _is_intact(self, run_id: str) -> bool:
        """Return whether a run's spec is present and unchanged; otherwise mark the run failed."""
        try:
            self._run(run_id).read_spec()
        except SpecError as error:
            self.broken.add(run_id)
            self.own.notes.append(f"{run_id} failed: {error}")
        return run_id not in self.broken

    def _prune(self) -> None:
        running = [r for r, state in self.states.items() if state.status == "running"]
        if self.pruner is not None and (found := self.pruner.look(running)):
            self.own.notes += found
            self._update_states()

    def _cancel_unneeded(self) -> None:
        cancelled = {r for r, state in self.states.items() if not state.is_wanted}
        if cancelled:
            over = cancelled | {r for r, s in self.states.items() if s.status in FINAL}
            self.slurm.cancel(self.own.unneeded_elements(cancelled, over.__contains__))

    def _notify(self) -> None:
        notes, self.own.notes = self.own.notes, []
        view = {run_id: state.status for run_id, state in self.states.items()}
        running = tuple(run_id for run_id, status in view.items() if status == "running")
        for note in notes or [""]:
            self.watch(
                LaunchView(statuses=view, running=running, started_s=self.started_s, note=note)
            )

    def _run(self, run_id: str) -> RunDir:
        return self.results.run(run_id)

    def _read_forgiven(self) -> dict[str, int]:
        # A retry also forgives the failures since the last retry.
        if self.request.retry_failed:
            return {}
        return read_json(self.folder / "forgiven.json") or {}

    def _forgive(self, run_id: str) -> None:
        self.forgiven[run_id] = len(self.own.failures(run_id))
        write_atomically(self.folder / "forgiven.json", json.dumps(self.forgiven))


def launch_slurm(
    request: LaunchRequest, options: SlurmOptions, watch: Watcher, *, slurm: Slurm | None = None
) -> LaunchReport:
    """Train the runs of a request on the cluster until each has ended.

    Calls ``watch`` with a `LaunchView` at every change and every two seconds. ``slurm`` defaults
    to the cluster of the environment.

    Raises
    ------
    UsageError
        If another process is launching this sweep, a cap would be exceeded, a batch script cannot
        hold the results folder's name, sbatch does not have a site option or refuses an option, or
        SLURM is not installed.
    RunsFailedError
        If the program of two runs fails before its first row.
    """
    check_path(request.results.path.resolve())
    slurm = slurm or Slurm.here()
    check_site_options(options.table, slurm)
    with launcher_lock(request.results.sweep(request.sweep)):
        return SlurmLaunch(request, options, watch, slurm).run()


def check_site_options(table: SlurmTable, slurm: Slurm) -> str:
    """Compare the site options with those of the installed sbatch; return how, in words.

    Raises
    ------
    UsageError
        If sbatch does not have one of them.
    """
    if not table.sbatch:
        return ""
    installed = slurm.sbatch_options()
    if not installed:
        return "not checked, because no sbatch answers here"
    refuse_unknown(table.sbatch, installed)
    return "the installed sbatch has them"


def check_path(results: Path) -> None:
    """Raise if SLURM would change the results folder's path.

    Raises
    ------
    UsageError
        For ``%`` (sbatch inserts job numbers there), backslashes and control characters.
    """
    text = str(results)
    if any(sign in "%\\" or not sign.isprintable() for sign in text):
        raise UsageError(
            f"results folder {text!r}",
            "a path without '%', backslashes and control characters: sbatch would replace them",
            "Use another folder, for example --results results.",
        )
