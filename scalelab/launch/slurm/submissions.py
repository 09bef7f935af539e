"""What is under way on the cluster: a sweep's arrays, by the queue and the run folders."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from scalelab.launch.slurm.intents import Intent, Outcome, read_intents
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
        Whose intents these are.
    is_owner : bool
        Whether this process launches that sweep; only then what is seen is written down.
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
        """Read the intents that others wrote since."""
        for intent in read_intents(self.sweep_folder):
            if intent.id not in self.outcomes:
                self.add(intent)
        if not self.is_owner:
            for intent in self.intents:
                self.outcomes[intent.id].update(intent.outcomes())

    def add(self, intent: Intent) -> None:
        """Take an intent into account."""
        self.intents.append(intent)
        self.outcomes[intent.id] = intent.outcomes()

    def remaining(self, intent: Intent) -> int:
        """Return how many elements of an array have not ended."""
        return len(intent.packs) - len(self.outcomes[intent.id])

    def open_elements(self) -> Iterator[tuple[Intent, int]]:
        """Yield the elements that may live."""
        for intent in self.intents:
            ended = self.outcomes[intent.id]
            if len(ended) < len(intent.packs):
                yield from ((intent, i) for i in range(len(intent.packs)) if i not in ended)

    def live_runs(self) -> dict[str, str]:
        """Return the runs that an open element holds, as ``queued`` or ``running``."""
        found = {}
        for intent, index in self.open_elements():
            word = self._words.get((intent.id, index), "PENDING")
            status = "running" if word == "RUNNING" else "queued"
            for run_id in intent.packs[index].run_ids:
                found[run_id] = status
        return found

    def job_of(self, intent: Intent) -> int | None:
        """Return an array's number where it is known."""
        if intent.id not in self._jobs:
            job_id = intent.job_id()
            if job_id is not None:
                self._jobs[intent.id] = job_id
        return self._jobs.get(intent.id)

    def failures(self, run_id: str) -> list[JobFailure]:
        """Return the jobs of this sweep that ended without the run's record, oldest first."""
        return [
            JobFailure(kind=outcome.kinds[run_id], step=outcome.steps[run_id])
            for intent in self.intents
            for outcome in self.outcomes[intent.id].values()
            if outcome.kinds.get(run_id, "finished") != "finished"
        ]

    def update(self, queue: Queue | None) -> None:
        """Take in what the queue shows; None, an unanswered call, changes nothing."""
        if queue is None:
            return
        by_name = {job.name: job.job_id for job in queue.values()}
        now = time.monotonic()
        ended: dict[str, list[Outcome]] = {}
        for intent, index in list(self.open_elements()):
            job_id = self.job_of(intent) or self._adopt(intent, by_name)
            if job_id is None:
                waited = now - self._since((intent.id, -1), "UNKNOWN", now)
                if waited >= SUBMISSION_GRACE_S and self._give_up(intent):
                    ended.setdefault(intent.id, []).append(
                        self._conclude(intent, index, ABANDONED_STATE, 0.0)
                    )
                continue
            job = queue.get((job_id, index))
            state = self._look_at(intent, index, job, now)
            if state is not None:
                elapsed = intent.packs[index].seconds if job is None else job.elapsed_s
                ended.setdefault(intent.id, []).append(
                    self._conclude(intent, index, state, elapsed)
                )
        for intent in self.intents:
            found = ended.get(intent.id, [])
            if self.is_owner:
                intent.append_outcomes(found)
            self.outcomes[intent.id].update({outcome.index: outcome for outcome in found})

    def abandon(self, intent: Intent) -> bool:
        """Give up a submission that sbatch refused; False when a job of it started nevertheless."""
        if not intent.abandon():
            return False
        found = [self._conclude(intent, i, ABANDONED_STATE, 0.0) for i in range(len(intent.packs))]
        intent.append_outcomes(found)
        self.outcomes[intent.id] = {outcome.index: outcome for outcome in found}
        return True

    def _adopt(self, intent: Intent, by_name: Mapping[str, int]) -> int | None:
        job_id = by_name.get(intent.job_name)
        if job_id is not None:
            self._jobs[intent.id] = job_id
            if self.is_owner:
                intent.note_job(job_id, intent.throttle)
                self.notes.append(f"array {job_id} adopted by its name")
        return job_id

    def _give_up(self, intent: Intent) -> bool:
        """Decide, once for all, that a submission which nobody saw never took place."""
        return intent.abandon() if self.is_owner else intent.verdict() == "abandoned"

    def _since(self, key: tuple[str, int], word: str, now: float) -> float:
        if self._seen.get(key, ("", 0.0))[0] != word:
            self._seen[key] = (word, now)
        return self._seen[key][1]

    def _look_at(self, intent: Intent, index: int, job: QueuedJob | None, now: float) -> str | None:
        key = (intent.id, index)
        word = "absent" if job is None else job.state
        if word != self._words.get(key) and (job is None or job.has_ended or key in self._words):
            self._note_change(intent, index, self._words.get(key), word)
        self._words[key] = word
        return settled_state(job, now - self._since(key, word, now))

    def _note_change(self, intent: Intent, index: int, before: str | None, word: str) -> None:
        name = f"{self._jobs[intent.id]}_{index}"
        if word not in ("COMPLETED", "RUNNING", "absent", "COMPLETING"):
            self.notes.append(f"job {name} is {word}" + (f", was {before}" if before else ""))

    def _conclude(self, intent: Intent, index: int, state: str, elapsed_s: float) -> Outcome:
        kinds: dict[str, str] = {}
        steps: dict[str, int] = {}
        is_first = state != ABANDONED_STATE
        for run_id in intent.packs[index].run_ids:
            run = self.results.run(run_id)
            accepted = run.accept_finished() is not None
            note = None if accepted else own_note(run, intent.id, index)
            kinds[run_id] = classify(state, note, is_accepted=accepted, is_first=is_first)
            checkpoints = [] if accepted else run.checkpoints()
            steps[run_id] = checkpoints[0].step if checkpoints else 0
            is_first = is_first and accepted
            if not accepted and kinds[run_id] != "not_reached":
                self.notes.append(f"{run_id} lost its job {state}: {kinds[run_id]}")
        return Outcome(
            index=index,
            state=state,
            elapsed_s=elapsed_s,
            ended_s=time.time(),
            kinds=kinds,
            steps=steps,
        )


def own_note(run: RunDir, intent_id: str, index: int) -> dict[str, object] | None:
    """Return the note of the newest attempt that an array element made at a run, None if none."""
    for attempt in reversed(run.attempts()):
        note = attempt.read_note()
        if (note.get("intent"), note.get("pack_index")) == (intent_id, index):
            return note
    return None


def other_sweeps(results: Results, own: Path) -> Sequence[Path]:
    """Return the folders of the other sweeps that have submitted something."""
    folders = (path.parent for path in (results.path / "sweeps").glob("*/intents"))
    return [folder for folder in folders if folder != own]
