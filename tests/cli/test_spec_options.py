"""Options come from the fields of the specifications, and reference pages from the options."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from scalelab.cli.main import app, main
from scalelab.cli.spec_options import FIRST, MOST_USED, N_FIRST, SpecCommand
from scalelab.sweep.option import options
from scalelab.sweep.spec import AXES, SweepSpec, read_sweep_file

ROOT = Path(__file__).parents[2]
FILE = """
kind = "isoflop"
budgets = "1e12"
sizes = 3

[train]
seq_len = 64
weight_decay = 0.2
"""


@pytest.fixture
def sweep_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "small.toml").write_text(FILE)
    return Path("small.toml")


def dry_run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    code = main([*words, "--dry-run", "--json"])
    return code, json.loads(capsys.readouterr().out)


def commands() -> dict[str, SpecCommand]:
    group = typer.main.get_group(app)
    found = {**group.commands, **group.commands["sweep"].commands}
    return {name: item for name, item in found.items() if isinstance(item, SpecCommand)}


def test_every_field_of_a_sweep_has_a_flag_with_help_and_an_example() -> None:
    without = {item.key for item in options(SweepSpec) if item.flag is None}
    # The keys of a program are in the file that --program names.
    of_programs = {key for key in without if key.startswith("program.")}
    assert without - of_programs == {"kind", "train.tuned", "train.noise"}
    for item in options(SweepSpec):
        assert item.help
        assert not item.help.endswith(".")
        assert item.flag is None or item.example
    flags = {flag for parameter in commands()["run"].params for flag in parameter.opts}
    assert {item.flag for item in options(SweepSpec) if item.flag} <= flags


def test_each_kind_has_its_axes_and_ten_options_come_first() -> None:
    for kind, axes in AXES.items():
        names = [parameter.name for parameter in commands()[kind].params]
        assert set(axes) <= set(names)
        first = [
            name for name in FIRST if name in names and (name, kind) != ("n_params", "isoflop")
        ]
        assert names[:N_FIRST] == first[:N_FIRST]
    assert "budgets" not in {parameter.name for parameter in commands()["grid"].params}
    assert "schedule" not in {parameter.name for parameter in commands()["ladder"].params}


def test_help_is_grouped_in_panels(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "isoflop", "--help"]) == 0
    shown = capsys.readouterr().out
    panels = re.findall(r"^(\w[\w ]*):$", shown, flags=re.M)
    assert panels == [
        *(MOST_USED, "What to run", "Data", "Model", "Training"),
        *("Training program", "Execution", "Launcher", "SLURM", "Output", "Options"),
    ]


def test_every_flag_overrides_the_key_of_a_sweep_file(
    sweep_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = dry_run(capsys, "sweep", "run", str(sweep_file))
    assert (code, len(said["rows"]), said["rows"][0]["seq_len"]) == (0, 3, 64)
    changes = ("--sizes", "2", "--seq-len", "32", "--seeds", "0,1", "--name", "other")
    code, said = dry_run(capsys, "sweep", "run", str(sweep_file), *changes)
    assert (code, len(said["rows"]), said["rows"][0]["seq_len"]) == (0, 4, 32)
    assert said["name"] == "other"


def test_settings_do_not_change_the_runs_of_a_sweep_file(
    sweep_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = dry_run(capsys, "sweep", "run", str(sweep_file))[1]
    Path("scalelab.toml").write_text('seq_len = 32\nsizes = 2\npartition = "gpu"\n')
    assert dry_run(capsys, "sweep", "run", str(sweep_file))[1]["rows"] == plain["rows"]


def test_an_option_out_of_range_names_flag_key_and_an_example(
    sweep_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("sweep", "isoflop", "--budgets", "1e12")
    for more, parts in {
        ("--seq-len", "0"): ("train.seq_len = '0' (--seq-len)", "--seq-len 512"),
        ("--mem", "4x"): ("mem_gb '4x' (--mem)", "--mem 80G"),
        ("--schedule", "cosin"): ("train.schedule = 'cosin'", "Did you mean cosine?"),
        ("--weight-decay", "11"): ("at most 10", "weight_decay = 0.05 in a sweep file"),
    }.items():
        code, said = dry_run(capsys, *words, *more)
        assert code == 2
        for part in parts:
            assert part in " ".join(said["error"].values())


def test_a_single_value_of_a_tuning_is_a_setting(
    sweep_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = ("tune", "--n-params", "20K", "--n-tokens", "1M", "--weight-decay", "0.3")
    code, said = dry_run(capsys, *cells, "--batch-seqs", "16", "--seq-len", "64")
    assert code == 0
    assert said["rows"][0]["batch_seqs"] == 16
    assert set(said["bounds"][0]) == {"lr"}


def test_the_schema_of_sweep_files_has_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    keys = set(schema["properties"])
    for table in schema["$defs"].values():
        keys |= set(table["properties"])
    assert {part for item in options(SweepSpec) for part in item.path} <= keys
    kinds = [part["type"] for part in schema["properties"]["budgets"]["anyOf"]]
    assert {"string", "number", "array"} <= set(kinds)
    assert read_sweep_file(ROOT / "sweeps/smoke.toml").kind in schema["properties"]["kind"]["enum"]


def test_the_reference_pages_are_up_to_date() -> None:
    words = [sys.executable, "docs/generate.py", "--check"]
    answer = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_the_table_of_environment_variables_is_complete() -> None:
    of_command = ("FILE", "MAP", "READING", "METRIC", "EXCLUDE")
    internal = {f"SCALELAB_DASHBOARD_{name}" for name in of_command}
    internal.add("SCALELAB_TOKEN")
    read = set()
    for folder in ("scalelab", "dashboard", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            read |= set(re.findall(r"\"((?:SCALELAB|XDG)_[A-Z_]+)\"", path.read_text()))
    page = (ROOT / "docs/reference/environment.md").read_text()
    assert read - internal == set(re.findall(r"`((?:SCALELAB|XDG)_[A-Z_]+)`", page))
