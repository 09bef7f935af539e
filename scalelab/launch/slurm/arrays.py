"""The job arrays of a sweep: writing their intents, submitting them, limiting parallel jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from submitit.core.utils import FailedJobError, FailedSubmissionError

from scalelab.errors import UsageError
from scalelab.launch.base import LaunchRequest
from scalelab.launch.caps import refuse_over_cap
from scalelab.launch.slurm.batch_script import make_executor, submit, write_submission
from scalelab.launch.slurm.intents import Intent, JobGroup, write_intent
from scalelab.launch.slurm.job_groups import gpu_hours, make_job_groups
from scalelab.launch.slurm.queue import Queue, Slurm
from scalelab.launch.slurm.resources import (
    JobResources,
    RunNeeds,
    grouped_by_resources,
    is_timed,
    program_launcher,
)
from scalelab.launch.slurm.retries import share_out
from scalelab.launch.slurm.submissions import Submissions
from scalelab.launch.source import frozen_source
from scalelab.sweep.tables import SlurmTable
from scalelab.units import plural

_PASSING_ERRORS = ("timed out", "Unable to contact", "temporarily", "try again", "Zero Bytes")


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmOptions:
    """How to submit a sweep to SLURM.

    Attributes
    ----------
    table : SlurmTable
        Options that all jobs share.
    needs : Mapping[str, RunNeeds]
        GPUs and memory of each run.
    seconds : Mapping[str, float]
        Expected training time of each run, seconds.
    usd_per_gpu_hour : float
        Price used for ``max_usd``.
    is_detached : bool
        Whether to return as soon as every job is submitted.
    """

    table: SlurmTable
    needs: Mapping[str, RunNeeds]
    seconds: Mapping[str, float]
    usd_per_gpu_hour: float
    is_detached: bool = False


def chunked(
    arrays: Sequence[tuple[JobResources, list[JobGroup]]], size: int
) -> list[tuple[JobResources, list[JobGroup]]]:
    """Return the arrays in parts of at most ``size`` elements, which the cluster allows."""
    return [
        (resources, groups[i : i + size])
        for resources, groups in arrays
        for i in range(0, len(groups), size)
    ]


class Arrays:
    """Submits and adjusts the arrays of one sweep; adds new intents to ``submissions``."""

    def __init__(
        self, request: LaunchRequest, options: SlurmOptions, submissions: Submissions, slurm: Slurm
    ) -> None:
        self.request = request
        self.options = options
        self.table = options.table
        self.own = submissions
        self.slurm = slurm
        self._max_array_size: int | None = None

    def write_intents(
        self, run_ids: Sequence[str], micro_batches: Mapping[str, int]
    ) -> list[Intent]:
        """Write the intents of the arrays that train these runs; submit nothing yet.

        Raises
        ------
        UsageError
            If they would exceed a cap.
        """
        table, needs = self.table, self.options.needs
        job_groups = make_job_groups(
            run_ids,
            self.options.seconds,
            self.request.execution,
            target_s=60 * table.target_job_minutes,
            gpus={run_id: needs[run_id].gpus for run_id in run_ids},
            micro_batches=micro_batches,
            qualify=[spec.run_id for spec in self.request.qualify],
        )
        if not job_groups:
            return []
        slow = {r for r in run_ids if any(f.kind == "timeout" for f in self.own.failures(r))}
        arrays = grouped_by_resources(job_groups, needs, table, slow=slow)
        hours = sum(each.gpus * g.seconds for each, groups in arrays for g in groups) / 3600
        used = gpu_hours(self.own.intents)
        is_known = all(map(is_timed, job_groups))
        refuse_over_cap(table, used, hours, self.options.usd_per_gpu_hour, is_known=is_known)
        if self._max_array_size is None:
            self._max_array_size = self.slurm.max_array_size()
        chunks = chunked(arrays, self._max_array_size)
        free = table.array_parallelism - sum(self._throttles().values())
        written = []
        shares = share_out(free, [len(chunk) for _, chunk in chunks])
        for (resources, chunk), share in zip(chunks, shares, strict=True):
            if share:
                intent = write_intent(
                    self.own.sweep_folder,
                    chunk,
                    throttle=share,
                    **asdict(resources),
                )
                self.own.add(intent)
                written.append(intent)
        return written

    def submit(self, intent: Intent) -> int:
        """Submit an array; return how many runs it holds, 0 if sbatch gave no job number.

        Raises
        ------
        UsageError
            If sbatch refuses the options.
        """
        results, folder = self.own.results.path.resolve(), self.own.sweep_folder.resolve()
        executor = make_executor(
            self.table,
            JobResources(gpus=intent.gpus, time_min=intent.time_min, memory_gb=intent.memory_gb),
            intent.path.resolve(),
            intent.job_name,
            n_elements=len(intent.job_groups),
            throttle=intent.throttle,
            python_path=frozen_source(results, folder) if self.table.snapshot else None,
            launcher=program_launcher(self.request.execution),
        )
        script = write_submission(executor, folder)
        try:
            job_id = submit(executor, script)
        except (FailedJobError, FailedSubmissionError) as error:
            words = " ".join(str(error).split())
            if any(passing in words for passing in _PASSING_ERRORS):
                # The array may be in the queue: `Submissions` finds it by name or abandons it.
                self.own.notes.append(f"sbatch: {words}")
            elif self.own.abandon(intent):
                raise UsageError(
                    f"a job that sbatch refuses: {words}",
                    "options that this cluster accepts",
                    "Change a SLURM option, for example --partition gpu or --time-limit "
                    "4:00:00, or "
                    "[launcher.slurm] in the sweep file. No results were lost.",
                ) from None
            return 0
        intent.note_job(job_id, intent.throttle)
        n_jobs = plural(len(intent.job_groups), "job")
        self.own.notes.append(f"array {job_id} submitted: {n_jobs}")
        return sum(len(group.run_ids) for group in intent.job_groups)

    def balance(self) -> None:
        """Raise the limits of unfinished arrays by the share that ended arrays no longer use."""
        throttles = self._throttles()
        for intent in self.own.intents:
            job_id = self.own.job_of(intent)
            if intent.id not in throttles or job_id is None:
                continue
            now = throttles[intent.id]
            spare = self.table.array_parallelism - sum(throttles.values())
            wanted = min(now + spare, self.own.remaining(intent))
            if wanted > now and self.slurm.set_throttle(job_id, wanted):
                intent.note_job(job_id, wanted)
                throttles[intent.id] = wanted

    def cancel_held(self, queue: Queue) -> None:
        """Cancel jobs that SLURM holds forever after a failed launch; retries then apply."""
        held = [
            (job_id, index)
            for intent, index in self.own.open_elements()
            if (job_id := self.own.job_of(intent)) is not None
            and (job := queue.get((job_id, index))) is not None
            and job.is_held_by_slurm
        ]
        if held and self.slurm.cancel(held):
            self.own.notes += [
                f"job {job}_{index} was held by SLURM: cancelled" for job, index in held
            ]

    def _throttles(self) -> dict[str, int]:
        """Return how many elements of each unfinished array may run at once."""
        return {
            intent.id: min(intent.current_throttle(), left)
            for intent in self.own.intents
            if (left := self.own.remaining(intent))
        }
