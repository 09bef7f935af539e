"""Share the reading of many runs among processes: this one, and helpers that live as long.

Reading is nearly all Python, of which a process runs one thread at a time. A helper is a process
of its own making and not a fork, so that it may be started from one with threads and locks (the
page, a notebook), and it never sees the main module of a script. It answers over a pipe and ends
when that closes: also when the collector is killed.
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
"""Of a helper's pipe; what an unprivileged process may ask for, and several times what it says."""
GROUPS_AHEAD = 2
"""Groups that a helper has: the one that it reads, and the next."""
QUICKEST_GROUP_S = 0.02
"""What reading a group takes at least: so many may be left that help is worth it from the start."""
MAX_PROCESSES = 4
HELP_IS_WORTH_S = 0.5
"""Helpers are started when this process alone would still read for so long; one starts in 0.2 s."""


def read_portions(runs: str, group: Group, *, max_rows: int) -> Iterator[Portion]:
    """Yield what these runs add to the tables, portion by portion, in any order.

    The portions of one run come in order. A helper that fails is done without.

    Parameters
    ----------
    runs : str
        The folder with the run folders.
    group : Group
        The runs to read.
    max_rows : int
        Most rows of curves in a portion, about.
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
    """Yield what helpers have ready; wait for one answer where there is nothing else to do."""
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
    """Keep a helper at work until nothing is left; ``done`` gets None when it has ended."""
    requests, to_helper = Pipe(duplex=False)
    from_helper, answers = Pipe(duplex=False)
    with contextlib.suppress(AttributeError, OSError):
        # A whole answer fits, so that the helper goes on before this process comes to read it.
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
    """Hand groups to a helper, the next one while it reads: it never waits for this process."""
    at_work: deque[Group] = deque()
    try:
        while True:
            while len(at_work) < GROUPS_AHEAD and (group := _next(left)) is not None:
                if at_work and any(earlier for _, earlier in group):
                    # Not bare names: both ends could wait, with more to say than the pipe takes.
                    left.appendleft(group)
                    break
                at_work.append(group)
                to_helper.send(group)
            if not at_work:
                break
            answer: Portion = from_helper.recv()
            at_work.popleft()
            done.put(replace(answer, tables={n: _unpacked(t) for n, t in answer.tables.items()}))
    except (EOFError, OSError):
        # It died, or never started: whoever is left reads these.
        left.extend(at_work)
    done.put(None)


def _serve(requests: int, answers: int, runs: str, max_rows: int) -> None:
    """Answer groups with portions until the other end closes: the main function of a helper."""
    with (
        Connection(requests, writable=False) as asked,
        Connection(answers, readable=False) as answered,
        contextlib.suppress(EOFError, OSError),
    ):
        while True:
            portion = read_portion(runs, asked.recv(), max_rows=max_rows)
            packed: dict[str, Any] = {n: _packed(t) for n, t in portion.tables.items()}
            answered.send(replace(portion, tables=packed))


def _packed(table: pa.Table) -> bytes:
    """Return a table as bytes: a tenth of the time that pickling each of its columns takes."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def _unpacked(data: Any) -> pa.Table:
    import pyarrow as pa

    with pa.ipc.open_stream(data) as stream:
        return stream.read_all()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
