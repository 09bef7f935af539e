from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from scalelab.cli import doctor as doctor_module
from scalelab.cli.doctor import EXTRA_USES, check_packages, check_python, check_text, doctor
from scalelab.cli.machine import MISSING, OK, PROBLEM, Check

app = typer.Typer()
app.command()(doctor)

REQUIREMENTS = [
    "numpy>=2.1",
    "rich",
    'torch>=2.11; extra == "train"',
    'triton>=3.6; sys_platform == "linux" and extra == "train"',
    'scalelab[train,fast]; extra == "all"',
    'pytest>=8.4; extra == "dev"',
]
VERSIONS = {"scalelab": "0.1.0", "numpy": "2.10.0", "rich": "15", "torch": "2.13.0+cpu"}


def versions(**changed: str | None) -> Callable[[str], str]:
    table = {**VERSIONS, "triton": "3.7.1", **changed}

    def version_of(name: str) -> str:
        version = table.get(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    return version_of


def statuses(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.status for check in checks}


def test_each_package_of_the_base_and_of_the_extras_is_looked_at() -> None:
    checks = check_packages(REQUIREMENTS, versions(), "linux")
    assert statuses(checks) == dict.fromkeys(["scalelab", "numpy", "rich", "torch", "triton"], OK)
    assert {check.name for check in checks if check.is_base} == {"scalelab", "numpy", "rich"}


def test_what_only_another_system_needs_is_not_asked_for() -> None:
    assert "triton" not in statuses(check_packages(REQUIREMENTS, versions(), "darwin"))


def test_a_missing_extra_names_its_install_command() -> None:
    checks = check_packages(REQUIREMENTS, versions(torch=None), "linux")
    (torch,) = [check for check in checks if check.name == "torch"]
    assert (torch.status, torch.needed_for) == (MISSING, "training")
    assert torch.do == "pip install 'scalelab[train]'"


@pytest.mark.parametrize(
    ("version", "status"), [("2.9", PROBLEM), ("2.11", OK), ("2.11.0rc1", OK), ("3", OK)]
)
def test_versions_are_compared_as_numbers(version: str, status: str) -> None:
    checks = check_packages(REQUIREMENTS, versions(torch=version), "linux")
    assert statuses(checks)["torch"] == status


def test_every_extra_that_a_user_may_want_has_a_use() -> None:
    extras = set(importlib.metadata.metadata("scalelab").get_all("Provides-Extra") or [])
    assert extras - {"all", "dev", "bench", "docs"} == set(EXTRA_USES)


def test_this_python_and_its_text_are_ok(tmp_path: Path) -> None:
    assert check_python().status == OK
    assert check_text(tmp_path).status == OK


def run(*words: str) -> tuple[int, str]:
    # The command's number is its exit code; typer hands it over only outside its own main.
    result = CliRunner().invoke(app, list(words), standalone_mode=False)
    assert result.exception is None, result.exception
    return result.return_value, result.stdout


@pytest.mark.usefixtures("probed_once")
def test_here_the_base_works_and_the_object_says_so(tmp_path: Path) -> None:
    code, out = run("--results", str(tmp_path), "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["command"]) == (0, True, "doctor")
    found = {check["name"]: check for check in report["checks"]}
    assert {"python", "numpy", "torch", "gpu", "slurm", "disk", "clock", "memory"} <= set(found)
    assert all(check["do"] for check in report["checks"] if check["status"] != OK)


def test_a_base_that_does_not_work_is_said_with_exit_code_3(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor_module, "check_accelerator", lambda **_: [])
    code, page = run("--results", f"/proc/{os.getpid()}")
    assert code == 3
    assert "does not work here. Fix: results folder" in page


def test_what_is_wrong_is_printed_first_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", versions_of_all_but("torch"))
    page = run("--results", str(tmp_path))[1].splitlines()
    assert page[0].startswith("Planning, importing and fitting work. Optional: ")
    table = next(i for i, line in enumerate(page) if line.startswith("ok "))
    (torch,) = (i for i, line in enumerate(page) if line.startswith("  missing: torch "))
    assert torch < table
    assert page[torch].endswith("pip install 'scalelab[train]'")
    assert not any("missing" in line or "problem" in line for line in page[table:])


def test_a_missing_extra_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", versions_of_all_but("torch"))
    code, page = run("--results", str(tmp_path))
    assert code == 0
    assert "pip install 'scalelab[train]'" in page
    assert "Planning, importing and fitting work" in page


def versions_of_all_but(name: str) -> Callable[[str], str]:
    version = importlib.metadata.version

    def version_of(asked: str) -> str:
        if asked == name:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(asked)

    return version_of
