"""Each file in sweeps/ can be launched as it is, or its header says what to set first."""

import json
from pathlib import Path

import pytest

from scalelab.cli.main import main
from scalelab.sweep.spec import read_sweep_file

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "sweeps").glob("*.toml"))
SET_FIRST = "# Set first:"
CHECKPOINT_BYTES_PER_PARAMETER = 12


def planned(capsys, path: Path, *options: str) -> dict:
    assert main(["sweep", "run", str(path), "--dry-run", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sweep_file_can_be_launched_or_says_what_to_set(path, capsys, tmp_path):
    plan = planned(capsys, path, "--results", str(tmp_path))
    is_refused = any("refuse" in warning for warning in plan["warnings"])
    assert is_refused == (SET_FIRST in path.read_text(encoding="utf-8"))
    sweep = read_sweep_file(path)
    if sweep.launcher.name == "slurm":
        largest = max(row["n_params"] for row in plan["rows"])
        memory = max(array["memory_gb"] for array in plan["slurm"]["arrays"]) * 1e9
        assert memory > 1.5 * CHECKPOINT_BYTES_PER_PARAMETER * largest


def test_there_are_files_of_both_kinds():
    headers = [SET_FIRST in path.read_text(encoding="utf-8") for path in FILES]
    assert any(headers)
    assert not all(headers)
