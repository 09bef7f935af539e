"""What was, or is about to be, submitted: written before ``sbatch``, so that no crash loses it.

::

    sweeps/<name>/packs/<intent>-<index>.json   the runs of one array element, and how to train them
    sweeps/<name>/intents/<intent>/intent.json  an array: its elements, written before sbatch
    sweeps/<name>/intents/<intent>/verdict      linked once: `started JOB` or `abandoned`
    sweeps/<name>/intents/<intent>/job.json     the array's number, once sbatch or the queue told it
    sweeps/<name>/intents/<intent>/outcomes.jsonl  how each element ended

The job is named by the intent. A launcher that died around ``sbatch`` is succeeded by one that
finds the job by that name, or by the verdict; whether a submission that nobody saw counts is
decided once, by whoever links the verdict first.
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
from scalelab.sweep.run_spec import ExecutionSpec, build

INTENT_SCHEMA = 1
JOB_NAME_PREFIX = "scalelab."
ABANDONED = "abandoned"


@dataclass(frozen=True, kw_only=True, slots=True)
class JobGroup:
    """Runs that one job trains one after the other.

    Attributes
    ----------
    run_ids : tuple of str
        In this order.
    execution : ExecutionSpec
        How to execute each.
    seconds : float
        What they are expected to take together.
    """

    run_ids: tuple[str, ...]
    execution: ExecutionSpec
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How one element of an array ended.

    Attributes
    ----------
    index : int
        Of the element.
    state : str
        SLURM's last word; ``GONE`` when the queue no longer knew it, ``ABANDONED`` when the
        submission never took place.
    elapsed_s : float
        Seconds that it ran.
    ended_s : float
        Unix time at which it was noticed.
    kinds : Mapping[str, str]
        What it meant for each of its runs, one of `scalelab.launch.slurm.retries.KINDS`.
    steps : Mapping[str, int]
        Furthest checkpoint of each run then.
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
        Its folder.
    created_s : float
        Unix time.
    packs : tuple of JobGroup
        One an element.
    throttle : int
        Elements that may run at once.
    gpus : int
        GPUs of an element.
    time_min : int
        Time limit of an element, minutes.
    """

    path: Path
    created_s: float
    packs: tuple[JobGroup, ...]
    throttle: int
    gpus: int
    time_min: int

    @property
    def id(self) -> str:
        """Name of the folder."""
        return self.path.name

    @property
    def job_name(self) -> str:
        """Name that the array carries in the queue."""
        return f"{JOB_NAME_PREFIX}{self.id}"

    def job_id(self) -> int | None:
        """Return the array's number where it is known."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads((self.path / "job.json").read_text())["job_id"])
        word, _, number = self.verdict().partition(" ")
        return int(number) if word == "started" and number.isdecimal() else None

    def note_job(self, job_id: int, throttle: int) -> None:
        """Write down the array's number, and how many of its elements may run at once."""
        content = json.dumps({"job_id": job_id, "throttle": throttle})
        write_atomically(self.path / "job.json", content, durable=True)

    def current_throttle(self) -> int:
        """Return how many elements may run at once, as last told to SLURM."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads((self.path / "job.json").read_text())["throttle"])
        return self.throttle

    def verdict(self) -> str:
        """Return ``started JOB``, ``abandoned``, or nothing yet."""
        return read_verdict(self.path)

    def abandon(self) -> bool:
        """Decide that this submission never took place; False when a job of it has started."""
        return settle(self.path, ABANDONED) == ABANDONED

    def outcomes(self) -> dict[int, Outcome]:
        """Return how elements ended, those that have."""
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for line in (self.path / "outcomes.jsonl").read_text().splitlines():
                with contextlib.suppress(ValueError, TypeError):
                    outcome = Outcome(**json.loads(line))
                    found[outcome.index] = outcome
        return found

    def append_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Write down how elements ended; only the sweep's launcher does."""
        if outcomes:
            text = "".join("\n" + json.dumps(asdict(outcome)) for outcome in outcomes)
            with (self.path / "outcomes.jsonl").open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    def open_elements(self) -> list[int]:
        """Return the elements that have not ended, as far as is written down."""
        ended = self.outcomes()
        return [index for index in range(len(self.packs)) if index not in ended]


def settle(folder: Path, verdict: str) -> str:
    """Write an intent's verdict unless there is one; return the one that holds.

    The content is linked into place, so that it is never seen empty.
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
    """Return an intent's verdict, empty when there is none yet."""
    try:
        return (folder / "verdict").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def write_intent(
    sweep_folder: Path, packs: Sequence[JobGroup], *, throttle: int, gpus: int, time_min: int
) -> Intent:
    """Write down an array that is about to be submitted, its packs first."""
    name = f"{sweep_folder.name}.{secrets.token_hex(4)}"
    folder = sweep_folder / "intents" / name
    pack_folder = sweep_folder / "packs"
    for made in (folder, pack_folder):
        made.mkdir(parents=True, exist_ok=True)
    intent = Intent(
        path=folder,
        created_s=time.time(),
        packs=tuple(packs),
        throttle=throttle,
        gpus=gpus,
        time_min=time_min,
    )
    for index, pack in enumerate(packs):
        text = json.dumps({"schema": INTENT_SCHEMA, **asdict(pack)}, indent=1)
        (pack_folder / f"{name}-{index}.json").write_text(text, encoding="utf-8")
    content = {
        "schema": INTENT_SCHEMA,
        "created_s": intent.created_s,
        "throttle": throttle,
        "gpus": gpus,
        "time_min": time_min,
        "packs": [asdict(pack) for pack in packs],
    }
    write_atomically(folder / "intent.json", json.dumps(content), durable=True)
    return intent


def read_intents(sweep_folder: Path) -> list[Intent]:
    """Return a sweep's intents, oldest first.

    A folder whose ``intent.json`` was never written was never submitted, and is passed over.
    """
    found = []
    for path in (sweep_folder / "intents").glob("*/intent.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found.append(
                Intent(
                    path=path.parent,
                    created_s=content["created_s"],
                    packs=tuple(_job_group_from(item) for item in content["packs"]),
                    throttle=content["throttle"],
                    gpus=content["gpus"],
                    time_min=content["time_min"],
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SpecError(
                f"intent {path}: {error}",
                "what the launcher wrote before it submitted",
                "Undo the edit; if the job is not in the queue, remove the intent's folder.",
            ) from None
    return sorted(found, key=lambda intent: (intent.created_s, intent.id))


def read_job_group(sweep_folder: Path, intent_id: str, index: int) -> JobGroup:
    """Return the pack of one array element.

    Raises
    ------
    SpecError
        When it is missing or was edited into something else.
    """
    path = sweep_folder / "packs" / f"{intent_id}-{index}.json"
    try:
        return _job_group_from(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(
            f"pack {path}: {error}", "what the launcher wrote", "Launch the sweep again."
        ) from None


def _job_group_from(content: Mapping[str, Any]) -> JobGroup:
    return JobGroup(
        run_ids=tuple(content["run_ids"]),
        execution=build(ExecutionSpec, content["execution"]),
        seconds=float(content["seconds"]),
    )
