"""Help of the command groups fits a screen of 80 columns."""

import subprocess
import sys

import pytest
import typer.main

from scalelab.cli.lazy_group import lazy_group
from scalelab.cli.main import ORDER, app, main


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


def test_a_command_builds_no_other_command(monkeypatch, capsys):
    built, build = [], typer.main.get_command_from_info

    def recorded(command_info, **settings):
        built.append(command_info.name)
        return build(command_info, **settings)

    monkeypatch.setattr(typer.main, "get_command_from_info", recorded)
    assert main(["tables", "--json"]) == 0
    assert built == ["tables"]
    capsys.readouterr()


def test_commands_that_are_built_on_demand_are_those_of_the_app():
    group, lazy = typer.main.get_group(app), lazy_group(app)
    assert list(lazy.commands) == list(group.commands)
    assert len(lazy.commands) == len(group.commands)
    for name, command in lazy.commands.items():
        assert command.get_short_help_str() == group.commands[name].get_short_help_str()
        assert [p.opts for p in command.params] == [p.opts for p in group.commands[name].params]
    assert list(lazy.commands["sweep"].commands) == list(group.commands["sweep"].commands)
