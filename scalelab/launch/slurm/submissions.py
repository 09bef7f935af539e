"""The submitted arrays of a sweep, with their state from the queue and the run folders."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from scalelab.launch.slurm.intents import ABANDONED, Intent, Outcome, read_intents
from scalelab.launch.slurm.queue import Queue, QueuedJob
from scalelab.launch.slurm.retries import JobFailure, classify, settled_state
from scalelab.records.run_dir import RunDir
from scalelab.records.sweep_dir import Results

SUBMISSION_GRACE_S = 15.0
ABANDONED_STATE = "ABANDONED"


class Submissions:
    """The arrays of one sweep.

    Parameters
    ----------
    results : Results
    sweep_folder : Path
        Folder of the sweep.
    is_owner : bool
        Whether this process launches the sweep; only the owner writes outcomes.
    """

    def __init__(self, results: Results, sweep_folder: Path, *, is_owner: bool) -> None:
        self.results = results
        self.sweep_folder = sweep_folder
        self.is_owner = is_owner
        self.intents: list[Intent] = []
        self.outcomes: dict[str, dict[int, Outcome]] = {}
        self.notes: list[str] = []
        self._jobs: dict[str, int] = {}
        self._seen: dict[tuple[str, int], tuple[str, float]] = {}
        self._words: dict[tuple[str, int], str] = {}
        self.reload()

    def reload(self) -> None:
        """Read the intents and outcomes that other processes have written since."""
        for intent in read_intents(self.sweep_folder):
            if intent.id not in self.outcomes:
                self.add(intent)
        if not self.is_owner:
            for intent in self.intents:
                self.outcomes[intent.id].update(intent.outcomes())

    def add(self, intent: Intent) -> None:
        """Add an intent."""
        self.intents.append(intent)
        self.outcomes[intent.id] = intent.outcomes()

    def remaining(self, intent: Intent) -> int:
        """Return the number of unfinished elements of an array."""
        return len(intent.job_groups) - len(self.outcomes[intent.id])

    def open_elements(self) -> Iterator[tuple[Intent, int]]:
        """Yield the elements that may be queued or running."""
        for intent in self.intents:
            ended = self.outcomes[intent.id]
            if len(ended) < len(intent.job_groups):
                yield from ((intent, i) for i in range(len(intent.job_groups)) if i not in ended)

    def unneeded_elements(
        self, cancelled: Collection[str], is_over: Callable[[str], bool]
    ) -> list[tuple[int, int]]:
        """Return job number and index of elements with a cancelled run whose runs are all over."""
        found = []
        for intent, index in self.open_elements():
            job_id, runs = self.job_of(intent), intent.job_groups[index].run_ids
            is_cancelled = any(run_id in cancelled for run_id in runs)
            if job_id is not None and is_cancelled and all(map(is_over, runs)):
                found.append((job_id, index))
        return found

    def live_runs(self) -> dict[str, str]:
        """Return the runs of unfinished elements, each ``queued`` or ``running``."""
        found = {}
        for intent, index in self.open_elements():
            word = self._words.get((intent.id, index), "PENDING")
            status = "running" if word == "RUNNING" else "queued"
            for run_id in intent.job_groups[index].run_ids:
                found[run_id] = status
        return found

    def job_of(self, intent: Intent) -> int | None:
        """Return an array's job number, or None if it is not known."""
        if intent.id not in self._jobs and (job_id := intent.job_id()) is not None:
            self._jobs[intent.id] = job_id
        return self._jobs.get(intent.id)

    def failures(self, run_id: str) -> list[JobFailure]:
        """Return the jobs of this sweep that ended without finishing the run, oldest first."""
        return [
            JobFailure(kind=outcome.kinds[run_id], step=outcome.steps[run_id])
            for intent in self.intents
            for outcome in self.outcomes[intent.id].values()
            if outcome.kinds.get(run_id, "finished") != "finished"
        ]

    def update(self, queue: Queue | None) -> None:
        """Update the elements from the queue; None (SLURM did not answer) changes nothing."""
        if queue is None:
            return
        by_name = {job.name: job.job_id for job in queue.values()}
        now = time.monotonic()
        ended: dict[str, list[Outcome]] = {}
        for intent, index in list(self.open_elements()):
            job_id = self.job_of(intent) or self._adopt(intent, by_name)
            if job_id is None:
                waited = now - self._since((intent.id, -1), "UNKNOWN", now)
                state, elapsed = None, 0.0
                # Only the owner abandons a submission that never appeared in the queue.
                if waited >= SUBMISSION_GRACE_S and (
                    intent.abandon() if self.is_owner else intent.verdict() == ABANDONED
                ):
                    state = ABANDONED_STATE
            else:
                job = queue.get((job_id, index))
                state = self._final_state(intent, index, job, now)
                elapsed = intent.job_groups[index].seconds if job is None else job.elapsed_s
            if state is not None:
                outcome = self._conclude(intent, index, state, elapsed)
                ended.setdefault(intent.id, []).append(outcome)
        for intent in self.intents:
            found = ended.get(intent.id, [])
            if self.is_owner:
                intent.append_outcomes(found)
            self.outcomes[intent.id].update({outcome.index: outcome for outcome in found})

    def abandon(self, intent: Intent) -> bool:
        """Abandon a submission that sbatch refused; return False if a job of it has started."""
        if not intent.abandon():
            return False
        found = [
            self._conclude(intent, i, ABANDONED_STATE, 0.0) for i in range(len(intent.job_groups))
        ]
        intent.append_outcomes(found)
        self.outcomes[intent.id] = {outcome.index: outcome for outcome in found}
        return True

    def _adopt(self, intent: Intent, by_name: Mapping[str, int]) -> int | None:
        job_id = by_name.get(intent.job_name)
        if job_id is not None:
            self._jobs[intent.id] = job_id
            if self.is_owner:
                intent.note_job(job_id, intent.throttle)
                self.notes.append(f"array {job_id} found in the queue by its name")
        return job_id

    def _since(self, key: tuple[str, int], word: str, now: float) -> float:
        if self._seen.get(key, ("", 0.0))[0] != word:
            self._seen[key] = (word, now)
        return self._seen[key][1]

    def _final_state(
        self, intent: Intent, index: int, job: QueuedJob | None, now: float
    ) -> str | None:
        key = (intent.id, index)
        word = "absent" if job is None else job.state
        before = self._words.get(key)
        is_news = word not in ("COMPLETED", "RUNNING", "absent", "COMPLETING", before)
        if is_news and (job is None or job.has_ended or before):
            was = f", was {before}" if before else ""
            self.notes.append(f"job {self._jobs[intent.id]}_{index} is {word}{was}")
        self._words[key] = word
        return settled_state(job, now - self._since(key, word, now))

    def _conclude(self, intent: Intent, index: int, state: str, elapsed_s: float) -> Outcome:
        kinds: dict[str, str] = {}
        steps: dict[str, int] = {}
        is_first = state != ABANDONED_STATE
        for run_id in intent.job_groups[index].run_ids:
            run = self.results.run(run_id)
            accepted = run.accept_finished() is not None
            note = None if accepted else own_note(run, intent.id, index)
            kinds[run_id] = classify(state, note, is_accepted=accepted, is_first=is_first)
            checkpoints = [] if accepted else run.checkpoints()
            steps[run_id] = checkpoints[0].step if checkpoints else 0
            is_first = is_first and accepted
            if not accepted and kinds[run_id] != "not_reached":
                end = f"its job ended with state {state} ({kinds[run_id]})"
                self.notes.append(f"{run_id} unfinished: {end}")
        return Outcome(
            index=index,
            state=state,
            elapsed_s=elapsed_s,
            ended_s=time.time(),
            kinds=kinds,
            steps=steps,
        )


def own_note(run: RunDir, intent_id: str, index: int) -> dict[str, object] | None:
    """Return the note of an array element's newest attempt at a run, or None."""
    notes = (attempt.read_note() for attempt in reversed(run.attempts()))
    own = (intent_id, index)
    return next((n for n in notes if (n.get("intent"), n.get("array_index")) == own), None)


def other_sweeps(results: Results, own: Path) -> Sequence[Path]:
    """Return the folders of other sweeps with submitted jobs."""
    folders = (path.parent for path in (results.path / "sweeps").glob("*/intents"))
    return [folder for folder in folders if folder != own]
