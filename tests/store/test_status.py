"""Status of a sweep from its run folders."""

import shutil
import socket
import time
from dataclasses import asdict, replace

import pytest

from scalelab.errors import DataError, UsageError
from scalelab.records.machine import own_process
from scalelab.records.states import BROKEN, INTERRUPTED
from scalelab.records.sweep_dir import Results
from scalelab.store.run_status import (
    BRACKETED,
    FALLS_TO_LARGE,
    FALLS_TO_SMALL,
    SILENT_AFTER_S,
    RunStatus,
    budget_statuses,
    share_done,
)
from scalelab.store.status import read_status, sweep_eta


def done(n_params, loss, budget=1e12, state="done"):
    return RunStatus(
        run_id=f"r{n_params}", state=state, budget_flops=budget, n_params=n_params, loss_nats=loss
    )


class TestBudgets:
    @pytest.mark.parametrize(
        ("losses", "shape"),
        [
            ((3.1, 2.9, 3.3), BRACKETED),
            ((2.8, 2.9, 3.3), FALLS_TO_SMALL),
            ((3.3, 3.1, 3.0), FALLS_TO_LARGE),
            ((3.1, 2.9), "too few sizes"),
            ((), "too few sizes"),
        ],
    )
    def test_a_budget_is_bracketed_if_the_best_size_is_not_at_an_end(self, losses, shape):
        runs = [done(100 * (i + 1), loss) for i, loss in enumerate(losses)]
        runs.append(done(50, None, state="running"))
        (budget,) = budget_statuses(runs)
        assert (budget.shape, budget.n_done, budget.n_runs) == (shape, len(losses), len(losses) + 1)

    def test_diverged_and_running_runs_do_not_bracket(self):
        runs = [done(100, 3.0), done(200, 2.9), done(300, 2.8)]
        runs += [done(400, None, state="diverged"), done(500, 9.9, state="running")]
        (budget,) = budget_statuses(runs)
        assert budget.shape == FALLS_TO_LARGE

    def test_replicates_count_by_their_mean(self):
        runs = [done(100, 3.0), done(200, 2.6), done(200, 3.6), done(300, 3.05), done(400, 3.2)]
        (budget,) = budget_statuses(runs)
        assert (budget.best_n_params, budget.shape) == (100, FALLS_TO_SMALL)

    def test_the_order_of_the_runs_does_not_matter_and_budgets_are_sorted(self):
        runs = [done(300, 3.3), done(100, 3.1), done(200, 2.9)]
        runs += [replace(run, budget_flops=1e11) for run in runs] + [done(1, 1.0, budget=None)]
        assert [(v.budget_flops, v.shape) for v in budget_statuses(runs)] == [
            (1e11, BRACKETED),
            (1e12, BRACKETED),
        ]


class TestEta:
    def running(self, n_tokens, left, speed):
        return RunStatus(
            run_id="r", state="running", flops=6.0 * n_tokens, n_tokens=n_tokens,
            tokens_per_s=speed, eta_s=left / speed,
        )  # fmt: skip

    def test_it_is_the_work_left_over_the_present_rate(self):
        waiting = RunStatus(run_id="w", state="planned", flops=6.0 * 900)
        runs = [self.running(1000, 300, 10.0), self.running(1000, 300, 20.0), waiting]
        assert sweep_eta(runs) == pytest.approx((900 + 600) / 30)

    def test_it_is_never_less_than_the_slowest_running_run(self):
        runs = [self.running(1000, 900, 1.0), self.running(1000, 1, 1000.0)]
        assert sweep_eta(runs) == pytest.approx(900)

    def test_a_silent_run_has_no_rate(self):
        silent = replace(self.running(1000, 900, 1.0), silent_s=SILENT_AFTER_S + 1)
        assert sweep_eta([silent]) is None
        assert sweep_eta([silent, self.running(1000, 300, 10.0)]) == pytest.approx(30)

    def test_the_share_of_the_compute_counts_the_steps_of_running_runs(self):
        half = replace(self.running(1000, 500, 1.0), step=20, n_steps=40)
        done = RunStatus(run_id="d", state="done", flops=6.0 * 3000)
        planned = RunStatus(run_id="p", state="planned", flops=6.0 * 6000, n_steps=9)
        assert share_done([half, done, planned]) == pytest.approx(0.35)
        assert share_done([]) == 0.0

    def test_nothing_running_is_unknown(self):
        assert sweep_eta([RunStatus(run_id="w", state="planned", flops=1.0)]) is None


class TestReading:
    def note(self, attempt, **fields):
        attempt.write_note({**attempt.read_note(), **fields})

    def test_every_state_is_read_from_the_files(self, make, tmp_path):
        finished, broken = make.done(1, loss=1.25), make.done(2)
        (broken.path / "spec.json").write_text("{")
        alive, gone, elsewhere = (make.attempt(make.run(seed)) for seed in (3, 4, 5))
        self.note(alive, **own_process())
        self.note(gone, **{**own_process(), "pid_start": 1})
        self.note(elsewhere, host="another", pid=1)
        failed = make.attempt(make.run(6))
        make.end(failed, "failed", "out of memory")
        runs = [finished, broken, alive.run, gone.run, elsewhere.run, failed.run, make.run(7)]
        missing = make.run(8)
        make.sweep("s", [*runs, missing], [1e12] * 8)
        shutil.rmtree(missing.path)
        status = read_status(make.path, now_s=1.7e9 + 100)
        assert [run.state for run in status.runs] == [
            "done", BROKEN, "running", INTERRUPTED, "running", "failed", "planned", BROKEN,
        ]  # fmt: skip
        assert status.runs[0].loss_nats == 1.25
        running = status.runs[2]
        spec = alive.run.read_spec()
        assert (running.step, running.tokens_per_s, running.silent_s) == (40, 1.25e4, 60.0)
        assert running.eta_s == pytest.approx((spec.n_tokens - 40 * spec.tokens_per_step) / 1.25e4)
        assert status.runs[5].reason == "out of memory"
        assert status.counts == {
            "done": 1, "running": 2, "planned": 1, INTERRUPTED: 1, "failed": 1, BROKEN: 2,
        }  # fmt: skip
        assert sum(status.counts.values()) == len(status.runs)
        text = " ".join(status.advice)
        assert "silent" not in text
        later = read_status(make.path, now_s=1.7e9 + 40 + SILENT_AFTER_S + 9)
        assert "2 runs silent, the longest for 2.1 min" in " ".join(later.advice)
        assert "scalelab retry s" in text
        assert broken.run_id in text
        assert "resume" not in text, "a run is running"

    def test_a_removed_run_folder_names_the_command_that_creates_it(self, make):
        removed = make.run(3)
        make.sweep("s", [removed, make.run(4)])
        shutil.rmtree(removed.path)
        first, second = read_status(make.path).advice
        assert removed.run_id in first
        assert "Run the sweep's command again" in first
        assert "scalelab resume s" in second

    def test_a_stopped_sweep_names_the_command_that_continues_it(self, make):
        gone = make.attempt(make.run(4))
        self.note(gone, host=socket.gethostname(), pid=2**22 + 5, pid_start=1)
        make.sweep("s", [gone.run, make.run(7)])
        (first, *_) = read_status(make.path).advice
        assert "2 runs left" in first
        assert "scalelab resume s" in first

    def test_while_a_worker_qualifies_its_device_nobody_is_told_to_resume(self, make):
        make.sweep("s", [make.run(4)])
        lock = make.path / "qualification" / "gpu.lock" / "3"
        lock.parent.mkdir(parents=True)
        lock.write_text("host 17 4")
        (advice,) = read_status(make.path).advice
        assert "a worker is qualifying its device" in advice
        (advice,) = read_status(make.path, now_s=time.time() + 60).advice
        assert "scalelab resume s" in advice, "a lock that does not change has a dead holder"

    def test_a_budget_without_minimum_says_which_models_to_add(self, make):
        runs = [make.done(1, loss, d) for loss, d in ((3.0, 48), (2.9, 96), (2.8, 144))]
        make.sweep("s", runs, [1e12] * 3)
        status = read_status(make.path)
        assert status.valleys[0].shape == FALLS_TO_LARGE
        assert any("largest model is the best. Add larger" in line for line in status.advice)
        assert any("scalelab fit --sweep s" in line for line in status.advice)

    def test_the_latest_sweep_is_the_default(self, make):
        run = make.done()
        make.sweep("newer", [run], created_s=9.0)
        make.sweep("older", [run], created_s=4.0)
        (make.path / "sweeps" / "odd name").mkdir()
        assert read_status(make.path).sweep == "newer"
        assert Results(make.path).sweep_names() == ["newer", "older"]

    def test_it_needs_no_database_and_changes_no_file(self, make):
        make.sweep("s", [make.done()])
        before = sorted(make.path.rglob("*"))
        assert asdict(read_status(make.path))["counts"] == {"done": 1}
        assert sorted(make.path.rglob("*")) == before

    def test_unknown_sweeps_and_empty_folders_are_clear_errors(self, make):
        with pytest.raises(DataError, match="has no sweep"):
            read_status(make.path)
        make.sweep("s", [make.run()])
        with pytest.raises(DataError, match="one of s"):
            read_status(make.path, "t")
        with pytest.raises(UsageError):
            read_status(make.path, "../s")
        (make.path / "sweeps" / "s" / "plan.json").write_text("{")
        with pytest.raises(DataError, match=r"plan .*s/plan\.json"):
            read_status(make.path, "s")
