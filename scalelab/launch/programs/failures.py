"""Why an attempt of a user's program ended without a result, and whether to try again."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

USAGE, OUT_OF_MEMORY, DIVERGED = "usage", "out_of_memory", "diverged"
EARLY_EXIT, NO_RESULT, RESUME_FAILED = "early_exit", "no_result", "resume_failed"
TIMEOUT, HUNG, EXCEPTION, INFRASTRUCTURE = "timeout", "hung", "exception", "infrastructure"
KINDS = (
    *(USAGE, OUT_OF_MEMORY, DIVERGED, EARLY_EXIT, NO_RESULT),
    *(RESUME_FAILED, TIMEOUT, HUNG, EXCEPTION, INFRASTRUCTURE),
)
USAGE_CODES = (2, 126, 127)
"""Exit codes of wrong arguments, a file that is not executable and a missing program."""
OUTSIDE_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
"""Signals that end a program from outside where scalelab did not send them."""
MOST_AT_ONE_CHECKPOINT = 2
TAIL_LINES = 10
TAIL_BYTES = 1 << 16
LONGEST_LINE = 300

_OUT_OF_MEMORY = re.compile(
    r"out of memory|outofmemoryerror|\bmemoryerror\b|cannot allocate memory"
    r"|can't allocate memory|cublas_status_alloc_failed|resource_exhausted|oom[- ]kill",
    re.IGNORECASE,
)
_INFRASTRUCTURE = re.compile(
    r"nccl (?:error|warn|watchdog)|nccl(?:system|remote|internal|unhandledcuda)\w*error"
    r"|collective operation timeout|uncorrectable ecc|\bxid\b.*\b\d+|gpu is lost"
    r"|fallen off the bus|stale file handle|input/output error|connection reset by peer"
    r"|node fail|slurmstepd: error|cudaerrordevicesunavailable|no route to host",
    re.IGNORECASE,
)
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How an attempt ended.

    Attributes
    ----------
    status : str
        ``done``, ``diverged``, ``preempted`` or ``failed``.
    kind : str
        One of `KINDS`; empty for a result or a stop that was asked for.
    reason : str
        In words; empty for ``done``.
    """

    status: str
    kind: str = ""
    reason: str = ""


def output_tail(path: Path) -> tuple[str, ...]:
    """Return the last lines of a program's output, as `plain_text` gives them."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - TAIL_BYTES, 0))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ()
    return tuple([line for line in plain_text(text).split("\n") if line][-TAIL_LINES:])


def plain_text(text: str) -> str:
    """Return output of a program without colours and control characters, in lines.

    Of a line that was rewritten with carriage returns, as progress bars do, the last version
    counts. Long lines are cut.
    """
    lines = []
    for line in _ANSI.sub("", text).split("\n"):
        last = line.rstrip("\r").rpartition("\r")[2]
        lines.append(_CONTROL.sub("", last).rstrip()[:LONGEST_LINE])
    return "\n".join(lines)


def failure_kind(code: int | None, tail: Sequence[str], *, has_row: bool, is_resumed: bool) -> str:
    """Return what the exit of a program means that scalelab did not stop, one of `KINDS`.

    Parameters
    ----------
    code : int or None
        Exit code, negative for a signal; None if its supervisor was killed.
    tail : sequence of str
        Last lines of its output.
    has_row : bool
        Whether this attempt showed a row.
    is_resumed : bool
        Whether it started from a checkpoint.
    """
    text = "\n".join(tail)
    if code is None or (code < 0 and -code in OUTSIDE_SIGNALS):
        return OUT_OF_MEMORY if _OUT_OF_MEMORY.search(text) else INFRASTRUCTURE
    if code in USAGE_CODES:
        return USAGE
    if code != 0 and _OUT_OF_MEMORY.search(text):
        return OUT_OF_MEMORY
    if code != 0 and _INFRASTRUCTURE.search(text):
        return INFRASTRUCTURE
    if not has_row:
        return RESUME_FAILED if is_resumed else USAGE
    return EARLY_EXIT if code == 0 else EXCEPTION


def code_words(code: int | None) -> str:
    """Return how a program ended, in words: ``exit code 1``, ``killed by SIGKILL``."""
    if code is None:
        return "its supervisor was killed"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def with_tail(sentence: str, tail: Sequence[str]) -> str:
    """Return a reason with the last lines of the program's output, in one line for tables."""
    # Python marks the place of an error with carets below the line.
    lines = [line.strip() for line in tail if line.strip(" ^~")]
    return sentence if not lines else f"{sentence}; its last output: {' | '.join(lines)}"


class RetryRule:
    """Decides after each failed attempt of a run whether to try again, and from where.

    An attempt that saved a new checkpoint may be continued. After two failures at one checkpoint
    the run starts afresh, once. Without a checkpoint, a failure is final.
    """

    def __init__(self) -> None:
        self._failures: dict[int, int] = {}
        self._has_restarted = False

    def next_start(self, kind: str, step: int | None) -> str:
        """Return ``resume``, ``fresh`` or ``none``.

        Parameters
        ----------
        kind : str
            How the attempt failed, one of `KINDS`.
        step : int or None
            Step of the newest checkpoint after it; None without one.
        """
        if kind in (USAGE, NO_RESULT, DIVERGED) or step is None:
            return "none"
        self._failures[step] = self._failures.get(step, 0) + 1
        if self._failures[step] < MOST_AT_ONE_CHECKPOINT:
            return "resume"
        if self._has_restarted:
            return "none"
        self._has_restarted = True
        self._failures.clear()
        return "fresh"
