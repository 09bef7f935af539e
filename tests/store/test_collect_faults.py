"""Killed and concurrent collectors, and readers that never wait for them."""

import errno
import fcntl
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scalelab.errors import DataError
from scalelab.store import live
from scalelab.store.collect import collect
from scalelab.store.live import open_snapshot

# A process that collects in small transactions until it is killed.
COLLECTOR = """
import sys
from pathlib import Path
from scalelab.store import collect
collect.RUNS_IN_A_TRANSACTION = 3
collect.ROWS_IN_A_TRANSACTION = 40
print("ready", flush=True)
while True:
    collect.collect(Path(sys.argv[1]))
    print("collected", flush=True)
"""


def start_collector(results):
    process = subprocess.Popen(
        [sys.executable, "-c", COLLECTOR, str(results)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def kill_while_collecting(make, tables_of, n_kills):
    """Kill the collector repeatedly while runs grow; the snapshot is always complete."""
    choose = random.Random(20)
    attempts = {}
    for kill in range(n_kills):
        process = start_collector(make.path)
        deadline = time.monotonic() + choose.uniform(0.0, 0.12)
        while time.monotonic() < deadline:
            seed = choose.randrange(12)
            if seed not in attempts:
                attempts[seed] = [make.attempt(make.run(seed), []), 0]
            attempt, step = attempts[seed]
            attempt.append_metrics([make.row(step + k) for k in range(1, 30)])
            attempts[seed][1] = step + 29
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if kill % 7 == 3:
            make.finish(attempts[seed][0])
            del attempts[seed]
            make.done(seed=100 + kill)
            make.sweep("s", [make.run(100 + kill)])
    n_lines = sum(
        path.read_bytes().count(b"\n")
        for path in (make.path / "runs").glob("*/attempts/*/metrics.jsonl")
    )
    collect(make.path)
    with open_snapshot(make.path) as connection:
        found = connection.execute(
            "SELECT count(*), count(DISTINCT (run_id, attempt, step)) FROM attempt_metrics"
        ).fetchall()
        runs = connection.execute("SELECT count(*), count(DISTINCT run_id) FROM runs").fetchall()
    assert found == [(n_lines, n_lines)]
    assert runs[0][0] == runs[0][1] == len(list((make.path / "runs").iterdir()))
    before = tables_of(make.path)
    for name in (live.LIVE_FILE, live.SNAPSHOT_FILE):
        (make.path / name).unlink()
    collect(make.path)
    assert tables_of(make.path) == before


def test_a_killed_collector_loses_and_duplicates_nothing(make, tables_of):
    kill_while_collecting(make, tables_of, n_kills=8)


@pytest.mark.slow
def test_sixty_killed_collectors_lose_and_duplicate_nothing(make, tables_of):
    kill_while_collecting(make, tables_of, n_kills=60)


def test_a_collector_killed_before_publishing_is_completed_by_the_next(make, monkeypatch):
    make.done(1)
    collect(make.path)
    make.done(2)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(live, "publish", die)
        with pytest.raises(KeyboardInterrupt):
            collect(make.path)
    report = collect(make.path)
    assert (report.runs_new, report.is_published) == (0, True)
    with open_snapshot(make.path) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchall() == [(2,)]


@pytest.mark.parametrize("name", [live.SNAPSHOT_FILE, live.LIVE_FILE])
def test_a_folder_instead_of_a_database_is_an_error(make, name):
    make.done()
    (make.path / name).mkdir()
    with pytest.raises(DataError, match=rf"{name}, which is a folder"):
        collect(make.path)


def test_an_unreadable_curve_skips_only_its_run(make):
    make.done(1)
    run = make.done(2)
    (curve,) = run.path.glob("attempts/*/metrics.jsonl")
    curve.unlink()
    curve.mkdir()
    report = collect(make.path)
    assert report.runs == 1
    assert f"run {run.run_id} not updated" in report.problems[0]
    curve.rmdir()
    assert collect(make.path).runs == 2


def test_a_full_disk_at_the_end_of_a_collection_is_an_error(make, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    make.done()
    monkeypatch.setattr(live, "publish", fail)
    with pytest.raises(DataError, match=r"tables cannot be written \(No space"):
        collect(make.path)


def test_a_partial_snapshot_is_overwritten(make):
    left = make.path / f".scalelab-publish-{os.uname().nodename}.duckdb"
    left.write_bytes(b"half")
    make.done()
    collect(make.path)
    assert not left.exists()


def test_a_full_disk_while_publishing_leaves_the_old_snapshot(make, tables_of):
    make.done(1)
    collect(make.path)
    before = tables_of(make.path)
    make.done(2)
    size = (make.path / live.SNAPSHOT_FILE).stat().st_size

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
        try:
            live.publish(make.path, make.path)
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == errno.EFBIG
    assert tables_of(make.path) == before
    assert not list(make.path.glob(".scalelab-publish*"))


class TestLock:
    def test_a_second_collector_names_the_first(self, make):
        with (
            live.collector_lock(make.path),
            pytest.raises(DataError, match=rf"another collector.*process {os.getpid()}"),
        ):
            collect(make.path, wait_s=0.0)

    def test_it_waits_for_one_that_ends_soon(self, make):
        taken, release = threading.Event(), threading.Event()

        def hold():
            with live.collector_lock(make.path):
                taken.set()
                release.wait(100)

        thread = threading.Thread(target=hold)
        thread.start()
        taken.wait(100)
        threading.Timer(0.3, release.set).start()
        assert collect(make.path, wait_s=20.0).is_published
        thread.join()

    def test_a_dead_process_releases_the_lock(self, make):
        process = start_collector(make.path)
        process.kill()
        process.wait()
        process.stdout.close()
        collect(make.path, wait_s=0.0)

    def test_a_file_system_without_locks_is_an_error(self, make, monkeypatch):
        def refuse(*_):
            raise OSError(37, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
        with pytest.raises(DataError, match=r"cannot lock files.*SCALELAB_LIVE_DIR"):
            collect(make.path)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_read_only_folder_is_an_error(self, make):
        make.path.chmod(0o555)
        try:
            with pytest.raises(DataError, match="which cannot be written"):
                collect(make.path)
        finally:
            make.path.chmod(0o755)


# Sixteen processes that open the snapshot at least twice, and until the file `stop` exists. They
# are forked before DuckDB starts a thread.
READERS = """
import os, sys, time
from pathlib import Path
import duckdb
from scalelab.store.live import open_snapshot
results, stop = Path(sys.argv[1]), Path(sys.argv[2])

def poll():
    n = last = 0
    while n < 2 or not stop.exists():
        with open_snapshot(results) as connection:
            ((runs, rows),) = connection.execute(
                "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM attempt_metrics)"
            ).fetchall()
        assert rows == 4 * runs, f"half a collection: {runs} runs, {rows} rows"
        assert runs >= last, "an older snapshot after a newer one"
        last, n = runs, n + 1
        time.sleep(0.1)

children = []
for _ in range(16):
    child = os.fork()
    if child == 0:
        try:
            poll()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    children.append(child)
print("ready", flush=True)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


@pytest.mark.slow
def test_sixteen_polling_readers_see_only_complete_snapshots(make, tmp_path):
    make.done(0)
    collect(make.path)
    stop = tmp_path / "stop"
    readers = subprocess.Popen(
        [sys.executable, "-c", READERS, str(make.path), str(stop)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert readers.stdout.readline() == "ready\n"
    for seed in range(1, 5):
        make.done(seed)
        collect(make.path)
    time.sleep(1.0)
    stop.touch()
    _, errors = readers.communicate(timeout=200)
    assert (readers.returncode, errors) == (0, "")


def test_a_reader_in_the_collectors_process_sees_each_new_snapshot(make):
    """DuckDB shares one instance of a path within a process, which must not be outdated."""
    make.done(1)
    collect(make.path)
    old = open_snapshot(make.path)
    make.done(2)
    collect(make.path)
    with open_snapshot(make.path) as new:
        assert new.execute("SELECT count(*) FROM runs").fetchall() == [(2,)]
    assert old.execute("SELECT count(*) FROM runs").fetchall() == [(1,)]
    old.close()


def test_readers_cannot_write(make):
    make.done()
    collect(make.path)
    with open_snapshot(make.path) as connection, pytest.raises(Exception, match="read-only"):
        connection.execute("DELETE FROM runs")


def test_reading_before_a_collection_names_the_command_to_run(make):
    with pytest.raises(DataError, match=r"no runs.*scalelab sweep isoflop --budgets"):
        open_snapshot(make.path)
    make.run()
    with pytest.raises(DataError, match="scalelab collect"):
        open_snapshot(make.path)
    (make.path / live.SNAPSHOT_FILE).write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match="cannot be opened"):
        open_snapshot(make.path)


MOUNTS = """\
/dev/vda / ext4 rw 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
/dev/vdb /home/scratch xfs rw 0 0
lustre@tcp:/fs /my\\040data lustre rw 0 0
sshfs#x /mnt/far fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/results", None),
        ("/home/ann/results", "nfs4"),
        ("/home/scratch/results", None),
        ("/homely", None),
        ("/my data/results", "lustre"),
        ("/mnt/far", "fuse.sshfs"),
    ],
)
def test_a_network_file_system_is_detected_from_its_mount(path, kind):
    assert live.network_file_system(Path(path), MOUNTS) == kind
