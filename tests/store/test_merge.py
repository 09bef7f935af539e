"""Merging results folders: nothing is lost, doubled or contradicted in silence."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalelab import api
from scalelab.cli.main import main
from scalelab.errors import DataError
from scalelab.records.merge import plan_merge
from scalelab.records.run_dir import RunDir
from scalelab.store.collect import collect
from scalelab.store.live import open_snapshot
from tests.store.conftest import tree
from tests.store.merging import attempts_of, merge, two_folders

pytestmark = pytest.mark.usefixtures("without_waiting_for_the_disk")
ATTEMPTS = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from(["open", "ended", "done"])), max_size=2
)
FOLDERS = st.dictionaries(st.integers(0, 3), ATTEMPTS, max_size=3)


def fill(make, folder: dict) -> None:
    for seed, attempts in folder.items():
        run = make.run(seed)
        for n_rows, end in attempts:
            attempt = make.attempt(run, range(10, 10 * n_rows + 1, 10))
            if end == "ended":
                make.end(attempt)
            if end == "done":
                # Two folders that train one run on two machines agree on its loss.
                make.finish(attempt, loss=1.5 + seed, accepts=run.accepted() is None)
        make.sweep("s", [make.run(seed) for seed in sorted(folder)])


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mine=FOLDERS, other=FOLDERS)
def test_a_merge_keeps_every_attempt_and_again_changes_nothing(maker, mine, other):
    with tempfile.TemporaryDirectory() as folder:
        one, two = maker(Path(folder, "one")), maker(Path(folder, "two"))
        for make, content in ((one, mine), (two, other)):
            (make.path / "runs").mkdir(parents=True)
            fill(make, content)
        before = attempts_of(one.path), attempts_of(two.path)
        untouched = tree(two.path)
        accepted = {p.parent.name: p.read_text() for p in one.path.glob("runs/*/accepted")}
        merge(one.path, two.path, prefer="ours")
        merged = attempts_of(one.path)
        for run_id in {**before[0], **before[1]}:
            parts = before[0].get(run_id, {}), before[1].get(run_id, {})
            assert merged[run_id] == {**parts[0], **parts[1]}
            run = RunDir(one.path / "runs" / run_id)
            numbers = [attempt.number for attempt in run.attempts()]
            assert len(set(numbers)) == len(numbers)
            claims = {p.name: p.read_text() for p in (run.path / "claims").iterdir()}
            assert claims == {str(a.number): a.token for a in run.attempts()}
            was_finished = any((m.path / "runs" / run_id / "accepted").exists() for m in (one, two))
            assert (run.accepted() is not None) == was_finished
        assert {r: (one.path / "runs" / r / "accepted").read_text() for r in accepted} == accepted
        assert tree(two.path) == untouched
        after = tree(one.path)
        again = merge(one.path, two.path, prefer="ours")
        assert (again.new, again.changed, again.writes) == ((), (), ())
        assert tree(one.path) == after


@pytest.mark.slow
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mine=FOLDERS, other=FOLDERS)
def test_folders_without_common_parts_merge_in_any_order(maker, mine, other):
    with tempfile.TemporaryDirectory() as folder:
        one, two = maker(Path(folder, "one")), maker(Path(folder, "two"))
        for make, content, first in ((one, mine, 0), (two, other, 10)):
            (make.path / "runs").mkdir(parents=True)
            fill(make, {seed + first: attempts for seed, attempts in content.items()})
            if (make.path / "sweeps").exists():
                (make.path / "sweeps" / "s").rename(make.path / "sweeps" / f"s{first}")
        for names in (("one", "two"), ("two", "one")):
            target = Path(folder, "-".join(names))
            (target / "runs").mkdir(parents=True)
            for name in names:
                merge(target, Path(folder, name))
        assert tree(Path(folder, "one-two")) == tree(Path(folder, "two-one"))
        assert tree(Path(folder, "one-two")) == tree(one.path) | tree(two.path)


def test_two_accepted_losses_are_a_conflict_that_the_user_decides(maker, tmp_path, capsys):
    laptop, cluster = two_folders(maker, tmp_path)
    run, other = laptop.done(7, loss=1.25), cluster.done(7, loss=1.75)
    laptop.done(8), cluster.done(9)
    before = tree(laptop.path)
    words = ["merge", str(cluster.path), "--results", str(laptop.path)]
    assert main(words) == 3
    error = capsys.readouterr().err
    assert f"run {run.run_id}: two accepted results: loss 1.25 here, loss 1.75 there" in error
    assert "--conflicts ours" in error
    assert tree(laptop.path) == before

    assert main([*words, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    what = "two accepted results: loss 1.25 here, loss 1.75 there"
    assert found["conflicts"] == [{"kind": "run", "name": run.run_id, "what": what}]
    assert tree(laptop.path) == before

    shutil.copytree(laptop.path, tmp_path / "copy")
    for choice, loss in (("ours", 1.25), ("theirs", 1.75)):
        results = tmp_path / choice
        shutil.copytree(tmp_path / "copy", results)
        assert main([*words[:2], "--results", str(results), "--conflicts", choice]) == 0
        with open_snapshot(results) as connection:
            query = f"SELECT loss_nats, attempts FROM runs WHERE run_id = '{run.run_id}'"
            assert connection.execute(query).fetchall() == [(loss, 2)]
            assert connection.execute("SELECT count(*) FROM runs").fetchall() == [(3,)]
            query = "SELECT count(*), count(DISTINCT (run_id, attempt, step)) FROM attempt_metrics"
            assert connection.execute(query).fetchall() == [(16, 16)]
        # The decision lasts: the same merge finds nothing to decide.
        plan = plan_merge(results, cluster.path)
        assert (plan.writes, plan.conflicts) == ((), ())
    assert other.accepted().read_record().loss_nats == 1.75


def test_an_attempt_copied_while_it_trained_is_continued(maker, tmp_path):
    laptop, cluster = two_folders(maker, tmp_path)
    attempt = cluster.attempt(cluster.run(7), range(10, 50, 10))
    merge(laptop.path, cluster.path)
    half = tree(laptop.path)
    (attempt.path / "out").mkdir()
    (attempt.path / "out" / "log.csv").write_text("1,2")
    merge(laptop.path, cluster.path)
    (attempt.path / "out" / "log.csv").write_text("1,2\n3,4")
    (attempt.path / "out" / "new.csv").write_text("5")
    attempt.append_metrics([cluster.row(50), cluster.row(60)])
    with attempt.writing_checkpoint(60) as folder:
        (folder / "state.bin").write_bytes(b"weights")
    cluster.finish(attempt, loss=1.25)
    plan = merge(laptop.path, cluster.path)
    assert [part.name for part in plan.changed] == [attempt.run.run_id]
    assert tree(laptop.path) == tree(cluster.path)
    # The older state brings nothing to the newer one.
    older = tmp_path / "older"
    for name, content in half.items():
        if content is not None:
            (older / name).parent.mkdir(parents=True, exist_ok=True)
            (older / name).write_bytes(content)
    assert plan_merge(laptop.path, older).writes == ()


def test_an_attempt_with_two_curves_is_a_conflict(maker, tmp_path):
    laptop, cluster = two_folders(maker, tmp_path)
    attempt = cluster.attempt(cluster.run(7), range(10, 50, 10))
    merge(laptop.path, cluster.path)
    for make, step in ((laptop, 51), (cluster, 50)):
        make.run(7).attempts()[0].append_metrics([make.row(step)])
    plan = plan_merge(laptop.path, cluster.path)
    assert [each.what for each in plan.conflicts] == ["attempt 1 has two training curves"]
    merge(laptop.path, cluster.path, prefer="theirs")
    assert tree(laptop.path) == tree(cluster.path)
    assert attempt.number == 1


def test_attempts_of_one_number_get_two_and_their_origin_follows(maker, tmp_path):
    laptop, cluster = two_folders(maker, tmp_path)
    laptop.end(laptop.attempt(laptop.run(7)))
    first = cluster.attempt(cluster.run(7), range(10, 30, 10))
    cluster.end(first)
    second = cluster.attempt(cluster.run(7), range(30, 50, 10), resumed=(1, 20))
    cluster.finish(second, loss=1.25)
    merge(laptop.path, cluster.path)
    run = laptop.run(7)
    assert [attempt.number for attempt in run.attempts()] == [1, 2, 3]
    assert run.accepted().token == second.token
    assert run.accepted().read_record().loss_nats == 1.25
    number = next(a.number for a in run.attempts() if a.token == first.token)
    assert run.accepted().read_note()["resumed_from"] == {"attempt": number, "step": 20}
    collect(laptop.path)
    with open_snapshot(laptop.path) as connection:
        curve = connection.execute("SELECT step FROM metrics ORDER BY step").fetchall()
    assert curve == [(10,), (20,), (30,), (40,)]


def test_a_larger_plan_extends_a_sweep_and_two_different_ones_are_a_conflict(maker, tmp_path):
    laptop, cluster = two_folders(maker, tmp_path)
    laptop.sweep("demo", [laptop.done(1)])
    cluster.sweep("demo", [cluster.done(2), cluster.done(1)], budgets=[1e12, 2e12], created_s=9.0)
    plan = plan_merge(laptop.path, cluster.path)
    assert plan.conflicts == ()
    laptop.sweep("demo", [laptop.done(1), laptop.done(3)])
    with pytest.raises(DataError, match="sweep demo: other runs: 1 run only here, 1 only there"):
        api.merge(cluster.path, results=laptop.path)
    api.merge(cluster.path, results=laptop.path, rename={"demo": "demo-cluster"})
    assert {p.name for p in (laptop.path / "sweeps").iterdir()} == {"demo", "demo-cluster"}
    api.merge(cluster.path, results=laptop.path, conflicts="ours")
    with open_snapshot(laptop.path) as connection:
        query = "SELECT run_id, budget_flops FROM sweeps WHERE sweep = '{}' ORDER BY position"
        united = connection.execute(query.format("demo")).fetchall()
        apart = connection.execute(query.format("demo-cluster")).fetchall()
    ids = {seed: laptop.run(seed).run_id for seed in (1, 2, 3)}
    assert united == [(ids[1], None), (ids[3], None), (ids[2], 1e12)]
    assert apart == [(ids[2], 1e12), (ids[1], 2e12)]


def test_imports_forecasts_datasets_and_source_come_along(maker, tmp_path, capsys):
    laptop, cluster = two_folders(maker, tmp_path)
    rows = "n_params,n_tokens,loss_nats\n" + "".join(
        f"{n}e6,{n}e8,{3 - n / 9}\n" for n in range(1, 9)
    )
    for name, text in (("same.csv", rows), ("other.csv", rows.replace("1e6", "9e6"))):
        (tmp_path / name).write_text(text)
    cluster_words = ["--results", str(cluster.path)]
    assert main(["import", str(tmp_path / "same.csv"), "--name", "t", *cluster_words]) == 0
    for name, content in (
        ("forecasts/f.json", '{"name": "f"}\n'),
        ("data/0123456789abcdef/manifest.json", "{}"),
        ("data/0123456789abcdef/train-00000.bin", "tokens"),
        ("data/sources/0123.json", "{}"),
        ("source/0123.diff", "diff"),
        ("trunks/x/state.bin", "cache"),
        ("figures/x.png", "picture"),
        ("scalelab.duckdb", "not read"),
    ):
        (cluster.path / name).parent.mkdir(parents=True, exist_ok=True)
        (cluster.path / name).write_text(content)
    words = ["merge", str(cluster.path), "--results", str(laptop.path)]
    assert main(words) == 0
    answer = capsys.readouterr()
    assert "added: 1 source version, 1 dataset, 1 import, 1 forecast" in answer.out
    assert "figures: not a part" in answer.err
    found = tree(laptop.path)
    assert found == {k: v for k, v in tree(cluster.path).items() if k in found}
    assert not any(name.startswith(("trunks", "data/sources", "figures")) for name in found)
    with open_snapshot(laptop.path) as connection:
        assert connection.execute("SELECT count(*) FROM imports").fetchall() == [(8,)]

    (laptop.path / "forecasts/f.json").write_text('{"name": "f", "other": 1}\n')
    own = ["--results", str(laptop.path)]
    assert main(["import", str(tmp_path / "other.csv"), "--name", "t", "--replace", *own]) == 0
    capsys.readouterr()
    assert main([*words, "--conflicts", "theirs"]) == 3
    error = capsys.readouterr().err
    assert "forecast f: another content here and there; registered forecasts never" in error
    assert main([*words, "--rename", "f=g", "--rename", "t=u"]) == 0
    assert json.loads((laptop.path / "forecasts/g.json").read_text()) == {"name": "g"}
    with open_snapshot(laptop.path) as connection:
        query = 'SELECT "import", count(*) FROM imports GROUP BY ALL ORDER BY ALL'
        assert connection.execute(query).fetchall() == [("t", 8), ("u", 8)]
