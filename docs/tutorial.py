"""Fill in the output of the commands in the tutorial and in the README by running them.

A page shows a command as a ``console`` block: ``$ scalelab ..`` and its output. The sweep with
``--yes`` takes minutes, so its block keeps its recorded output and its runs are copied from
``results/published/demo``; ``--train`` trains it. Every other command runs on these runs.

Usage: python docs/tutorial.py [--check | --train]
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("docs/tutorial.md", "README.md")
PUBLISHED = ROOT / "results/published/demo"
BLOCK = re.compile(r"(?:<!-- first (\d+) lines -->\n)?```console\n\$ (.+)\n((?:.*\n)*?)```\n")
# What differs between machines: speed, time and money of a plan.
MACHINE = re.compile(r"^(here|elsewhere|there|on |24 new runs)|worker-hours")
RUN_ID = re.compile(r"\b[0-9a-f]{12}\b")
NUMBER = re.compile(r"\d[\d.,]*(?:e-?\d+)?[KMBT]?")
TOLERANCE = 0.05


def output_of(command: str, folder: Path) -> str:
    """Return what a command prints in ``folder``, without trailing spaces."""
    words = shlex.split(command)
    assert words[0] == "scalelab", command
    environment = {name: v for name, v in os.environ.items() if not name.startswith("SCALELAB_")}
    answer = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={
            **environment,
            "COLUMNS": "96",
            "NO_COLOR": "1",
            "XDG_CONFIG_HOME": str(folder / "config"),
        },
        capture_output=True,
        text=True,
        timeout=3600,
    )
    if answer.returncode not in {0, 4}:
        raise RuntimeError(f"{command}: exit code {answer.returncode}\n{answer.stderr}")
    lines = (answer.stderr if "--yes" in words else "") + answer.stdout
    return "".join(f"{line.rstrip()}\n" for line in lines.strip().splitlines())


def fill(page: str, folder: Path, *, trains: bool) -> str:
    """Return the page with the output of each command filled in."""

    def block(found: re.Match[str]) -> str:
        first, command, _ = found.groups()
        if "--yes" in command and not trains:
            if not (folder / "results/runs").exists():
                shutil.copytree(PUBLISHED, folder / "results", dirs_exist_ok=True)
                output_of("scalelab collect", folder)
            return found.group()
        new = output_of(command, folder)
        mark = ""
        if first:
            mark = f"<!-- first {first} lines -->\n"
            new = "".join(new.splitlines(keepends=True)[: int(first)]) + "...\n"
        return f"{mark}```console\n$ {command}\n{new}```\n"

    return BLOCK.sub(block, page)


def differences(old: str, new: str) -> list[str]:
    """Return the lines whose words differ, or whose numbers differ by more than 5 %."""
    found = []
    before, after = _comparable(old), _comparable(new)
    for one, other in zip(before, after, strict=False):
        a, b = _numbers(one), _numbers(other)
        same_words = NUMBER.sub("#", one) == NUMBER.sub("#", other) and len(a) == len(b)
        close = all(
            abs(x - y) <= TOLERANCE * max(abs(x), abs(y)) for x, y in zip(a, b, strict=False)
        )
        if not (same_words and close):
            found.append(f"- {one}\n+ {other}")
    if len(before) != len(after):
        found.append(f"{len(before)} lines, now {len(after)}")
    return found


def _comparable(page: str) -> list[str]:
    page = RUN_ID.sub("RUN_ID", page)
    lines = [" ".join(line.split()) for line in page.splitlines() if not MACHINE.search(line)]
    return [_plan(line) if "d-" in line else line for line in lines]


def _plan(line: str) -> str:
    """Return a row of a plan without its last two columns, time and money."""
    return re.sub(r" [\d.]+ (s|min|h) .*$", "", line)


def _numbers(line: str) -> list[float]:
    units = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    numbers = []
    for text in NUMBER.findall(line):
        scale = units.get(text[-1], 1.0)
        digits = text.rstrip("KMBT").replace(",", "").rstrip(".")
        if re.fullmatch(r"\d+(\.\d+)?(e-?\d+)?", digits):
            numbers.append(float(digits) * scale)
    return numbers


def main(arguments: list[str]) -> int:
    """Fill in the pages, or with ``--check`` say whether they are current."""
    stale = False
    for name in PAGES:
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            new = fill(old, Path(folder), trains="--train" in arguments)
            picture = Path(folder) / "isoflop.png"
            if picture.exists() and "--check" not in arguments:
                shutil.copy(picture, ROOT / "docs/images/demo.png")
        if "--check" in arguments:
            for line in differences(old, new):
                print(f"{name}:\n{line}")
                stale = True
        else:
            path.write_text(new, encoding="utf-8")
    if stale:
        print("The pages are stale. Run: python docs/tutorial.py")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
