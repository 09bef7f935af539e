"""Help of the command groups fits a screen of 80 columns."""

import subprocess
import sys

import pytest

from scalelab.cli.main import ORDER, main


@pytest.mark.parametrize("group", [(), ("sweep",), ("data",), ("bench",)])
def test_no_command_is_described_by_half_a_sentence(group, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*group, "--help"]) == 0
    commands = capsys.readouterr().out.split("Commands:\n")[1].splitlines()
    assert commands
    assert [line for line in commands if "..." in line] == []


def test_what_people_run_first_comes_first(capsys):
    assert main(["--help"]) == 0
    commands = capsys.readouterr().out.split("Commands:\n")[1].split("\n")
    assert [line.split()[0] for line in commands if line.strip()] == list(ORDER)


def test_help_imports_no_heavy_library():
    heavy = ("numpy", "pandas", "torch", "duckdb", "pyarrow", "scipy", "pydantic", "streamlit")
    code = f"import sys, scalelab.cli.main; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "[]\n"
