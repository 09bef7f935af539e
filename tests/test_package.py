"""An installed package has every data file that the source has."""

import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_data_file_is_part_of_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["scalelab"]
    package = ROOT / "scalelab"
    included = {path for pattern in patterns for path in package.glob(pattern)}
    tracked = subprocess.run(
        ["git", "ls-files", "scalelab"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    data = {ROOT / name for name in tracked if not name.endswith(".py")}
    assert data
    assert data <= included
