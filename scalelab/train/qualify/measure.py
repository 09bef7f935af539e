"""Measuring a verdict: the cases of a qualification, in order of value, within a time limit.

The cases run in a child process. One that crashes or hangs rules its way out, and a new child runs
the others. What the limit leaves no time for is "not tried"; steps compiled by torch come
last, because they take long to compile.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scalelab.records.machine import SAFE_PATH
from scalelab.records.qualification import (
    NOT_TRIED,
    OK,
    RETRIED,
    fastest,
    kernel_class,
    kernel_status,
    shape_entry,
    way_of,
)
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec

LIMIT_S = 120.0
"""Longest time of a qualification."""
CASE_LIMIT_S = 45.0
"""Longest time of a case; a kernel that takes longer hangs. A compiled step has no such limit."""
START_LIMIT_S = 60.0
FAILED_STARTS = 2
"""A child that ends or hangs this often before its first answer is given up."""
TIME_LIMIT = "time limit"
NO_START = "the process that checks them does not start"
OUT_OF_MEMORY = "out of memory"
_SLICE_S = 0.25
_END_S = 2.0
_READ_BYTES = 1 << 16


class StoppedError(Exception):
    """The worker was asked to stop; the text says why."""


@dataclass(kw_only=True)
class Target:
    """One shape to qualify.

    Attributes
    ----------
    spec, n_runs
        The run, and how many of it share a step.
    ways : sequence of ExecutionSpec
        Candidates, best expected first, the plain reference included; empty to check kernels only.
    kernels : dict or None
        Entry of the kernels, if the verdict has one.
    tries : int
        How often the shape was measured, this time included.
    left_reason : str
        Why ways were not tried.
    candidates : dict
        Figures of the ways that were tried, by way.
    """

    spec: RunSpec
    n_runs: int
    ways: Sequence[ExecutionSpec]
    kernels: dict[str, Any] | None = None
    tries: int = 1
    left_reason: str = TIME_LIMIT
    candidates: dict[tuple[str, ...], dict[str, Any]] = field(default_factory=dict)

    @property
    def needs_kernels(self) -> bool:
        """Whether the kernels are to be checked: only they are, or a candidate uses them."""
        return not self.ways or any("triton" in (w.kernels, w.attention) for w in self.ways)

    def entry(self) -> dict[str, Any]:
        """Return the entry of the shape; what was not reached is "not tried"."""
        missing = {"status": NOT_TRIED, "reason": self.left_reason}
        found = [self.candidates.get(way_id(way), {**way_of(way), **missing}) for way in self.ways]
        is_whole = all(
            each["status"] not in RETRIED or each["reason"] == OUT_OF_MEMORY
            for each in found
            if each["step"] != "compiled"
        )
        return shape_entry(self.spec, self.n_runs, found, is_whole=is_whole, tries=self.tries)

    def kernel_entry(self, checks: list[dict[str, Any]]) -> dict[str, Any]:
        """Return an entry of the kernels that is not whole."""
        fields = {"class": kernel_class(self.spec, self.n_runs), "is_whole": False}
        return {**fields, "tries": self.tries, "checks": checks}


def measure(
    targets: Sequence[Target],
    execution: ExecutionSpec,
    *,
    limit_s: float = LIMIT_S,
    should_stop: Callable[[], str | None] | None = None,
) -> None:
    """Fill in the kernels and candidates of the targets, most valuable first.

    Parameters
    ----------
    targets : sequence of Target
        In order of value.
    execution : ExecutionSpec
        Device and threads of the child.
    limit_s : float
        The child is killed after this time, seconds.
    should_stop : callable
        Called a few times a second.

    Raises
    ------
    StoppedError
        When ``should_stop`` returned a text.
    """
    child = _Child(execution, time.monotonic() + limit_s, should_stop)
    with contextlib.closing(child):
        try:
            _measure_all(child, targets)
        except _OverError as over:
            for target in targets:
                target.left_reason = str(over)


def _measure_all(child: _Child, targets: Sequence[Target]) -> None:
    for target in targets:
        _measure_kernels(child, target)
        if target.ways:
            # The reference first: the others are compared with it.
            for way in dict.fromkeys((target.ways[-1], target.ways[0])):
                if way.step != "compiled":
                    _measure_way(child, target, way)
    for is_compiled in (False, True):
        for target in targets:
            for way in target.ways:
                if (way.step == "compiled") == is_compiled:
                    _measure_way(child, target, way)


def _measure_kernels(child: _Child, target: Target) -> None:
    if not target.needs_kernels or (target.kernels is not None and target.kernels["is_whole"]):
        return
    base = {"spec": asdict(target.spec), "n_runs": target.n_runs}
    listed = child.ask({"kind": "names", **base})
    checks: list[dict[str, Any]] = []
    target.kernels = entry = target.kernel_entry(checks)
    if "names" not in listed:
        checks.append({"op": "all kernels", "size": "all sizes", **listed, "status": "failed"})
        entry["is_whole"] = True
        return
    for index, (op, size) in enumerate(listed["names"]):
        found = child.ask({"kind": "kernel", "index": index, **base})
        checks.append({"op": op, "size": size, **found})
    entry["is_whole"] = all(check["status"] not in RETRIED for check in checks)


def _measure_way(child: _Child, target: Target, way: ExecutionSpec) -> None:
    if way_id(way) in target.candidates:
        return
    base = {"spec": asdict(target.spec), "n_runs": target.n_runs, "execution": asdict(way)}
    ruling = kernel_status(target.kernels, way_of(way))
    is_limited = way.step != "compiled"
    if ruling is not None:
        found = {"status": ruling[0], "reason": ruling[1]}
    else:
        found = child.ask({"kind": "step", **base}, is_limited=is_limited)
        if found["status"] == OK:
            best = fastest(target.candidates.values())
            against = next((asdict(w) for w in target.ways if way_of(w) == best), None)
            timed = child.ask({"kind": "speed", "against": against, **base}, is_limited=is_limited)
            found |= timed
    target.candidates[way_id(way)] = {**way_of(way), **found}


def way_id(way: ExecutionSpec | Mapping[str, Any]) -> tuple[str, ...]:
    """Return a way as a key."""
    return tuple(way_of(way).values())


class _OverError(Exception):
    """There is no time left, or no child that works; the text says which."""


class _Child:
    """The child process; started when it is needed, and again after it ended."""

    def __init__(
        self,
        execution: ExecutionSpec,
        deadline: float,
        should_stop: Callable[[], str | None] | None,
    ) -> None:
        self._execution = execution
        self._deadline = deadline
        self._should_stop = should_stop
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = -1
        self._buffer = b""
        self._n_failed_starts = 0

    def ask(self, request: dict[str, Any], *, is_limited: bool = True) -> dict[str, Any]:
        """Return the answer to a request; the end or the silence of the child is an answer too.

        Raises
        ------
        _OverError
            When the time is over, or the child cannot start.
        """
        self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # a broken pipe shows as an end, below
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        until = self._deadline
        if is_limited:
            until = min(until, time.monotonic() + CASE_LIMIT_S)
        answer = self._read(until)
        if answer is not None:
            if answer.get("status") == "crashed":
                self.close()
            return answer
        if time.monotonic() < until:
            self._process.kill()
            code = self._process.wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            self.close()
            return {"status": "crashed", "reason": f"its process ended with {how}"}
        self.close()
        if time.monotonic() >= self._deadline:
            raise _OverError(TIME_LIMIT)
        return {"status": "hung", "reason": f"no result within {CASE_LIMIT_S:.0f} s"}

    def close(self) -> None:
        """Kill the child."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        os.close(self._answers)

    def _start(self) -> None:
        while self._process is None:
            if time.monotonic() >= self._deadline:
                raise _OverError(TIME_LIMIT)
            if self._n_failed_starts >= FAILED_STARTS:
                raise _OverError(NO_START)
            self._answers, writer = os.pipe()
            self._buffer = b""
            words = (writer, self._execution.device, self._execution.n_threads)
            path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "scalelab.train.qualify.child", *map(str, words)],
                    stdin=subprocess.PIPE,
                    pass_fds=(writer,),
                    env={**os.environ, **SAFE_PATH, "PYTHONPATH": path},
                    start_new_session=True,
                )
            except OSError:
                os.close(self._answers)
                raise _OverError(NO_START) from None
            finally:
                os.close(writer)
            if self._read(min(time.monotonic() + START_LIMIT_S, self._deadline)) is None:
                self._n_failed_starts += 1
                self.close()

    def _read(self, until: float) -> dict[str, Any] | None:
        """Return the next answer; None at the end of the child or of the time."""
        while b"\n" not in self._buffer:
            if self._should_stop is not None and (reason := self._should_stop()) is not None:
                raise StoppedError(reason)
            left = until - time.monotonic()
            if left <= 0:
                return None
            if select.select([self._answers], [], [], min(left, _SLICE_S))[0]:
                part = os.read(self._answers, _READ_BYTES)
                if not part:
                    self._let_end()
                    return None
                self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _let_end(self) -> None:
        """Wait a moment for a child that closed its pipe, so that its own exit code is known."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
