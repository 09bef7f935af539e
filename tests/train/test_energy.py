"""Joules from counters: wrap-around, shares by CPU time, and None without a readable counter."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scalelab.records.run_dir import RunDir
from scalelab.train import energy
from tests.train.outcome import last_note, result

RANGE_UJ = 1000


@pytest.fixture
def rapl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets the counters of package, cores and memory, and the busy time."""
    names = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram"}
    for zone, name in names.items():
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(name + "\n")
        (tmp_path / zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(energy, "PROC_STAT", tmp_path / "stat")

    def put(package: int, dram: int, busy_ticks: int, own_s: float) -> None:
        for zone, value in (("0", package), ("0:0", 999), ("0:1", dram)):
            (tmp_path / f"intel-rapl:{zone}" / "energy_uj").write_text(f"{value}\n")
        # user nice system idle iowait irq softirq steal guest guest_nice
        (tmp_path / "stat").write_text(f"cpu {busy_ticks} 0 0 5000 70 0 0 0 31 0\ncpu0 1\n")
        monkeypatch.setattr(time, "process_time", lambda: own_s)

    return put


def test_a_process_gets_its_share_of_package_and_memory(rapl: Callable[..., None]) -> None:
    rapl(100, 50, 1000, 2.0)
    meter = energy.EnergyMeter("cpu")
    # 400 + 30 microjoules while the machine worked 4 s and this process 1 s of them.
    rapl(500, 80, 1400, 3.0)
    assert meter.read(is_last=True) == pytest.approx(430e-6 / 4)
    # The package's counter has wrapped around: 1000 - 500 + 100.
    rapl(100, 80, 1500, 4.0)
    assert meter.read(n_runs=3, is_last=True) == pytest.approx(430e-6 / 4 + 600e-6 / 3)


def test_without_a_readable_counter_the_energy_is_none(
    rapl: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rapl(100, 50, 1000, 2.0)
    meter = energy.EnergyMeter("cpu")
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.read(is_last=True) is None
    assert energy.EnergyMeter("cpu").read(is_last=True) is None
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "nothing")
    assert energy.EnergyMeter("cpu").read(is_last=True) is None


def test_the_record_has_the_joules_of_all_attempts(
    make_run: Callable[..., RunDir],
    attempt_at: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Meter:
        """Adds 2 joules at each reading."""

        def __init__(self, device: str) -> None:
            self.joules: float | None = 0.0

        def read(self, *, n_runs: int = 1, is_last: bool = False) -> float | None:
            assert self.joules is not None
            self.joules += 2.0 / n_runs
            return self.joules

    monkeypatch.setattr("scalelab.train.session.EnergyMeter", Meter)
    run = make_run()
    assert attempt_at(run, stop_at=12) == "preempted"
    first = last_note(run)["ended"]["energy_j"]
    assert first > 0
    assert attempt_at(run) == "done"
    second = last_note(run)["ended"]["energy_j"]
    assert second > 0
    assert result(run).energy_j == pytest.approx(first + second)


def test_without_a_counter_the_record_has_no_energy(
    make_run: Callable[..., RunDir],
    attempt_at: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    run = make_run(n_steps=4, warmup_steps=1)
    assert attempt_at(run) == "done"
    assert result(run).energy_j is None
    assert last_note(run)["ended"]["energy_j"] is None
