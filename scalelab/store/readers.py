"""Read many runs in parallel: this process and up to three helper processes.

Reading is mostly Python code, which one process runs in one thread at a time. Helpers are started
as new processes, not forked, because the caller may have threads and locks (dashboard, notebook).
They do not import the main module of a script. A helper ends when its pipe closes, also when the
collector is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from scalelab.store.portions import Group, Portion, read_portion

if TYPE_CHECKING:
    import pyarrow as pa

RUNS_READ_TOGETHER = 250
ANSWER_BYTES = 1 << 20
"""Size of a helper's pipe: the limit for unprivileged processes, and several answers long."""
GROUPS_AHEAD = 2
"""Groups sent to a helper: the one that it reads, and the next."""
QUICKEST_GROUP_S = 0.02
"""Assumed time per group before the first measurement; many groups then start helpers at once."""
MAX_PROCESSES = 4
HELP_IS_WORTH_S = 0.5
"""Remaining reading time above which helpers are started; one starts in 0.2 s."""


def read_portions(runs: str, group: Group, *, max_rows: int) -> Iterator[Portion]:
    """Yield the new rows of these runs, portion by portion.

    Portions of one run are in order, others are not. If a helper fails, the other processes read
    its runs. Parameters are those of `scalelab.store.portions.read_portion`.
    """
    size = RUNS_READ_TOGETHER
    left = deque(group[i : i + size] for i in range(0, len(group), size))
    done: SimpleQueue[Portion | None] = SimpleQueue()
    with contextlib.ExitStack() as stack:
        n_helpers, n_at_work, own_s, n_own = _n_helpers(), 0, QUICKEST_GROUP_S, 1
        while True:
            if n_helpers and len(left) * own_s / n_own > HELP_IS_WORTH_S:
                for _ in range(n_helpers):
                    stack.enter_context(_helper(runs, max_rows, left, done))
                n_helpers, n_at_work = 0, n_helpers
            own = _next(left)
            if own is not None:
                started = time.perf_counter()
                portion = read_portion(runs, own, max_rows=max_rows)
                own_s, n_own = own_s + time.perf_counter() - started, n_own + 1
                if portion.rest:
                    left.append(portion.rest)
                yield portion
            elif not n_at_work:
                return
            for found in _taken(done, waits=own is None):
                if found is None:
                    n_at_work -= 1
                    continue
                if found.rest:
                    left.append(found.rest)
                yield found


def _n_helpers() -> int:
    return min(len(os.sched_getaffinity(0)), MAX_PROCESSES) - 1


def _next(left: deque[Group]) -> Group | None:
    try:
        return left.popleft()
    except IndexError:
        return None


def _taken(done: SimpleQueue[Portion | None], *, waits: bool) -> Iterator[Portion | None]:
    """Yield the answers of helpers; with ``waits``, wait for at least one."""
    try:
        if waits:
            yield done.get()
        while True:
            yield done.get_nowait()
    except Empty:
        return


@contextlib.contextmanager
def _helper(
    runs: str, max_rows: int, left: deque[Group], done: SimpleQueue[Portion | None]
) -> Iterator[None]:
    """Run a helper until no group is left; ``done`` gets None when it has ended."""
    requests, to_helper = Pipe(duplex=False)
    from_helper, answers = Pipe(duplex=False)
    with contextlib.suppress(AttributeError, OSError):
        # A complete answer fits into the pipe, so the helper continues before it is read.
        fcntl.fcntl(answers.fileno(), fcntl.F_SETPIPE_SZ, ANSWER_BYTES)
    fds = (requests.fileno(), answers.fileno())
    path = os.pathsep.join(entry for entry in sys.path if entry)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, *map(str, fds), runs, str(max_rows)],
        env={**os.environ, "PYTHONPATH": path},
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    requests.close()
    answers.close()
    thread = threading.Thread(target=_drive, args=(to_helper, from_helper, left, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        process.kill()
        process.wait()
        thread.join()
        to_helper.close()
        from_helper.close()


def _drive(
    to_helper: Connection,
    from_helper: Connection,
    left: deque[Group],
    done: SimpleQueue[Portion | None],
) -> None:
    """Send groups to a helper, one ahead, so that it never waits for this process."""
    at_work: deque[Group] = deque()
    try:
        while True:
            while len(at_work) < GROUPS_AHEAD and (group := _next(left)) is not None:
                if at_work and any(earlier for _, earlier in group):
                    # A long request could fill the pipe and block both ends: send it later.
                    left.appendleft(group)
                    break
                at_work.append(group)
                to_helper.send(group)
            if not at_work:
                break
            answer: Portion = from_helper.recv()
            at_work.popleft()
            done.put(replace(answer, tables={n: _from_bytes(t) for n, t in answer.tables.items()}))
    except (EOFError, OSError):
        # The helper died or did not start: the other processes read its groups.
        left.extend(at_work)
    done.put(None)


def _serve(requests: int, answers: int, runs: str, max_rows: int) -> None:
    """Answer groups with portions until the other end closes; main function of a helper."""
    with (
        Connection(requests, writable=False) as asked,
        Connection(answers, readable=False) as answered,
        contextlib.suppress(EOFError, OSError),
    ):
        while True:
            portion = read_portion(runs, asked.recv(), max_rows=max_rows)
            encoded: dict[str, Any] = {n: _to_bytes(t) for n, t in portion.tables.items()}
            answered.send(replace(portion, tables=encoded))


def _to_bytes(table: pa.Table) -> bytes:
    """Return a table as bytes, ten times as fast as pickling its columns."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded


def _from_bytes(data: Any) -> pa.Table:
    import pyarrow as pa

    with pa.ipc.open_stream(data) as stream:
        return stream.read_all()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
