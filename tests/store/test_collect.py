"""The tables depend only on the files, not on how and when they were collected."""

import json
import math
import random
import shutil
from types import SimpleNamespace

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.errors import DataError
from scalelab.store import live
from scalelab.store.collect import collect
from tests.store.conftest import query


def rebuild(results):
    for name in (live.LIVE_FILE, live.SNAPSHOT_FILE):
        (results / name).unlink(missing_ok=True)
    return collect(results)


class TestOnce:
    def test_a_finished_run_is_one_row_with_its_result(self, make):
        run = make.done(loss=1.4375)
        report = collect(make.path)
        assert (report.runs_new, report.metric_rows_new, report.is_published) == (1, 4, True)
        assert query(
            make.path,
            "SELECT run_id, status, loss_nats, epochs, d_model, lr, attempts, accepted_attempt, "
            "device, device_name, n_params = n_params_chinchilla, flops = flops_exact FROM runs",
        ) == [(run.run_id, "done", 1.4375, 2.0, 48, 0.0031, 1, 1, "cpu", "A test CPU", True, True)]

    def test_an_open_run_has_its_plan_and_no_loss(self, make):
        make.run(seed=1)
        make.attempt(make.run(seed=2))
        failed = make.run(seed=3)
        make.end(make.attempt(failed), "failed", "out of memory")
        collect(make.path)
        found = query(
            make.path, "SELECT seed, status, loss_nats, n_tokens, reason FROM runs ORDER BY seed"
        )
        tokens = failed.read_spec().n_tokens
        assert found == [
            (1, "planned", None, tokens, None),
            (2, "running", None, tokens, None),
            (3, "failed", None, tokens, "out of memory"),
        ]
        assert query(make.path, "SELECT n_params, flops > 0 FROM runs WHERE seed = 1")[0][1]
        assert query(make.path, "FROM metrics") == []
        assert len(query(make.path, "FROM attempt_metrics")) == 8

    @pytest.mark.parametrize(
        ("known", "bits"), [(2.5, 2 / math.log(2) / 2.5), (None, None), ("4", None), (0.0, None)]
    )
    def test_the_loss_is_in_bits_per_byte_where_the_bytes_of_tokens_are_known(
        self, make, known, bits
    ):
        run = make.done(loss=2.0)
        file = run.accepted().path / "record.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "bytes_per_token": known}))
        collect(make.path)
        found = query(make.path, "SELECT bits_per_byte, bytes_per_token FROM runs")
        assert found == [(bits, known if bits else None)]

    def test_a_diverged_run_has_no_loss(self, make):
        run = make.run()
        make.finish(make.attempt(run), loss=None)
        collect(make.path)
        assert query(make.path, "SELECT status, loss_nats FROM runs") == [("diverged", None)]

    def test_a_record_whose_writer_died_before_acceptance_is_accepted(self, make):
        run = make.run()
        make.finish(make.attempt(run), accepts=False)
        collect(make.path)
        assert query(make.path, "SELECT status, accepted_attempt FROM runs") == [("done", 1)]
        assert collect(make.path).runs_changed == 0

    def test_sweeps_share_runs_and_each_membership_is_a_row(self, make):
        runs = [make.done(seed) for seed in range(3)]
        make.sweep("a", runs, [1e12, 1e12, 2e12])
        make.sweep("b", runs[:1])
        collect(make.path)
        assert query(
            make.path, "SELECT sweep, position, budget_flops FROM sweeps ORDER BY ALL"
        ) == [("a", 1, 1e12), ("a", 2, 1e12), ("a", 3, 2e12), ("b", 1, None)]
        make.sweep("a", runs[1:])
        shutil.rmtree(make.path / "sweeps" / "b")
        collect(make.path)
        assert query(make.path, "SELECT sweep, position FROM sweeps ORDER BY ALL") == [
            ("a", 1),
            ("a", 2),
        ]

    @pytest.mark.parametrize(("old", "n_runs"), [({"pack_size": 4}, 4), ({}, 1)])
    def test_a_note_of_an_older_version_has_its_number_of_batched_runs(self, make, old, n_runs):
        attempt = make.attempt(make.run())
        execution = {"device": "cpu", "step": "direct", **old}
        attempt.write_note({**attempt.read_note(), "execution": execution})
        with attempt.writing_checkpoint(10):
            pass
        collect(make.path)
        assert query(make.path, "SELECT batched_runs FROM runs") == [(n_runs,)]
        assert query(make.path, "SELECT batched_runs FROM attempts") == [(n_runs,)]
        assert attempt.run.begun_execution()["batched_runs"] == n_runs

    @pytest.mark.parametrize(
        ("qualification", "requested"),
        [
            ({"requested": dict.fromkeys(("step", "kernels", "attention"), "auto")}, "auto"),
            (
                {"requested": {"step": "auto", "kernels": "triton", "attention": "auto"}},
                "auto + triton + auto",
            ),
            (None, "eager + reference + explicit"),
            (7, "eager + reference + explicit"),
            ({"requested": "all"}, None),
        ],
    )
    def test_the_tables_have_what_was_requested_and_what_was_taken(
        self, make, qualification, requested
    ):
        attempt = make.attempt(make.run())
        attempt.write_note({**attempt.read_note(), "qualification": qualification})
        make.finish(attempt)
        collect(make.path)
        for table in ("runs", "attempts"):
            columns = f"SELECT requested, step_mode, kernels, attention FROM {table}"
            assert query(make.path, columns) == [(requested, "eager", "reference", "explicit")]


class TestCurves:
    def test_a_resumed_curve_is_stitched_where_it_was_resumed(self, make):
        run = make.run()
        first = make.attempt(run, range(10, 60, 10))
        make.end(first)
        second = make.attempt(run, range(40, 90, 10), resumed=(1, 30))
        make.end(second)
        third = make.attempt(run, range(70, 130, 10), resumed=(2, 60))
        make.finish(third)
        collect(make.path)
        found = query(make.path, "SELECT step, attempt FROM metrics ORDER BY step")
        assert found == [
            *((step, 1) for step in (10, 20, 30)),
            *((step, 2) for step in (40, 50, 60)),
            *((step, 3) for step in range(70, 130, 10)),
        ]

    def test_an_attempt_from_step_0_is_the_whole_curve(self, make):
        run = make.run()
        make.attempt(run, range(10, 60, 10))
        make.finish(make.attempt(run, range(10, 40, 10)))
        collect(make.path)
        assert query(make.path, "SELECT DISTINCT attempt FROM metrics") == [(2,)]

    def test_rows_of_a_superseded_attempt_are_not_in_the_curve(self, make):
        run = make.run()
        zombie = make.attempt(run, range(10, 40, 10))
        make.finish(make.attempt(run, range(30, 60, 10), resumed=(1, 20)))
        collect(make.path)
        before = query(make.path, "FROM metrics ORDER BY step")
        zombie.append_metrics([make.row(50), make.row(60)])
        make.finish(zombie, loss=9.0)
        collect(make.path)
        assert query(make.path, "FROM metrics ORDER BY step") == before
        assert query(make.path, "SELECT loss_nats, attempts FROM runs") == [(1.4375, 2)]
        assert query(make.path, "SELECT loss_nats FROM attempts ORDER BY attempt") == [
            (9.0,),
            (1.4375,),
        ]

    def test_torn_lines_are_dropped_and_counted_once(self, make):
        run = make.run()
        attempt = make.attempt(run, [10, 20])
        with attempt.metrics_path.open("a") as file:
            file.write(
                '{"step": 30, "tok\nnot json\n[1]\n{"step": "40"}\n{"step": -3, "tokens": 1}\n'
            )
        attempt.append_metrics([make.row(50), make.row(50), make.row(45), make.row(60)])
        assert collect(make.path).torn_lines == 7
        with attempt.metrics_path.open("a") as file:
            file.write('{"step": 70, "tokens": 1')
        assert collect(make.path).torn_lines == 0, "the last line may still be completed"
        make.finish(attempt)
        assert collect(make.path).torn_lines == 1
        assert query(make.path, "SELECT step FROM metrics ORDER BY step") == [
            (10,),
            (20,),
            (50,),
            (60,),
        ]
        assert query(make.path, "SELECT torn_lines FROM attempts") == [(8,)]

    def test_a_line_is_read_when_it_is_complete(self, make):
        attempt = make.attempt(make.run(), [])
        line = json.dumps({"step": 10, "tokens": 5, "loss_nats": float("nan")})
        with attempt.metrics_path.open("a") as file:
            file.write(line[:11])
            file.flush()
            assert collect(make.path).metric_rows_new == 0
            file.write(line[11:] + "\n")
        report = collect(make.path)
        assert (report.metric_rows_new, report.torn_lines) == (1, 0)
        assert query(make.path, "SELECT step, isnan(loss_nats) FROM attempt_metrics") == [
            (10, True)
        ]

    def test_large_curves_go_in_several_transactions(self, make, monkeypatch):
        monkeypatch.setattr("scalelab.store.collect.ROWS_IN_A_TRANSACTION", 7)
        monkeypatch.setattr("scalelab.store.curves.CHUNK_BYTES", 1000)
        run = make.run()
        make.finish(make.attempt(run, range(1, 101)))
        assert collect(make.path).metric_rows_new == 100
        assert query(make.path, "SELECT step FROM metrics ORDER BY step") == [
            (step,) for step in range(1, 101)
        ]


class TestAgain:
    def test_collecting_again_changes_nothing_and_publishes_nothing(self, make, tables_of):
        make.sweep("s", [make.done(seed) for seed in range(4)])
        make.attempt(make.run(seed=9))
        collect(make.path)
        before = tables_of(make.path), (make.path / live.SNAPSHOT_FILE).stat().st_ino
        report = collect(make.path)
        assert (report.runs_new, report.runs_changed, report.metric_rows_new) == (0, 0, 0)
        assert not report.is_published
        assert (tables_of(make.path), (make.path / live.SNAPSHOT_FILE).stat().st_ino) == before

    def test_deleting_the_databases_changes_nothing(self, make, tables_of):
        make.sweep("s", [make.done(seed) for seed in range(4)], [1e12] * 4)
        make.attempt(make.run(seed=9))
        collect(make.path)
        before = tables_of(make.path)
        rebuild(make.path)
        assert tables_of(make.path) == before
        assert before["runs"]
        assert before["metrics"]

    def test_a_removed_run_folder_removes_only_its_rows(self, make, tables_of):
        kept, gone = make.done(1), make.done(2)
        collect(make.path)
        shutil.rmtree(gone.path)
        assert collect(make.path).runs_removed == 1
        assert query(make.path, "SELECT run_id FROM runs") == [(kept.run_id,)]
        before = tables_of(make.path)
        rebuild(make.path)
        assert tables_of(make.path) == before

    def test_a_run_folder_created_again_replaces_the_old_run(self, make):
        run = make.done(loss=1.5)
        collect(make.path)
        shutil.rmtree(run.path)
        # Longer than before, so the file size alone does not show that it is another file.
        make.finish(make.attempt(make.run(), range(7, 70, 7)), loss=1.25)
        collect(make.path)
        assert query(make.path, "SELECT loss_nats FROM runs") == [(1.25,)]
        found = query(make.path, "SELECT step FROM attempt_metrics ORDER BY step")
        assert found == [(step,) for step in range(7, 70, 7)]

    def test_a_truncated_curve_is_read_again(self, make):
        attempt = make.attempt(make.run(), range(10, 100, 10))
        collect(make.path)
        lines = attempt.metrics_path.read_text().splitlines(keepends=True)
        attempt.metrics_path.write_text("".join(lines[:2]))
        collect(make.path)
        assert query(make.path, "SELECT step FROM attempt_metrics ORDER BY step") == [(10,), (20,)]

    def test_a_missing_or_old_snapshot_is_published_without_new_results(self, make):
        make.done(1)
        collect(make.path)
        old = (make.path / live.SNAPSHOT_FILE).read_bytes()
        (make.path / live.SNAPSHOT_FILE).unlink()
        assert collect(make.path).is_published
        make.done(2)
        collect(make.path)
        (make.path / live.SNAPSHOT_FILE).write_bytes(old)
        assert collect(make.path).is_published
        assert query(make.path, "SELECT count(*) FROM runs") == [(2,)]
        (make.path / live.SNAPSHOT_FILE).write_bytes(b"not a database")
        assert collect(make.path).is_published
        assert query(make.path, "SELECT count(*) FROM runs") == [(2,)]

    @given(seed=st.integers(0, 2**32))
    @settings(max_examples=6, deadline=None)
    def test_step_by_step_or_at_once_gives_the_same_tables(
        self, seed, tmp_path_factory, tables_of, maker
    ):
        path = tmp_path_factory.mktemp("results")
        make = maker(path)
        choose = random.Random(seed)
        state = SimpleNamespace(live=[], runs=[])
        for _ in range(choose.randrange(5, 25)):
            TestAgain.happen(make, choose, state)
            if choose.random() < 0.3:
                collect(path)
        collect(path)
        incremental = tables_of(path)
        rebuild(path)
        assert tables_of(path) == incremental

    @staticmethod
    def happen(make, choose, state):
        """Apply one random event of a sweep."""
        what = choose.choice(["new", "grow", "grow", "tear", "end", "finish", "again", "remove"])
        if what == "new" or not state.live:
            run = make.run(seed=len(state.runs))
            state.runs.append(run)
            state.live.append([run, make.attempt(run, [10])])
            make.sweep("s", state.runs)
            return
        entry = choose.choice(state.live)
        run, attempt = entry
        last = attempt.last_metrics()
        step = last.step if last else 10
        if what == "grow":
            attempt.append_metrics([make.row(step + 10 * k) for k in range(1, 5)])
        elif what == "tear":
            with attempt.metrics_path.open("a") as file:
                file.write('{"step": 99, "to')
        elif what == "again":
            make.end(attempt)
            entry[1] = make.attempt(run, [step + 5, step + 15], resumed=(attempt.number, step))
        elif what == "end":
            make.end(attempt, "failed", "it happens")
        elif what == "finish":
            make.finish(attempt, loss=choose.uniform(1, 3))
            state.live.remove(entry)
        elif what == "remove":
            shutil.rmtree(run.path)
            state.live.remove(entry)


class TestLiveDatabase:
    def test_a_damaged_database_is_rebuilt(self, make, tables_of):
        make.done()
        collect(make.path)
        before = tables_of(make.path)
        (make.path / live.LIVE_FILE).write_bytes(b"x" * 10_000)
        report = collect(make.path)
        assert any("rebuilt" in problem for problem in report.problems)
        assert tables_of(make.path) == before

    def test_an_older_schema_is_rebuilt_and_a_newer_one_refused(self, make, tables_of):
        make.done()
        collect(make.path)
        before = tables_of(make.path)

        def set_schema(version):
            with duckdb.connect(str(make.path / live.LIVE_FILE)) as connection:
                connection.execute("UPDATE collector.store SET schema = ?", [version])

        set_schema(0)
        assert any("schema 0" in problem for problem in collect(make.path).problems)
        assert tables_of(make.path) == before
        set_schema(99)
        with pytest.raises(DataError, match="newer scalelab"):
            collect(make.path)

    def test_it_can_be_on_another_disk(self, make, tmp_path, monkeypatch):
        monkeypatch.setenv(live.LIVE_DIR_VARIABLE, str(tmp_path / "local"))
        make.done()
        collect(make.path)
        assert not (make.path / live.LIVE_FILE).exists()
        assert len(list((tmp_path / "local").glob(f"*/{live.LIVE_FILE}"))) == 1
        assert query(make.path, "SELECT count(*) FROM runs") == [(1,)]

    def test_a_network_file_system_is_reported(self, make, monkeypatch):
        monkeypatch.setattr(live, "network_file_system", lambda _: "nfs4")
        report = collect(make.path)
        assert any("nfs4" in p and live.LIVE_DIR_VARIABLE in p for p in report.problems)
