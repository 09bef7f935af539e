"""One attempt is accepted, older attempts must stop, and files are complete or absent."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
from dataclasses import MISSING, fields

import pytest

from scalelab.errors import SpecError
from scalelab.records.run_dir import RunDir
from scalelab.records.states import FILE_STATES
from scalelab.records.types import MetricRow, RunRecord

FORK = multiprocessing.get_context("fork")


def row(step: int) -> MetricRow:
    return MetricRow(
        step=step, tokens=step * 96, loss_nats=5.5 / step, lr=0.003, grad_norm=0.7, tokens_per_s=1e4
    )


def run_in_processes(n, function):
    """Run ``function(i)`` in n processes that start together; return what each sent back."""
    barrier, queue = FORK.Barrier(n), FORK.SimpleQueue()

    def work(i):
        barrier.wait()
        try:
            queue.put((i, function(i)))
        except BaseException as error:
            queue.put((i, repr(error)))

    processes = [FORK.Process(target=work, args=(i,)) for i in range(n)]
    for process in processes:
        process.start()
    answers = dict(queue.get() for _ in processes)
    for process in processes:
        process.join()
    return [answers[i] for i in range(n)]


class TestClaims:
    def test_concurrent_claims_differ(self, run):
        numbers = run_in_processes(8, lambda _: [run.claim().number for _ in range(5)])
        assert sorted(n for several in numbers for n in several) == list(range(1, 41))
        assert [a.number for a in run.attempts()] == list(range(1, 41))

    def test_an_outdated_listing_gives_no_number_twice(self, run, monkeypatch):
        """As on a network file system, or when two launchers list at the same time."""
        monkeypatch.setattr(RunDir, "newest_claim", lambda _: 0)
        assert [run.claim().number for _ in range(4)] == [1, 2, 3, 4]

    def test_a_newer_claim_fences_every_older_attempt(self, run):
        first = run.claim()
        assert not first.is_fenced()
        second = run.claim()
        third = run.claim()
        assert [a.is_fenced() for a in (first, second, third)] == [True, True, False]

    def test_an_attempt_whose_run_folder_was_created_again_is_fenced(self, run, spec):
        zombie = [run.claim() for _ in range(3)][-1]
        shutil.rmtree(run.path)
        assert zombie.is_fenced()
        run.write_spec(spec)
        successor = run.claim()
        assert successor.number < zombie.number
        assert zombie.is_fenced()
        assert not successor.is_fenced()

    def test_a_claim_without_its_folder_still_fences(self, run):
        """Killed between the claim and the folder."""
        first = run.claim()
        (run.path / "claims" / "2").write_text("f" * 16)
        assert first.is_fenced()
        assert run.claim().number == 3

    def test_foreign_files_among_the_claims_are_ignored(self, run):
        (run.path / "claims").mkdir()
        for name in ("²", ".nfs0001", "x", "-1"):
            (run.path / "claims" / name).write_text("")
        assert run.claim().number == 1


class TestAcceptance:
    def test_the_first_valid_record_is_accepted_and_a_later_one_is_not(self, run, record_of):
        zombie, successor = run.claim(), run.claim()
        successor.write_record(record_of(successor, loss_nats=1.5))
        assert successor.accept()
        zombie.write_record(record_of(zombie, loss_nats=9.0))
        assert not zombie.accept()
        assert successor.accept(), "a second call changes nothing"
        assert run.accepted() == successor
        assert run.accepted().read_record().loss_nats == 1.5

    def test_exactly_one_of_many_concurrent_attempts_is_accepted(self, run, record_of):
        attempts = [run.claim() for _ in range(8)]
        for attempt in attempts:
            attempt.write_record(record_of(attempt))
        answers = run_in_processes(8, lambda i: attempts[i].accept())
        assert sorted(answers) == [False] * 7 + [True]
        assert run.accepted() == attempts[answers.index(True)]

    def test_a_worker_and_its_launcher_may_accept_the_same_attempt_at_once(self, run, record_of):
        attempt = run.claim()
        attempt.write_record(record_of(attempt))
        assert run_in_processes(8, lambda _: attempt.accept()) == [True] * 8
        assert [p.name for p in attempt.path.iterdir()] == ["record.json"]

    def test_without_a_record_nothing_is_accepted(self, run):
        assert not run.claim().accept()
        assert run.accept_finished() is None
        assert run.accepted() is None

    def test_a_record_whose_writer_died_before_acceptance_is_not_lost(self, run, record_of):
        run.claim()
        finished = run.claim()
        finished.write_record(record_of(finished))
        run.claim()
        assert run.status() == "running"
        assert run.accept_finished() == finished
        assert run.status() == "done"

    def test_accepted_torn_or_foreign_names_no_attempt(self, run):
        for content in (b"", b"1-", b"1-abc", b"\xff\xfe", b"../../etc-0123456789abcdef"):
            (run.path / "accepted").write_bytes(content)
            assert run.accepted() is None

    def test_a_run_whose_accepted_record_broke_is_failed_not_running(self, run, record_of):
        attempt = run.claim()
        attempt.write_record(record_of(attempt))
        attempt.accept()
        (attempt.path / "record.json").write_text("{")
        assert run.status() == "failed"


class TestRecords:
    @pytest.fixture
    def attempt(self, run):
        return run.claim()

    def content(self, attempt, record_of):
        attempt.write_record(record_of(attempt))
        return json.loads((attempt.path / "record.json").read_text())

    def test_a_record_round_trips(self, attempt, record_of):
        record = record_of(attempt)
        attempt.write_record(record)
        assert attempt.read_record() == record

    def test_a_torn_record_is_ignored(self, attempt, record_of):
        self.content(attempt, record_of)
        path = attempt.path / "record.json"
        whole = path.read_bytes()
        for length in range(0, len(whole.rstrip()) - 1, 7):
            path.write_bytes(whole[:length])
            assert attempt.read_record() is None

    def test_a_record_of_another_version_is_read(self, attempt, record_of):
        content = self.content(attempt, record_of)
        older = {k: v for k, v in content.items() if k not in ("energy_j", "reason")}
        newer = {**content, "carbon_g": 3.5}
        for version in (older, newer):
            (attempt.path / "record.json").write_text(json.dumps(version))
            assert attempt.read_record() == record_of(attempt)

    @pytest.mark.parametrize(
        "change",
        [
            {"attempt": 2},
            {"token": "0" * 16},
            {"run_id": "another"},
            {"status": "running"},
            {"loss_nats": None},
            {"loss_nats": float("nan")},
            {"loss_nats": "1.4"},
            {"n_tokens": None},
            {"wall_s": True},
            {"flops": None},
            {"n_params": {"chinchilla": "many"}},
        ],
        ids=str,
    )
    def test_an_invalid_record_is_ignored(self, attempt, record_of, change):
        content = {**self.content(attempt, record_of), **change}
        (attempt.path / "record.json").write_text(json.dumps(content))
        assert attempt.read_record() is None

    def test_every_field_without_a_default_is_required(self, attempt, record_of):
        content = self.content(attempt, record_of)
        required = [f.name for f in fields(RunRecord) if f.default is MISSING]
        assert len(required) == 12
        for name in required:
            rest = {key: value for key, value in content.items() if key != name}
            (attempt.path / "record.json").write_text(json.dumps(rest))
            assert attempt.read_record() is None, name

    def test_a_diverged_run_needs_no_loss(self, attempt, record_of):
        attempt.write_record(record_of(attempt, loss_nats=None, status="diverged"))
        assert attempt.accept()
        assert attempt.run.status() == "diverged"


class TestCurve:
    def test_a_row_after_a_torn_line_is_readable(self, run):
        attempt = run.claim()
        attempt.append_metrics([row(1), row(2)])
        with attempt.metrics_path.open("a") as file:
            file.write('{"step": 3, "tok')
        attempt.append_metrics([row(4), row(5)])
        lines = attempt.metrics_path.read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines if line.endswith("}")] == [1, 2, 4, 5]
        assert len(lines) == 5
        assert attempt.metrics_path.read_text().endswith("\n")

    def test_appending_no_rows_changes_nothing(self, run):
        attempt = run.claim()
        attempt.append_metrics([])
        assert attempt.metrics_path.read_bytes() == b""


class TestSpec:
    def test_it_is_written_once_and_round_trips(self, run, spec):
        before = (run.path / "spec.json").stat().st_mtime_ns
        run.write_spec(spec)
        assert (run.path / "spec.json").stat().st_mtime_ns == before
        assert run.read_spec() == spec

    def test_an_edited_spec_is_refused(self, run, spec):
        path = run.path / "spec.json"
        path.write_text(path.read_text().replace("0.0031", "0.0032"))
        with pytest.raises(SpecError, match="which was edited"):
            run.read_spec()
        with pytest.raises(SpecError):
            run.write_spec(spec)

    def test_an_edit_below_the_hashed_digits_is_the_same_run(self, run, spec):
        path = run.path / "spec.json"
        path.write_text(path.read_text().replace("0.0031", "0.003100000001"))
        assert run.read_spec().run_id == spec.run_id

    def test_a_missing_or_torn_spec_says_so(self, run):
        (run.path / "spec.json").write_text('{"lr": ')
        with pytest.raises(SpecError, match=r"without a readable spec\.json"):
            run.read_spec()

    def test_a_spec_is_refused_in_the_folder_of_another_run(self, tmp_path, spec):
        with pytest.raises(SpecError):
            RunDir(tmp_path / "runs" / "0123456789ab").write_spec(spec)
        assert not (tmp_path / "runs").exists()


class TestStatus:
    def test_it_is_the_state_of_the_newest_attempt(self, run):
        assert run.status() == "planned"
        first = run.claim()
        assert run.status() == "running"
        first.write_note({"ended": {"status": "failed"}})
        assert run.status() == "failed"
        run.claim().write_note({"ended": None})
        assert run.status() == "running"

    def test_a_torn_note_is_an_attempt_that_has_not_ended(self, run):
        attempt = run.claim()
        (attempt.path / "attempt.json").write_text('{"ended": {"sta')
        assert attempt.read_note() == {}
        assert run.status() == "running"
        assert "running" in FILE_STATES


class TestCheckpoints:
    def save(self, attempt, step, content=b"weights" * 50):
        with attempt.writing_checkpoint(step) as folder:
            (folder / "state.pt").write_bytes(content)
            (folder / "rank").mkdir()
            (folder / "rank" / "0.pt").write_bytes(content)

    def test_the_newest_two_stay(self, run):
        attempt = run.claim()
        for step in (9, 10, 100):
            self.save(attempt, step)
        assert [c.step for c in attempt.checkpoints()] == [100, 10]

    def test_the_furthest_of_any_attempt_comes_first(self, run):
        first, second = run.claim(), run.claim()
        self.save(first, 40)
        self.save(second, 20)
        assert [(c.attempt, c.step) for c in run.checkpoints()] == [(1, 40), (2, 20)]

    def test_a_failed_checkpoint_leaves_the_earlier_ones(self, run):
        attempt = run.claim()
        self.save(attempt, 10)

        def fail_half_way():
            with attempt.writing_checkpoint(20) as folder:
                (folder / "state.pt").write_bytes(b"half")
                raise OSError("no space")

        with pytest.raises(OSError, match="no space"):
            fail_half_way()
        assert [c.step for c in attempt.checkpoints()] == [10]
        assert [p.name for p in attempt.path.iterdir()] == ["checkpoint-10"]

    def test_a_partial_checkpoint_is_ignored_and_removed_with_the_others(self, run):
        attempt = run.claim()
        self.save(attempt, 10)
        (attempt.path / ".partial-20").mkdir()
        (attempt.path / ".partial-20" / "state.pt").write_bytes(b"half")
        assert [c.step for c in attempt.checkpoints()] == [10]
        attempt.remove_checkpoints()
        assert list(attempt.path.iterdir()) == []


def _limited(function, limit):
    """Run ``function`` in a process that may write no file beyond ``limit`` bytes."""

    def work(_):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        function()
        return "written"

    return run_in_processes(1, work)[0]


class TestFullDisk:
    """RLIMIT_FSIZE simulates a full disk: a write stops half-way with an error."""

    def test_the_old_note_stays_complete(self, run):
        attempt = run.claim()
        attempt.write_note({"a": 1})
        answer = _limited(lambda: attempt.write_note({"a": "x" * 4000}), 1000)
        assert "File too large" in answer
        assert attempt.read_note() == {"a": 1}
        assert os.listdir(attempt.path) == ["attempt.json"]

    def test_a_record_is_complete_or_absent(self, run, record_of):
        attempt = run.claim()
        assert "File too large" in _limited(lambda: attempt.write_record(record_of(attempt)), 200)
        assert os.listdir(attempt.path) == []
        assert not attempt.accept()

    def test_a_checkpoint_is_complete_or_absent(self, run):
        attempt = run.claim()

        def save():
            with attempt.writing_checkpoint(20) as folder:
                (folder / "state.pt").write_bytes(bytes(100_000))

        with attempt.writing_checkpoint(10) as folder:
            (folder / "state.pt").write_bytes(b"whole")
        assert "File too large" in _limited(save, 50_000)
        assert os.listdir(attempt.path) == ["checkpoint-10"]

    def test_the_curve_loses_only_the_row_that_did_not_fit(self, run):
        attempt = run.claim()
        attempt.append_metrics([row(step) for step in range(1, 6)])
        limit = attempt.metrics_path.stat().st_size + 90
        assert "File too large" in _limited(lambda: attempt.append_metrics([row(6)]), limit)
        attempt.append_metrics([row(7)])
        whole = []
        for line in attempt.metrics_path.read_text().split("\n"):
            try:
                whole.append(json.loads(line)["step"])
            except ValueError:
                continue
        assert whole == [1, 2, 3, 4, 5, 7]
