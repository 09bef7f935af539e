"""Faults of disk, clock and controller, and manual edits: a clear message and no lost result."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scalelab.errors import DataError, RunsFailedError, SpecError, UsageError
from scalelab.launch.base import LaunchRequest
from scalelab.launch.cancel import cancel_runs
from scalelab.launch.execute import _disk_errors_explained, resume
from scalelab.launch.lock import launcher_lock
from scalelab.launch.replace_diverged import replace_diverged
from scalelab.launch.saved_options import save_options
from scalelab.launch.slurm.arrays import SlurmOptions
from scalelab.launch.slurm.intents import read_intents
from scalelab.launch.slurm.launcher import launch_slurm
from scalelab.launch.slurm.resources import RunNeeds
from scalelab.records.run_dir import RunDir
from scalelab.records.sweep_dir import Results, SavedPlan
from scalelab.records.types import RunRecord
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.tables import LauncherTable
from tests.launch.slurm.conftest import CPU_TABLE


class FakeSlurm:
    """A queue in memory; every job completes at the second call."""

    def __init__(self, results: Results, sweep: str) -> None:
        self.results = results
        self.folder = results.sweep(sweep)
        self.looks = 0
        self.before_look: Callable[[int], None] = lambda look: None
        self.cancelled: list[tuple[int, int]] = []
        self.silent_looks = 0
        self.error = "squeue: no route"

    def read_queue(self) -> dict[Any, Any] | None:
        self.looks += 1
        assert self.looks < 50
        self.before_look(self.looks)
        return None if self.looks <= self.silent_looks else {}

    def max_array_size(self) -> int:
        return 1001

    def set_throttle(self, job_id: int, n_running: int) -> bool:
        return True

    def cancel(self, elements: list[tuple[int, int]]) -> bool:
        self.cancelled += elements
        return True


def record(run: RunDir, status: str = "done") -> None:
    attempt = run.claim()
    attempt.write_record(
        RunRecord(
            run_id=run.run_id,
            attempt=attempt.number,
            token=attempt.token,
            status=status,
            loss_nats=1.5 if status == "done" else None,
            loss_se_nats=None,
            n_params={"chinchilla": 1000},
            flops={"exact": 1e9},
            n_tokens=1,
            unique_tokens=1,
            n_steps=1,
            wall_s=1.0,
        )
    )
    attempt.accept()


def launch(results: Results, saved: SavedPlan, slurm: Any) -> Any:
    request = LaunchRequest(
        results=results,
        sweep=saved.name,
        run_ids=saved.run_ids,
        execution=ExecutionSpec(),
        n_workers=1,
    )
    options = SlurmOptions(
        table=CPU_TABLE,
        needs=dict.fromkeys(saved.run_ids, RunNeeds(gpus=0, memory_gb=1.0)),
        seconds=dict.fromkeys(saved.run_ids, 1.0),
        usd_per_gpu_hour=0.0,
    )
    notes: list[str] = []
    report = launch_slurm(request, options, lambda view: notes.append(view.note), slurm=slurm)
    return report, notes


@pytest.fixture
def sbatch(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Replace sbatch: accept every script and number it."""
    scripts: list[Path] = []

    def submit(executor: Any, script: Path) -> int:
        scripts.append(script)
        return len(scripts)

    monkeypatch.setattr("scalelab.launch.slurm.arrays.submit", submit)
    return scripts


def test_a_clock_going_backwards(
    results: Results, saved: SavedPlan, sbatch: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.time()]

    def backwards() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    slurm = FakeSlurm(results, saved.name)

    def work(look: int) -> None:
        if look == 3:
            for run_id in saved.run_ids:
                record(results.run(run_id))

    slurm.before_look = work
    report, _ = launch(results, saved, slurm)
    assert set(report.statuses.values()) == {"done"}
    assert len(sbatch) == 1


def test_a_deleted_run_folder_is_reported_and_the_others_continue(
    results: Results, saved: SavedPlan, sbatch: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalelab.launch.slurm.retries.GONE_GRACE_S", 0.0)
    gone, *others = saved.run_ids
    slurm = FakeSlurm(results, saved.name)

    def work(look: int) -> None:
        if look == 2:
            shutil.rmtree(results.run(gone).path)
            for run_id in others:
                record(results.run(run_id))

    slurm.before_look = work
    report, notes = launch(results, saved, slurm)
    assert report.statuses == {gone: "failed", **dict.fromkeys(others, "done")}
    assert len(sbatch) == 1
    assert any("readable spec.json" in note for note in notes)


@pytest.mark.slow
def test_a_spec_edited_by_hand_is_refused(results: Results, saved: SavedPlan) -> None:
    path = results.run(saved.run_ids[1]).path / "spec.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "lr": content["lr"] * 2}))
    save_options(results, saved.name, LauncherTable(name="slurm", slurm=CPU_TABLE))
    with pytest.raises(SpecError, match="Undo the edit"):
        resume(saved, results, lambda view: None, execution=ExecutionSpec(), n_workers=1)
    assert not read_intents(results.sweep(saved.name))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_disk_errors_are_explained(tmp_path: Path, code: int) -> None:
    with (
        pytest.raises(DataError, match="No results were lost"),
        _disk_errors_explained(tmp_path),
    ):
        raise OSError(code, os.strerror(code))


def test_a_folder_that_cannot_be_written(results: Results, saved: SavedPlan) -> None:
    # pytest's folders are closed to other users.
    with tempfile.TemporaryDirectory() as name:
        there = Results(Path(name) / "results")
        shutil.copytree(results.path, there.path)
        folders = (Path(name), there.path, there.sweep(saved.name))
        for folder in folders:
            folder.chmod(0o555)
        try:
            said = said_to_nobody(lambda: launch_in_words(there, saved))
        finally:
            for folder in folders:
                folder.chmod(0o755)
        assert said.startswith("DataError")
        assert "Permission denied" in said
        assert "change the permissions" in said
        assert not read_intents(there.sweep(saved.name))


def launch_in_words(results: Results, saved: SavedPlan) -> None:
    with _disk_errors_explained(results.path):
        launch(results, saved, FakeSlurm(results, saved.name))


def said_to_nobody(work: Callable[[], object]) -> str:
    """Call ``work`` as a user without root rights; return the error that it raised."""
    receiver, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            work()
        except BaseException as error:
            os.write(sender, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as file:
        said = file.read().decode()
    os.waitpid(pid, 0)
    return said


def test_a_controller_that_does_not_answer_is_reported_once_and_retried(
    results: Results, saved: SavedPlan, sbatch: list[Path]
) -> None:
    for run_id in saved.run_ids[1:]:
        record(results.run(run_id))
    slurm = FakeSlurm(results, saved.name)
    slurm.silent_looks = 3
    slurm.before_look = lambda look: record(results.run(saved.run_ids[0])) if look == 4 else None
    report, notes = launch(results, saved, slurm)
    assert set(report.statuses.values()) == {"done"}
    assert notes.count("SLURM does not answer, retrying: squeue: no route") == 1


def test_two_runs_whose_program_refuses_its_command_end_the_launch(
    results: Results, saved: SavedPlan, sbatch: list[Path]
) -> None:
    slurm = FakeSlurm(results, saved.name)

    def refuse(look: int) -> None:
        for run_id in saved.run_ids[:2]:
            attempt = results.run(run_id).claim()
            ended = {"status": "failed", "kind": "usage", "reason": "no such option --x"}
            attempt.write_note({"ended": {**ended, "time_s": time.time()}})

    slurm.before_look = refuse
    with pytest.raises(RunsFailedError, match="no such option --x"):
        launch(results, saved, slurm)
    assert slurm.looks == 1
    assert not sbatch


def test_a_second_launcher_is_refused_and_names_the_first(
    results: Results, saved: SavedPlan
) -> None:
    with (
        launcher_lock(results.sweep(saved.name)),
        pytest.raises(UsageError, match=f"process {os.getpid()} is launching"),
    ):
        launch(results, saved, FakeSlurm(results, saved.name))


def test_cancelled_runs_are_marked_and_leave_the_queue(
    results: Results, saved: SavedPlan, sbatch: list[Path]
) -> None:
    record(results.run(saved.run_ids[0]))
    slurm = FakeSlurm(results, saved.name)
    report = cancel_runs(results, saved.name, saved.run_ids, slurm=slurm)  # type: ignore[arg-type]
    assert report.run_ids == saved.run_ids[1:]
    assert not slurm.cancelled


def test_diverged_runs_are_replaced_at_a_lower_rate_and_linked(
    results: Results, saved: SavedPlan
) -> None:
    with pytest.raises(UsageError, match="without diverged runs"):
        replace_diverged(results, saved, 0.5)
    old = results.run(saved.run_ids[2])
    record(old, "diverged")
    extended = replace_diverged(results, saved, 0.5)
    (added,) = set(extended.run_ids) - set(saved.run_ids)
    new = results.run(added)
    assert new.read_spec().lr == old.read_spec().lr * 0.5
    assert json.loads((new.path / "origin.json").read_text())["replaces"] == old.run_id
    assert extended.budgets[added] == saved.budgets[old.run_id]
    assert replace_diverged(results, extended, 0.25).run_ids == extended.run_ids
    shutil.rmtree(new.path)
    assert replace_diverged(results, extended, 0.5) == extended
    assert new.read_spec().lr == old.read_spec().lr * 0.5
    assert json.loads((new.path / "origin.json").read_text())["replaces"] == old.run_id
    with pytest.raises(UsageError, match="between 0 and 1"):
        replace_diverged(results, extended, 1.5)


def test_a_full_disk_is_reported_and_the_rest_is_done_later(
    results: Results, saved: SavedPlan, sbatch: list[Path], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        there = Results(disk / "results")
        shutil.copytree(results.path, there.path)
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        with pytest.raises(DataError, match="No space left on device"):
            launch_in_words(there, saved)
        assert not sbatch
        filler.unlink()
        slurm = FakeSlurm(there, saved.name)

        def work(look: int) -> None:
            if look == 3:
                for run_id in saved.run_ids:
                    record(there.run(run_id))

        slurm.before_look = work
        report, _ = launch(there, saved, slurm)
        assert set(report.statuses.values()) == {"done"}
        assert len(sbatch) == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)
