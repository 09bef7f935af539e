"""Running cases in child processes, so that an error, a crash or a hang loses one case.

A lane is a place for one child, which runs case after case as long as it is healthy: importing
torch and creating a CUDA context takes seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpu_cases.case import Case

END_S = 5.0
"""Seconds in which an idle child must end before it is killed."""
Report = Callable[[Case, dict[str, Any]], None]


@dataclass(slots=True, eq=False)
class Lane:
    """A child and the case that it runs.

    Attributes
    ----------
    log : Path
        File that gets the output of its children.
    environment : Mapping
        Variables of its children.
    child : Popen or None
        The process, if there is one.
    case : Case or None
        What it runs.
    started_s, ends_s : float
        When the case began and when the child is killed, on the monotonic clock.
    log_start : int
        Size of the log when the case began.
    text : bytes
        Answer read so far.
    """

    log: Path
    environment: Mapping[str, str]
    child: subprocess.Popen[bytes] | None = None
    case: Case | None = None
    started_s: float = 0.0
    ends_s: float = 0.0
    log_start: int = 0
    text: bytes = b""

    def begin(self, case: Case, ends_s: float, *, is_tiny: bool) -> None:
        """Give the child a case; start a child if there is none."""
        if self.child is None or self.child.poll() is not None:
            self.end_child()
            with self.log.open("ab") as log:
                self.child = subprocess.Popen(
                    [sys.executable, "-m", "gpu_cases.child"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self.environment,
                    start_new_session=True,
                )
        self.case, self.started_s, self.text = case, time.monotonic(), b""
        self.ends_s = min(self.started_s + case.limit_s, ends_s)
        self.log_start = self.log.stat().st_size
        request = {"name": case.name, "call": case.call, "arguments": dict(case.arguments)}
        # A child that has just died shows as the end of its output.
        with contextlib.suppress(OSError):
            stdin = self._pipe("stdin")
            stdin.write(json.dumps({**request, "is_tiny": is_tiny}).encode() + b"\n")
            stdin.flush()

    def stdout(self) -> BinaryIO:
        """Return the pipe of the answers."""
        return self._pipe("stdout")

    def read(self) -> dict[str, Any] | None:
        """Return the answer to the case if it is complete, or how the child ended."""
        part = os.read(self.stdout().fileno(), 1 << 20)
        self.text += part
        if self.text.endswith(b"\n"):
            answer: dict[str, Any] = json.loads(self.text)
            if not answer.pop("is_usable"):
                self.end_child()
            return answer
        return None if part else self._crashed()

    def kill(self) -> dict[str, Any]:
        """End a case that takes too long."""
        self.end_child()
        said = f"; last output: {self._last_line()}" if self._last_line() else ""
        return {"status": "timed out", "reason": f"stopped after {self.seconds():.0f} s{said}"}

    def seconds(self) -> float:
        """Return how long the case has run."""
        return time.monotonic() - self.started_s

    def end_child(self) -> None:
        """End the child and what it started, which may be compilers."""
        if self.child is None:
            return
        if self.case is None:
            # An idle child ends by itself at the end of its input, and gives the device back.
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._pipe("stdin").close()
                self.child.wait(END_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        for name in ("stdin", "stdout"):
            # Closing flushes a request that the child did not read.
            with contextlib.suppress(OSError):
                self._pipe(name).close()
        self.child = None

    def _crashed(self) -> dict[str, Any]:
        assert self.child is not None
        code = self.child.wait()
        self.end_child()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return {"status": "crashed", "reason": f"the child ended by {how}; {self._last_line()}"}

    def _last_line(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self.log_start)
            lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def _pipe(self, name: str) -> BinaryIO:
        assert self.child is not None
        pipe: BinaryIO = getattr(self.child, name)
        return pipe


class Lanes:
    """Several lanes; a context manager that ends their children.

    Parameters
    ----------
    folder : Path
        Gets the output of the children, ``lane-0.log`` and so on.
    n_lanes : int
        Children at once.
    report : Callable
        Called with each case that ended and its answer: ``status``, ``wall_s``, and ``reason`` or
        ``figures``.
    environment : Mapping
        Variables of the children.
    is_tiny : bool
        Whether cases run at toy sizes.
    """

    def __init__(
        self,
        folder: Path,
        n_lanes: int,
        report: Report,
        *,
        environment: Mapping[str, str],
        is_tiny: bool,
    ) -> None:
        logs = [folder / f"lane-{index}.log" for index in range(n_lanes)]
        self._lanes = [Lane(log, environment) for log in logs]
        self._report, self._is_tiny = report, is_tiny

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *_: object) -> None:
        for lane in self._lanes:
            lane.end_child()

    def run(self, cases: Sequence[Case], deadline_s: float, *, is_alone: bool = False) -> None:
        """Run cases in order until a time on the monotonic clock.

        A case that then runs is stopped, and later ones are not started. With ``is_alone`` the
        cases run one at a time, and the other children end first.
        """
        lanes = self._lanes[:1] if is_alone else self._lanes
        for lane in self._lanes[len(lanes) :]:
            lane.end_child()
        todo = list(cases)
        while True:
            for lane in lanes:
                if lane.case is None and todo and time.monotonic() < deadline_s:
                    lane.begin(todo.pop(0), deadline_s, is_tiny=self._is_tiny)
            busy = [lane for lane in lanes if lane.case is not None]
            if not busy:
                break
            for lane, answer in _answers(busy):
                case, lane.case = lane.case, None
                assert case is not None
                self._report(case, {**answer, "wall_s": lane.seconds()})
        for case in todo:
            answer = {"status": "not run", "reason": "no time was left", "wall_s": 0.0}
            self._report(case, answer)


def _answers(busy: Sequence[Lane]) -> list[tuple[Lane, dict[str, Any]]]:
    """Wait until a case of a lane ends or exceeds its limit; return these lanes and answers."""
    with selectors.DefaultSelector() as selector:
        for lane in busy:
            selector.register(lane.stdout(), selectors.EVENT_READ, lane)
        wait_s = min(lane.ends_s for lane in busy) - time.monotonic()
        ready: list[Lane] = [key.data for key, _ in selector.select(max(wait_s, 0.0))]
    found = [(lane, lane.read()) for lane in ready]
    answers = [(lane, answer) for lane, answer in found if answer is not None]
    answered = [lane for lane, _ in answers]
    late = [lane for lane in busy if lane not in answered and time.monotonic() >= lane.ends_s]
    return [*answers, *((lane, lane.kill()) for lane in late)]
