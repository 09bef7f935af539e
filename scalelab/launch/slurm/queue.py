"""The SLURM queue: one ``squeue`` call for a whole sweep, at most every 2 seconds.

``sacct`` is not used, so that clusters without accounting work too.
"""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scalelab.errors import UsageError

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol")
QUEUE_INTERVAL_S = 2.0
COMMAND_TIMEOUT_S = 30.0
DEFAULT_MAX_ARRAY_SIZE = 1001
ENDED_STATES = (
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY"),
    *("PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REVOKED"),
)
"""States of a job that has ended; with any other state, known or not, it may still run."""

HELD_BY_SLURM = ("launch failed requeued held", "JobHoldMaxRequeue")
"""Reasons for which SLURM holds a job forever after failed launches."""

_FORMAT = "%F|%K|%T|%M|%r|%j"
_LINE = re.compile(
    r"(?P<job>\d+)\|(?P<index>\d+)\|(?P<state>[A-Z_]+)\+?\|(?P<elapsed>[\d:.-]+|INVALID)\|"
    r"(?P<reason>[^|]*)\|(?P<name>.+)"
)
_LONG_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")
_DURATION = re.compile(r"(?:(?P<d>\d+)-)?(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuedJob:
    """One element of a job array in the queue.

    Attributes
    ----------
    job_id : int
        Job number of the array.
    index : int
        Index of the element.
    state : str
        SLURM's state, such as ``PENDING`` or ``NODE_FAIL``.
    elapsed_s : float
        Run time since the last start, seconds.
    name : str
        The job's name.
    reason : str
        SLURM's reason for waiting.
    """

    job_id: int
    index: int
    state: str
    elapsed_s: float
    name: str
    reason: str = ""

    @property
    def is_held_by_slurm(self) -> bool:
        """Whether SLURM itself holds the job, so that it never starts."""
        return self.state == "PENDING" and self.reason in HELD_BY_SLURM

    @property
    def has_ended(self) -> bool:
        """Whether the job has ended."""
        return self.state in ENDED_STATES


Queue = Mapping[tuple[int, int], QueuedJob]
"""Array elements by job number and index."""


def parse_queue(text: str) -> dict[tuple[int, int], QueuedJob]:
    """Return the array elements in the output of ``squeue``; skip lines of another form.

    The name is the last field because names of other jobs may contain any character.
    """
    found = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is None:
            continue
        job = QueuedJob(
            job_id=int(match["job"]),
            index=int(match["index"]),
            state=match["state"],
            elapsed_s=_seconds(match["elapsed"]),
            name=match["name"],
            reason=match["reason"],
        )
        found[job.job_id, job.index] = job
    return found


def _seconds(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        return 0.0
    days, hours, minutes, seconds = (int(match[part] or 0) for part in "dhms")
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


class Slurm:
    """The commands of the cluster that ``PATH`` and ``SLURM_CONF`` name.

    Attributes
    ----------
    error : str
        Message of the last command that failed.
    """

    def __init__(self) -> None:
        self._asked_s = -QUEUE_INTERVAL_S
        self.error = ""

    @classmethod
    def here(cls) -> Slurm:
        """Return the cluster that this machine submits to.

        Raises
        ------
        UsageError
            If SLURM's commands are not on the ``PATH``.
        """
        missing = [command for command in COMMANDS if shutil.which(command) is None]
        if missing:
            raise UsageError(
                f"--launcher slurm on a machine without {', '.join(missing)} on PATH",
                "a machine that submits to a SLURM cluster",
                "Run on a login node of the cluster, or use --launcher local.",
            )
        return cls()

    def read_queue(self) -> dict[tuple[int, int], QueuedJob] | None:
        """Return this user's array elements, including ended ones that SLURM still lists.

        Waits until 2 seconds have passed since the last call. Returns None if the controller does
        not answer; an empty mapping means an empty queue.
        """
        time.sleep(max(self._asked_s + QUEUE_INTERVAL_S - time.monotonic(), 0))
        self._asked_s = time.monotonic()
        user = f"--user={getpass.getuser()}"
        answer = self._run(["squeue", user, "--states=all", "--array", "--noheader", "-o", _FORMAT])
        return None if answer is None else parse_queue(answer)

    def cancel(self, elements: Sequence[tuple[int, int]]) -> bool:
        """Cancel array elements; return whether the controller accepted."""
        if not elements:
            return True
        return self._run(["scancel", *(f"{job}_{index}" for job, index in elements)]) is not None

    def set_throttle(self, job_id: int, n_running: int) -> bool:
        """Set how many elements of an array run at once; return whether SLURM accepted."""
        words = ["scontrol", "update", f"jobid={job_id}", f"arraytaskthrottle={n_running}"]
        return self._run(words) is not None

    def max_array_size(self) -> int:
        """Return the cluster's exclusive upper bound of array indices."""
        answer = self._run(["scontrol", "show", "config"]) or ""
        match = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer, re.MULTILINE)
        return int(match[1]) if match else DEFAULT_MAX_ARRAY_SIZE

    def sbatch_options(self) -> frozenset[str]:
        """Return the long names of the options that sbatch lists, those of plugins included.

        Empty if there is no sbatch or it does not answer.
        """
        texts = [self._run(["sbatch", word]) or "" for word in ("--help", "--usage")]
        return frozenset(_LONG_OPTION.findall(" ".join(texts)))

    def _run(self, words: Sequence[str]) -> str | None:
        try:
            answer = subprocess.run(
                words, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=True
            )
        except subprocess.CalledProcessError as error:
            self.error = " ".join(error.stderr.split()) or f"{words[0]} failed"
        except (OSError, subprocess.SubprocessError) as error:
            self.error = str(error)
        else:
            return answer.stdout
        return None
