"""Removing parts of a results folder: shared runs stay, and what is freed is what was said."""

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalelab import api
from scalelab.cli.main import main
from scalelab.errors import DataError, UsageError
from scalelab.records.machine import own_process
from scalelab.records.parts import disk_bytes
from scalelab.records.removal import RemoveOptions, apply_removal, plan_removal
from scalelab.store.collect import collect
from scalelab.store.live import LIVE_FILE, SNAPSHOT_FILE, open_snapshot

pytestmark = pytest.mark.usefixtures("without_waiting_for_the_disk")
SWEEPS = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.sets(st.integers(0, 5), min_size=1), min_size=1
)


def entries(path: Path) -> set[str]:
    return {
        str(entry.relative_to(path))
        for entry in path.rglob("*")
        if not any(p.startswith((".", "scalelab.duckdb")) for p in entry.relative_to(path).parts)
        and entry.name != "launcher.lock"
    }


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sweeps=SWEEPS, data=st.data())
def test_a_removal_never_takes_a_run_of_another_sweep(maker, sweeps, data):
    removed = data.draw(st.sets(st.sampled_from(sorted(sweeps)), min_size=1))
    with tempfile.TemporaryDirectory() as folder:
        make = maker(Path(folder))
        runs = {seed: make.run(seed) for seed in sorted(set().union(*sweeps.values()))}
        for name, seeds in sweeps.items():
            make.sweep(name, [runs[seed] for seed in sorted(seeds)])
        kept = set().union(*(seeds for name, seeds in sweeps.items() if name not in removed), set())
        before, size = entries(make.path), disk_bytes(make.path)
        plan = plan_removal(make.path, RemoveOptions(names=tuple(sorted(removed))))
        assert entries(make.path) == before
        apply_removal(make.path, plan)
        gone = {f"runs/{run.run_id}" for seed, run in runs.items() if seed not in kept}
        gone |= {f"sweeps/{name}" for name in removed}
        after = entries(make.path)
        assert before - after == {
            e for e in before if any(e == g or e.startswith(f"{g}/") for g in gone)
        }
        assert after <= before
        assert size - disk_bytes(make.path) == plan.n_bytes
        shared = {runs[s].run_id for name in removed for s in sweeps[name] if s in kept}
        assert set(plan.shared) == shared


def test_a_sweep_goes_with_its_runs_and_the_snapshot_is_right(make, capsys, tables_of):
    both, own = make.done(1), make.done(2)
    make.sweep("demo", [both, own])
    make.sweep("other", [both, make.done(3)])
    collect(make.path)
    words = ["remove", "demo", "--results", str(make.path)]
    before = entries(make.path)
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "1 run of other sweeps stay: other" in said
    assert "to remove: 1 run, 1 sweep; frees " in said
    assert main(words) == 2
    assert "--yes" in capsys.readouterr().err
    assert entries(make.path) == before
    assert main([*words, "--yes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shared"] == {both.run_id: ["other"]}
    assert found["n_bytes"] > 0
    with open_snapshot(make.path) as connection:
        assert connection.execute("SELECT DISTINCT sweep FROM sweeps").fetchall() == [("other",)]
        assert connection.execute("SELECT count(*) FROM runs").fetchall() == [(2,)]
    updated = tables_of(make.path)
    for name in (LIVE_FILE, SNAPSHOT_FILE):
        (make.path / name).unlink()
    collect(make.path)
    assert tables_of(make.path) == updated


def test_a_named_run_leaves_its_plan_and_a_shared_one_stays(make):
    both, own = make.done(1), make.done(2)
    make.sweep("demo", [both, own], budgets=[1e12, 2e12])
    make.sweep("other", [both])
    plan = api.remove(own.run_id[:5], both.run_id, results=make.path)
    assert plan.shared == {both.run_id: ("demo", "other")}
    assert plan.shortened == {"demo": (own.run_id,)}
    assert not own.path.exists()
    with open_snapshot(make.path) as connection:
        rows = connection.execute("SELECT run_id, budget_flops FROM sweeps WHERE sweep = 'demo'")
        assert rows.fetchall() == [(both.run_id, 1e12)]


@pytest.mark.parametrize("answer", [False, True])
def test_a_terminal_is_asked_first(make, monkeypatch, answer):
    make.sweep("demo", [make.done(1)])
    asked = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "confirm", lambda text, err: asked.append(text) or answer)
    code = main(["remove", "demo", "--results", str(make.path)])
    assert asked == ["Remove 1 run, 1 sweep?"]
    assert code == (0 if answer else 130)
    assert (make.path / "sweeps/demo").exists() != answer


def test_what_runs_now_is_refused(make):
    run = make.run(1)
    attempt = make.attempt(run)
    attempt.write_note({**attempt.read_note(), **own_process()})
    make.sweep("demo", [run])
    for what in ({"caches": True}, {"unused_data": True}):
        with pytest.raises(UsageError, match="may train now"):
            api.remove(results=make.path, **what)
    for name in ("demo", run.run_id):
        with pytest.raises(UsageError, match="may train now"):
            api.remove(name, results=make.path)
    # A process of another machine that wrote a row a minute ago is taken for alive.
    note = {**attempt.read_note(), "host": "elsewhere"}
    attempt.write_note({**note, "started_s": time.time() - 60})
    with pytest.raises(UsageError, match="on elsewhere"):
        api.remove("demo", results=make.path)
    attempt.write_note({**note, "started_s": 1.6e9})
    api.remove("demo", results=make.path)
    assert entries(make.path) == {"runs", "sweeps"}


def test_a_sweep_that_is_being_launched_is_refused(make):
    from scalelab.launch.lock import launcher_lock

    make.sweep("demo", [make.done(1)])
    with launcher_lock(make.path / "sweeps/demo"), pytest.raises(UsageError, match="is launching"):
        api.remove("demo", results=make.path)


def test_what_finished_runs_no_longer_need(make, tables_of):
    finished = make.run(1)
    lost = make.attempt(finished)
    make.end(lost)
    first = make.attempt(finished, range(10, 30, 10))
    make.end(first)
    last = make.attempt(finished, range(30, 50, 10), resumed=(2, 20))
    late = make.attempt(finished)
    stopped = make.run(2)
    open_attempt = make.attempt(stopped)
    for attempt in (lost, first, last, late, open_attempt):
        with attempt.writing_checkpoint(20) as folder:
            (folder / "state.bin").write_bytes(bytes(9000))
    make.finish(last)
    make.end(late)
    make.end(open_attempt)
    make.sweep("demo", [finished, stopped])
    make.done(3)
    for name in ("d" * 16, "a" * 16):
        (make.path / "data" / name).mkdir(parents=True)
        (make.path / "data" / name / "manifest.json").write_text("{}")
    (make.path / "trunks/t").mkdir(parents=True)
    collect(make.path)

    plan = api.remove(superseded=True, results=make.path, dry_run=True)
    assert set(plan.folders) == {lost.path, late.path}
    plan = api.remove("demo", checkpoints=True, superseded=True, results=make.path)
    kept = {first.path / "checkpoint-20", last.path / "checkpoint-20"}
    assert set(plan.folders) == {lost.path, late.path} | kept
    assert plan.n_bytes > 4 * 9000
    assert [a.token for a in finished.attempts()] == [first.token, last.token]
    assert finished.checkpoints() == []
    assert len(stopped.checkpoints()) == 1
    updated = tables_of(make.path)
    for name in (LIVE_FILE, SNAPSHOT_FILE):
        (make.path / name).unlink()
    collect(make.path)
    assert tables_of(make.path) == updated

    plan = api.remove(orphans=True, unused_data=True, caches=True, results=make.path)
    assert [part.name for part in plan.parts] == [make.run(3).run_id, "a" * 16]
    assert plan.folders == (make.path / "trunks",)
    assert not (make.path / "data" / ("a" * 16)).exists()
    assert (make.path / "data" / ("d" * 16)).exists()


@pytest.mark.parametrize(
    ("names", "options"),
    [((), {}), (("nothing",), {}), (("demo",), {"caches": True}), (("",), {}), (("../x",), {})],
)
def test_what_cannot_be_meant_is_refused(make, names, options):
    make.sweep("demo", [make.done(1)])
    with pytest.raises(UsageError):
        api.remove(*names, results=make.path, **options)


def test_an_unreadable_plan_may_share_runs_and_stops_a_removal(make):
    make.sweep("demo", [make.done(1)])
    make.sweep("other", [make.done(1)])
    (make.path / "sweeps/other/plan.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        api.remove("demo", results=make.path)
    with pytest.raises(DataError, match="does not exist"):
        api.remove("demo", results=make.path / "nowhere")


# A removal that stops after some moves, until it is killed.
REMOVER = """
import sys, time
from pathlib import Path
from scalelab.records import removal
move = removal._move
left = int(sys.argv[2])
def counted(path, target):
    global left
    move(path, target)
    left -= 1
    if left == 0:
        print("moved", flush=True)
        time.sleep(600)
removal._move = counted
results = Path(sys.argv[1])
plan = removal.plan_removal(results, removal.RemoveOptions(names=("demo",)))
removal.apply_removal(results, plan)
"""


@pytest.mark.slow
def test_a_killed_removal_is_ended_by_the_next(make):
    runs = [make.done(seed) for seed in range(9)]
    make.sweep("demo", runs)
    make.sweep("other", runs[:2])
    for n_moves in (1, 2, 3):
        process = subprocess.Popen(
            [sys.executable, "-c", REMOVER, str(make.path), str(n_moves)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "moved\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        assert all(run.accepted() for run in runs[:2])
        assert (make.path / "sweeps/demo/plan.json").exists()
        for run in runs:
            assert not run.path.exists() or run.accepted() is not None
    api.remove("demo", results=make.path)
    assert {p.name for p in (make.path / "runs").iterdir()} == {r.run_id for r in runs[:2]}
    assert [p.name for p in make.path.iterdir() if p.name.startswith(".scalelab-scratch")] == []
    with open_snapshot(make.path) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchall() == [(2,)]
