from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from scalelab.cli import machine
from scalelab.cli.machine import (
    OK,
    PROBLEM,
    Check,
    check_memory,
    check_results,
    filesystem_in,
    filesystem_of,
    free_memory_bytes,
)

MOUNTS = r"""
22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:22 / /home rw - nfs4 server:/home rw
24 23 0:23 / /home/me/with\040space rw shared:7 master:2 - lustre fs rw
25 22 0:24 / /over rw - ext4 /dev/vdb rw
26 22 0:25 / /over rw - tmpfs tmpfs rw
""".strip().splitlines()


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", "ext4"),
        ("/homely", "ext4"),
        ("/home/me", "nfs4"),
        ("/home/me/with space/runs", "lustre"),
        ("/over/it", "tmpfs"),
    ],
)
def test_a_folder_lies_on_the_longest_and_last_mount(folder: str, kind: str) -> None:
    assert filesystem_in(MOUNTS, Path(folder)) == kind


def test_the_file_system_of_a_real_folder_is_known() -> None:
    assert filesystem_of(Path("/proc")) == "proc"


def test_a_folder_that_works_is_ok_and_left_as_it_was(tmp_path: Path) -> None:
    checks = by_name(check_results(tmp_path))
    assert {name: check.status for name, check in checks.items()} == {
        "results folder": OK,
        "disk": OK,
        "clock": OK,
    }
    assert str(tmp_path) in checks["results folder"].found
    assert list(tmp_path.iterdir()) == []


def test_a_check_does_not_create_a_missing_folder(tmp_path: Path) -> None:
    checks = by_name(check_results(tmp_path / "new" / "results"))
    assert checks["results folder"].status == OK
    assert "does not exist yet" in checks["results folder"].found
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_problem() -> None:
    (check,) = check_results(Path("/proc/self"))
    assert (check.name, check.status, check.is_base) == ("results folder", PROBLEM, True)
    assert "--results" in check.do


def test_what_the_file_system_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    check = by_name(check_results(tmp_path))["results folder"]
    assert check.status == PROBLEM
    assert "lacks hard links" in check.found
    assert list(tmp_path.iterdir()) == []


def test_a_network_file_system_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "filesystem_of", lambda folder: "nfs4")
    check = by_name(check_results(tmp_path))["results folder"]
    assert check.status == OK
    assert "a network file system" in check.found
    assert check.do


def test_little_room_and_little_memory_are_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "LOW_DISK_BYTES", 1 << 70)
    monkeypatch.setattr(machine, "LOW_MEMORY_BYTES", 1 << 70)
    disk = by_name(check_results(tmp_path))["disk"]
    memory = by_name(check_memory())["memory"]
    assert (disk.status, memory.status) == (PROBLEM, PROBLEM)
    assert disk.do
    assert memory.do


def test_a_clock_far_from_the_file_servers_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 60)
    check = by_name(check_results(tmp_path))["clock"]
    assert check.status == PROBLEM
    skew_s = float(check.found.split(", ")[1].partition(" s")[0])
    # A busy machine may take long between the two clocks that are compared.
    assert skew_s == pytest.approx(60, abs=15)


def test_cores_and_memory_are_those_of_this_process() -> None:
    checks = by_name(check_memory())
    assert checks["cores"].found.startswith(f"{len(os.sched_getaffinity(0))} of ")
    free = free_memory_bytes()
    assert free is not None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free <= total
