"""Merges that are killed, that meet running or broken runs, or that must not begin."""

import json
import os
import signal
import subprocess
import sys

import pytest

from scalelab import api
from scalelab.cli.main import main
from scalelab.errors import DataError, UsageError
from scalelab.records.run_dir import RunDir
from scalelab.store.collect import collect
from scalelab.store.live import open_snapshot
from tests.store.merging import attempts_of, merge, two_folders

pytestmark = pytest.mark.usefixtures("without_waiting_for_the_disk")


def test_a_run_that_trains_now_is_not_changed_and_one_there_is_left_out(maker, tmp_path, capsys):
    from scalelab.records.machine import own_process

    laptop, cluster = two_folders(maker, tmp_path)
    alive = cluster.attempt(cluster.run(7))
    alive.write_note({**alive.read_note(), **own_process()})
    assert main(["merge", str(cluster.path), "--results", str(laptop.path)]) == 0
    assert "its newest attempt runs there; merge again" in capsys.readouterr().err
    assert laptop.run(7).attempts() == []
    assert laptop.run(7).newest_claim() == 0
    cluster.finish(alive)
    mine = laptop.attempt(laptop.run(7))
    mine.write_note({**mine.read_note(), **own_process()})
    with pytest.raises(UsageError, match="1 run that may train now"):
        api.merge(cluster.path, results=laptop.path)
    laptop.end(mine)
    api.merge(cluster.path, results=laptop.path)
    assert laptop.run(7).accepted().token == alive.token


@pytest.mark.parametrize("place", ["missing", ".", "inside", "empty"])
def test_what_is_no_other_results_folder_is_refused(maker, tmp_path, place):
    laptop, _ = two_folders(maker, tmp_path)
    laptop.done(1)
    (laptop.path / "inside").mkdir()
    (tmp_path / "empty").mkdir()
    folder = {".": laptop.path, "inside": laptop.path / "inside"}.get(place, tmp_path / place)
    with pytest.raises((UsageError, DataError)):
        api.merge(folder, results=laptop.path)


def test_a_broken_run_is_named_and_left_out(maker, tmp_path, capsys):
    laptop, cluster = two_folders(maker, tmp_path)
    broken, edited = cluster.done(1), cluster.done(2)
    (broken.path / "spec.json").write_text("{")
    content = json.loads((edited.path / "spec.json").read_text())
    (edited.path / "spec.json").write_text(json.dumps({**content, "lr": 0.5}))
    cluster.done(3)
    plan = api.merge(cluster.path, results=laptop.path)
    assert len(plan.left_out) == 2
    assert {p.name for p in (laptop.path / "runs").iterdir()} == {cluster.run(3).run_id}


# A merge that is killed within or just after the put that follows a number of them: there it waits.


MERGER = """
import sys, time
from pathlib import Path
from scalelab.records import merge
merge._WRITES_IN_A_BATCH = 2
put = merge._put
one, two = map(Path, sys.argv[1:3])
left = int(sys.argv[3])
def slowly(write, staged):
    global left
    put(write, staged)
    left -= 1
    print("put", flush=True)
    time.sleep(0.003 if left >= 0 else 600)
merge._put = slowly
plan = merge.plan_merge(one, two, prefer="ours")
print("planned", flush=True)
merge.apply_merge(one, plan)
"""


@pytest.mark.slow
def test_a_killed_merge_loses_nothing_and_the_next_one_ends_it(maker, tmp_path):
    laptop, cluster = two_folders(maker, tmp_path)
    for seed in range(12):
        cluster.done(seed, loss=1.5)
        if seed % 2:
            laptop.end(laptop.attempt(laptop.run(seed)))
    cluster.sweep("s", [cluster.run(seed) for seed in range(12)])
    before = attempts_of(laptop.path)
    whole = attempts_of(cluster.path)
    n_kills = 0
    for n_puts in (1, 2, 3, 5, 8, 13):
        process = subprocess.Popen(
            [sys.executable, "-c", MERGER, str(laptop.path), str(cluster.path), str(n_puts)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(n_puts + 1):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        n_kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
        found = attempts_of(laptop.path)
        for run_id, attempts in found.items():
            expected = {**before.get(run_id, {}), **whole[run_id]}
            assert attempts.items() <= expected.items()
            assert attempts.items() >= before.get(run_id, {}).items()
        collect(laptop.path)
        for name in (p.parent.name for p in (laptop.path / "sweeps").glob("*/plan.json")):
            assert name == "s"
            assert len(found) == 12
    assert n_kills >= 4
    merge(laptop.path, cluster.path)
    assert attempts_of(laptop.path) == {
        run_id: {**before.get(run_id, {}), **attempts} for run_id, attempts in whole.items()
    }
    assert all(RunDir(p).accepted() for p in (laptop.path / "runs").iterdir())
    assert [p.name for p in laptop.path.iterdir() if p.name.startswith(".scalelab-scratch")] == []
    collect(laptop.path)
    with open_snapshot(laptop.path) as connection:
        query = "SELECT count(*), min(loss_nats), max(loss_nats) FROM runs"
        assert connection.execute(query).fetchall() == [(12, 1.5, 1.5)]


def test_only_one_command_changes_a_results_folder_at_a_time(maker, tmp_path):
    from scalelab.launch.lock import folders_lock

    laptop, cluster = two_folders(maker, tmp_path)
    cluster.done(1)
    with folders_lock(laptop.path), pytest.raises(UsageError, match="another merge"):
        api.merge(cluster.path, results=laptop.path)
    assert os.listdir(laptop.path / "runs") == []
