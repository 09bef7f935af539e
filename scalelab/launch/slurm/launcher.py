"""The SLURM launcher: brings the cluster to the state that the plan asks for, and keeps it there.

Every two seconds it compares plan, run folders and queue, and submits only what is missing. It may
die at any moment: the next one finds everything in the results folder and in the queue. SLURM
itself requeues what was preempted or lost its node; this submits again only what has ended.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from submitit.core.utils import FailedJobError, FailedSubmissionError

from scalelab.errors import SpecError, UsageError
from scalelab.launch.base import LaunchReport, LaunchRequest, LaunchView, Watcher
from scalelab.launch.job import CANCELLED_FILE
from scalelab.launch.lock import launcher_lock, submission_lock
from scalelab.launch.reconcile import RunState, reconcile
from scalelab.launch.slurm.batch_script import make_executor, submit, write_submission
from scalelab.launch.slurm.intents import Intent, JobGroup, write_intent
from scalelab.launch.slurm.job_groups import gpu_hours, make_job_groups, refuse_over_cap
from scalelab.launch.slurm.queue import Queue, Slurm
from scalelab.launch.slurm.retries import Retry, decide_retry, share_out
from scalelab.launch.slurm.submissions import Submissions, other_sweeps
from scalelab.launch.source import frozen_source
from scalelab.records.files import write_atomically
from scalelab.records.machine import is_process_alive
from scalelab.records.run_dir import RunDir
from scalelab.records.states import FINAL
from scalelab.sweep.spec import SlurmTable

_PASSING_ERRORS = ("timed out", "Unable to contact", "temporarily", "try again", "Zero Bytes")


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmOptions:
    """How a sweep goes to SLURM.

    Attributes
    ----------
    table : SlurmTable
        What jobs ask for.
    seconds : Mapping[str, float]
        What each run is expected to take.
    usd_per_gpu_hour : float
        Price that ``max_usd`` is reckoned with.
    is_detached : bool
        Whether to leave as soon as everything is submitted.
    """

    table: SlurmTable
    seconds: Mapping[str, float]
    usd_per_gpu_hour: float
    is_detached: bool = False


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
        self.others: dict[Path, Submissions] = {}
        self.forgiven = self._read_forgiven()
        self.retries: dict[str, Retry] = {}
        self.states: dict[str, RunState] = {}
        self.set_aside: set[str] = set()
        self.max_array_size: int | None = None

    def run(self) -> LaunchReport:
        """Bring every run of the request to its end, or submit everything when detached."""
        is_interrupted = False
        for run_id in self.request.run_ids:
            (self._run(run_id).path / CANCELLED_FILE).unlink(missing_ok=True)
        was_silent = False
        try:
            self._look()
            while not self._is_over():
                queue = self.slurm.read_queue()
                if queue is None and not was_silent:
                    self.own.notes.append(f"SLURM is asked until it answers; {self.slurm.silence}")
                was_silent = queue is None
                self.own.update(queue)
                for other in self.others.values():
                    other.reload()
                    other.update(queue)
                self._look()
                if queue is not None:
                    self._take_out_held(queue)
                    self._submit_missing()
                    self._balance()
                    self._end_cancelled()
                self._tell()
        except KeyboardInterrupt:
            is_interrupted = True
        return LaunchReport(
            statuses={run_id: state.status for run_id, state in self.states.items()},
            n_started=self.n_started,
            wall_s=time.time() - self.started_s,
            is_interrupted=is_interrupted,
        )

    def _is_over(self) -> bool:
        actions = reconcile(self.request.run_ids, self.states)
        if self.options.is_detached and not actions.start and not self._unsettled():
            return True
        return not actions.start and not actions.wait

    def _unsettled(self) -> bool:
        """Say whether a submission of ours may or may not have reached the queue."""
        return any(self.own.job_of(intent) is None for intent, _ in self.own.open_elements())

    def _look(self) -> None:
        """Say of each run what the files and the queue tell."""
        live = self.own.live_runs()
        for other in self.others.values():
            live = {**other.live_runs(), **live}
        for run_id in self.request.run_ids:
            known = self.states.get(run_id)
            if known is None or known.status not in FINAL:
                self.states[run_id] = self._state(run_id, live.get(run_id))

    def _state(self, run_id: str, live: str | None) -> RunState:
        run = self._run(run_id)
        if run_id in self.set_aside:
            return RunState(status="failed")
        run.accept_finished()
        status = run.status()
        if status in FINAL:
            return RunState(status=status)
        if (run.path / CANCELLED_FILE).exists():
            return RunState(status="cancelled", is_alive=live is not None, is_wanted=False)
        if live is not None:
            return RunState(status=live, is_alive=True)
        attempts = run.attempts()
        if status == "running" and is_process_alive(attempts[-1].read_note()):
            return RunState(status="running", is_alive=True)
        if self.request.retry_failed and run_id not in self.forgiven:
            self._forgive(run_id)
        losses = self.own.failures(run_id)[self.forgiven.get(run_id, 0) :]
        retry = decide_retry(
            losses,
            self._batch_seqs(run) if losses else 1,
            micro_batch_seqs=self.request.execution.micro_batch_seqs,
        )
        self.retries[run_id] = retry
        if losses:
            return RunState(status="planned" if retry.is_allowed else "failed")
        return RunState(status="planned" if run_id in self.forgiven else status)

    def _batch_seqs(self, run: RunDir) -> int:
        """Return a device's sequences in a run's step; a broken spec is found out later."""
        try:
            table = self.options.table
            n_groups = max(1, table.gpus_per_run) // table.tensor_parallel
            return max(1, run.read_spec().batch_seqs // n_groups)
        except SpecError:
            return 1

    def _submit_missing(self) -> None:
        """Write down what is missing, then submit it."""
        if not reconcile(self.request.run_ids, self.states).start:
            return
        with submission_lock(self.results.path):
            for folder in other_sweeps(self.results, self.folder):
                if folder not in self.others:
                    self.others[folder] = Submissions(self.results, folder, is_owner=False)
                self.others[folder].reload()
            self._look()
            wanted = reconcile(self.request.run_ids, self.states).start
            intents = self._write_intents([run_id for run_id in wanted if self._is_whole(run_id)])
        for intent in intents:
            self._submit(intent)
        self._look()

    def _is_whole(self, run_id: str) -> bool:
        """Say whether a run's spec is there and unaltered; a run that is not is set aside."""
        try:
            self._run(run_id).read_spec()
        except SpecError as error:
            self.set_aside.add(run_id)
            self.own.notes.append(f"{run_id} failed: {error}")
        return run_id not in self.set_aside

    def _write_intents(self, run_ids: Sequence[str]) -> list[Intent]:
        table = self.options.table
        packs = make_job_groups(
            run_ids,
            self.options.seconds,
            self.request.execution,
            target_s=60 * table.target_job_minutes,
            micro_batches={
                run_id: self.retries[run_id].micro_batch_seqs or 0
                for run_id in run_ids
                if self.retries[run_id].micro_batch_seqs is not None
            },
        )
        if not packs:
            return []
        asked = table.gpus_per_run * sum(pack.seconds for pack in packs) / 3600
        refuse_over_cap(
            gpu_hours(self.own.intents),
            asked,
            max_gpu_hours=table.max_gpu_hours,
            max_usd=table.max_usd,
            usd_per_gpu_hour=self.options.usd_per_gpu_hour,
        )
        if self.max_array_size is None:
            self.max_array_size = self.slurm.max_array_size()
        size = self.max_array_size
        chunks: list[list[JobGroup]] = [packs[i : i + size] for i in range(0, len(packs), size)]
        taken = sum(self._throttles().values())
        shares = share_out(table.array_parallelism - taken, [len(chunk) for chunk in chunks])
        written = []
        for chunk, share in zip(chunks, shares, strict=True):
            if share:
                intent = write_intent(
                    self.folder,
                    chunk,
                    throttle=share,
                    gpus=table.gpus_per_run,
                    time_min=table.time_min,
                )
                self.own.add(intent)
                written.append(intent)
        return written

    def _throttles(self) -> dict[str, int]:
        """Return how many elements of each array that has not ended may run at once."""
        remaining = {i.id: (i, self.own.remaining(i)) for i in self.own.intents}
        return {
            name: min(intent.current_throttle(), left)
            for name, (intent, left) in remaining.items()
            if left
        }

    def _submit(self, intent: Intent) -> None:
        table = self.options.table
        results, folder = self.results.path.resolve(), self.folder.resolve()
        python_path = frozen_source(results, folder) if table.snapshot else None
        executor = make_executor(
            table,
            intent.path.resolve(),
            intent.job_name,
            n_elements=len(intent.packs),
            throttle=intent.throttle,
            python_path=python_path,
        )
        script = write_submission(executor, folder)
        try:
            job_id = submit(executor, script)
        except (FailedJobError, FailedSubmissionError) as error:
            words = " ".join(str(error).split())
            if any(passing in words for passing in _PASSING_ERRORS):
                # It may be in the queue nevertheless: it is adopted by its name, or given up.
                self.own.notes.append(f"sbatch: {words}")
                return
            if self.own.abandon(intent):
                raise UsageError(
                    f"a job that sbatch refuses: {words}",
                    "options that this cluster takes",
                    "Mend [launcher.slurm] or the options; nothing was lost.",
                ) from None
            return
        intent.note_job(job_id, intent.throttle)
        self.n_started += sum(len(pack.run_ids) for pack in intent.packs)
        self.own.notes.append(f"array {job_id} submitted: {len(intent.packs)} jobs")

    def _balance(self) -> None:
        """Give what ended arrays leave of the cap to those that still have elements waiting."""
        throttles = self._throttles()
        for intent in self.own.intents:
            job_id = self.own.job_of(intent)
            if intent.id not in throttles or job_id is None:
                continue
            now = throttles[intent.id]
            spare = self.options.table.array_parallelism - sum(throttles.values())
            wanted = min(now + spare, self.own.remaining(intent))
            if wanted > now and self.slurm.set_throttle(job_id, wanted):
                intent.note_job(job_id, wanted)
                throttles[intent.id] = wanted

    def _take_out_held(self, queue: Queue) -> None:
        """Cancel what SLURM holds for ever after a launch that failed.

        It is then submitted again, and given up like any job that is lost too often.
        """
        held = [
            (job_id, index)
            for intent, index in self.own.open_elements()
            if (job_id := self.own.job_of(intent)) is not None
            and (job := queue.get((job_id, index))) is not None
            and job.is_held_by_slurm
        ]
        if held and self.slurm.cancel(held):
            self.own.notes += [
                f"job {job}_{index}, which SLURM held, taken out" for job, index in held
            ]

    def _end_cancelled(self) -> None:
        """Take the jobs out of the queue of which no run is wanted any more."""
        unwanted = {r for r, state in self.states.items() if not state.is_wanted}
        if not unwanted:
            return
        ended = unwanted | {r for r, s in self.states.items() if s.status in FINAL}
        elements = []
        for intent, index in self.own.open_elements():
            runs, job_id = intent.packs[index].run_ids, self.own.job_of(intent)
            if job_id is not None and ended.issuperset(runs) and not unwanted.isdisjoint(runs):
                elements.append((job_id, index))
        self.slurm.cancel(elements)

    def _tell(self) -> None:
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
        try:
            found: dict[str, int] = json.loads((self.folder / "forgiven.json").read_text())
        except (OSError, ValueError):
            return {}
        # A retry forgives anew what was lost since the last one.
        return {} if self.request.retry_failed else found

    def _forgive(self, run_id: str) -> None:
        self.forgiven[run_id] = len(self.own.failures(run_id))
        write_atomically(self.folder / "forgiven.json", json.dumps(self.forgiven))


def launch_slurm(
    request: LaunchRequest, options: SlurmOptions, watch: Watcher, *, slurm: Slurm | None = None
) -> LaunchReport:
    """Bring the runs of a request to their end on the cluster.

    Parameters
    ----------
    request : LaunchRequest
    options : SlurmOptions
    watch : callable
        Called with a `LaunchView` at every change and every two seconds.
    slurm : Slurm, optional
        The cluster; default the one that the environment names.

    Raises
    ------
    UsageError
        When another process is launching this sweep, a cap would be passed, the results folder has
        a name that a batch script cannot hold, sbatch refuses the options, or there is no SLURM.
    """
    check_path(request.results.path.resolve())
    with launcher_lock(request.results.sweep(request.sweep)):
        return SlurmLaunch(request, options, watch, slurm or Slurm.here()).run()


def check_path(results: Path) -> None:
    """Refuse a results folder whose name SLURM would read as something else.

    Raises
    ------
    UsageError
        For ``%`` (sbatch puts job numbers in its place), backslashes and control characters.
    """
    text = str(results)
    if any(sign in "%\\" or not sign.isprintable() for sign in text):
        raise UsageError(
            f"results folder {text!r}",
            "a path without '%', backslashes and control characters, which sbatch would replace",
            "Choose another --results.",
        )
