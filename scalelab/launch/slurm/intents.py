"""Intents: the arrays of a sweep, written before ``sbatch`` so that no crash loses one.

::

    sweeps/<name>/job_groups/<intent>-<index>.json  runs of one array element and their execution
    sweeps/<name>/intents/<intent>/intent.json      an array and its elements, written before sbatch
    sweeps/<name>/intents/<intent>/verdict          linked once: `started JOB` or `abandoned`
    sweeps/<name>/intents/<intent>/job.json         the array's job number, once it is known
    sweeps/<name>/intents/<intent>/outcomes.jsonl   how each element ended

The intent's id is part of the job name. After a launcher died around ``sbatch``, the next one finds
the job by that name or by the verdict. The first process to link the verdict decides whether an
unseen submission counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scalelab.errors import SpecError
from scalelab.records.files import write_atomically
from scalelab.sweep.execution import ExecutionSpec, execution_from_mapping

INTENT_SCHEMA = 1
JOB_NAME_PREFIX = "scalelab."
ABANDONED = "abandoned"


@dataclass(frozen=True, kw_only=True, slots=True)
class JobGroup:
    """Runs that one job trains.

    Attributes
    ----------
    run_ids : tuple of str
        In the order of training.
    execution : ExecutionSpec
        How to execute each run.
    seconds : float
        Expected training time of all runs together, seconds.
    qualify : tuple of str
        Runs at whose shapes a job qualifies its GPU (`QualifyRequest`).
    """

    run_ids: tuple[str, ...]
    execution: ExecutionSpec
    seconds: float
    qualify: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How one element of an array ended.

    Attributes
    ----------
    index : int
        Index of the element.
    state : str
        SLURM's last state; ``GONE`` if the element left the queue unseen, ``ABANDONED`` if it was
        never submitted.
    elapsed_s : float
        Run time, seconds.
    ended_s : float
        Unix time at which the launcher saw the end.
    kinds : Mapping[str, str]
        Consequence for each run, one of `scalelab.launch.slurm.retries.KINDS`.
    steps : Mapping[str, int]
        Step of each run's latest checkpoint at that time.
    """

    index: int
    state: str
    elapsed_s: float
    ended_s: float
    kinds: Mapping[str, str]
    steps: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Intent:
    """An array that was or will be submitted.

    Attributes
    ----------
    path : Path
        Folder of the intent.
    created_s : float
        Unix time.
    job_groups : tuple of JobGroup
        One per element.
    throttle : int
        Elements that may run at once.
    gpus : int
        GPUs per element.
    time_min : int
        Time limit of an element, minutes.
    memory_gb : float
        Memory of an element on each node; 0 is all of it.
    """

    path: Path
    created_s: float
    job_groups: tuple[JobGroup, ...]
    throttle: int
    gpus: int
    time_min: int
    memory_gb: float = 0.0

    @property
    def id(self) -> str:
        """Name of the intent's folder."""
        return self.path.name

    @property
    def job_name(self) -> str:
        """Name of the array in the queue."""
        return f"{JOB_NAME_PREFIX}{self.id}"

    def job_id(self) -> int | None:
        """Return the array's job number, or None if it is not known."""
        if (job_id := self._job_value("job_id")) is not None:
            return job_id
        word, _, number = self.verdict().partition(" ")
        return int(number) if word == "started" and number.isdecimal() else None

    def note_job(self, job_id: int, throttle: int) -> None:
        """Save the array's job number and how many of its elements may run at once."""
        content = json.dumps({"job_id": job_id, "throttle": throttle})
        write_atomically(self.path / "job.json", content, durable=True)

    def current_throttle(self) -> int:
        """Return how many elements may run at once, as last set in SLURM."""
        throttle = self._job_value("throttle")
        return self.throttle if throttle is None else throttle

    def _job_value(self, name: str) -> int | None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads((self.path / "job.json").read_text())[name])
        return None

    def verdict(self) -> str:
        """Return ``started JOB``, ``abandoned``, or an empty string if undecided."""
        return read_verdict(self.path)

    def abandon(self) -> bool:
        """Decide that this submission does not count; return False if a job has started."""
        return settle(self.path, ABANDONED) == ABANDONED

    def outcomes(self) -> dict[int, Outcome]:
        """Return the outcomes of the elements that have ended, by index."""
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for line in (self.path / "outcomes.jsonl").read_text().splitlines():
                with contextlib.suppress(ValueError, TypeError):
                    outcome = Outcome(**json.loads(line))
                    found[outcome.index] = outcome
        return found

    def append_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Append outcomes; only the sweep's launcher calls this."""
        if outcomes:
            text = "".join("\n" + json.dumps(asdict(outcome)) for outcome in outcomes)
            with (self.path / "outcomes.jsonl").open("a", encoding="utf-8") as file:
                file.write(text + "\n")


def settle(folder: Path, verdict: str) -> str:
    """Write an intent's verdict if it has none; return the verdict that holds.

    The file is linked into place complete, so that no reader sees it empty.
    """
    partial = folder / f".verdict.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        write_atomically(partial, verdict, durable=True)
        with contextlib.suppress(FileExistsError):
            os.link(partial, folder / "verdict")
    finally:
        partial.unlink(missing_ok=True)
    return read_verdict(folder)


def read_verdict(folder: Path) -> str:
    """Return an intent's verdict; empty if there is none yet."""
    try:
        return (folder / "verdict").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def write_intent(
    sweep_folder: Path,
    job_groups: Sequence[JobGroup],
    *,
    throttle: int,
    gpus: int,
    time_min: int,
    memory_gb: float,
) -> Intent:
    """Write the job groups, then the intent, of an array that is about to be submitted."""
    name = f"{sweep_folder.name}.{secrets.token_hex(4)}"
    folder = sweep_folder / "intents" / name
    group_folder = sweep_folder / "job_groups"
    for made in (folder, group_folder):
        made.mkdir(parents=True, exist_ok=True)
    intent = Intent(
        path=folder,
        created_s=time.time(),
        job_groups=tuple(job_groups),
        throttle=throttle,
        gpus=gpus,
        time_min=time_min,
        memory_gb=memory_gb,
    )
    for index, job_group in enumerate(job_groups):
        text = json.dumps({"schema": INTENT_SCHEMA, **asdict(job_group)}, indent=1)
        (group_folder / f"{name}-{index}.json").write_text(text, encoding="utf-8")
    content = {
        "schema": INTENT_SCHEMA,
        "created_s": intent.created_s,
        "throttle": throttle,
        "gpus": gpus,
        "time_min": time_min,
        "memory_gb": memory_gb,
        "job_groups": [asdict(job_group) for job_group in job_groups],
    }
    write_atomically(folder / "intent.json", json.dumps(content), durable=True)
    return intent


def read_intents(sweep_folder: Path) -> list[Intent]:
    """Return a sweep's intents, oldest first.

    A folder without ``intent.json`` was never submitted and is skipped.
    """
    found = []
    for path in (sweep_folder / "intents").glob("*/intent.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found.append(
                Intent(
                    path=path.parent,
                    created_s=content["created_s"],
                    job_groups=tuple(_job_group_from(item) for item in content["job_groups"]),
                    **{name: content[name] for name in ("throttle", "gpus", "time_min")},
                    # Intents of scalelab 0.1 do not have it.
                    memory_gb=content.get("memory_gb", 0.0),
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SpecError(
                f"intent {path}: {error}",
                "the file as the launcher wrote it before sbatch",
                "Undo the edit. If the job is not in the queue, delete the folder of the intent.",
            ) from None
    return sorted(found, key=lambda intent: (intent.created_s, intent.id))


def read_job_group(sweep_folder: Path, intent_id: str, index: int) -> JobGroup:
    """Return the job group of one array element.

    Raises
    ------
    SpecError
        If its file is missing or was edited.
    """
    path = sweep_folder / "job_groups" / f"{intent_id}-{index}.json"
    try:
        return _job_group_from(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(
            f"job group {path}: {error}",
            "the file as the launcher wrote it",
            f"Launch the sweep again: scalelab resume {sweep_folder.name}",
        ) from None


def _job_group_from(content: Mapping[str, Any]) -> JobGroup:
    return JobGroup(
        run_ids=tuple(content["run_ids"]),
        execution=execution_from_mapping(content["execution"]),
        seconds=float(content["seconds"]),
        qualify=tuple(content.get("qualify", ())),
    )
