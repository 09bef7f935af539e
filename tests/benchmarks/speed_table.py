"""The table of speeds, ``make bench``: ``python tests/benchmarks/speed_table.py``.

Each command runs in processes of its own, in turn with a yardstick (a fixed load of Python and
NumPy). Its figure is the median of its CPU time, user and system; its ratio is the median of CPU
time over that of the yardstick of the same turn, which depends less on the machine. Other lines
have a yardstick of their own: a step the plain torch trainer, the page an empty Streamlit app
(`speed_parts`). The end is an error if a ratio is more than 20 % above the committed one, or a line
could not be measured for another reason than what the machine lacks.

``--against`` measures the commands of a second installation, such as an older version, in the same
turns. Commands run with compiled modules (bytecode), as after an installation.

``--commit`` writes the ratios and the table of results/tables/speed.md after each line, so a run
that is stopped keeps the lines that it has measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from speed_parts import Line, demo_lines, page_lines, step_lines
from speed_works import YARDSTICK, Work, heavy_works, light_works, process_seconds

Lines = Iterator[Line]
COMMITTED = Path(__file__).with_name("speed_ratios.json")
SLACK = 1.2
MINUTES = 20.0
"""Time after which no other line is started."""
TABLE = Path(__file__).parents[2] / "results" / "tables" / "speed.md"
START, END = "<!-- speed_table.py: start -->", "<!-- speed_table.py: end -->"
WARM_TURNS = 5
"""Works of as many turns have another one first, which does not count."""
HEAD = "| work | goal | figure | ratio | committed | note |\n|---|---|---|---|---|---|"
LATE = "not measured: the time was up"


def measured(work: Work, pythons: Mapping[str, str]) -> Line:
    """Return the line of a command: medians over its turns, of all installations."""
    if work.turns >= WARM_TURNS:
        for python in pythons.values():
            work.seconds(python)  # compiles the modules
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in pythons}
    for _ in range(work.turns):
        for name, python in pythons.items():
            unit = process_seconds([sys.executable, "-c", YARDSTICK])
            turns[name].append((work.seconds(python), unit))
    seconds, ratio = (
        {name: statistics.median(map(figure, each)) for name, each in turns.items()}
        for figure in (lambda turn: turn[0], lambda turn: turn[0] / turn[1])
    )
    others = (f"{n}: {seconds[n]:.3g} s, {ratio[n]:.3g}" for n in pythons if n != "here")
    return Line(
        name=work.name,
        goal=work.goal,
        seconds=seconds["here"],
        ratio=ratio["here"],
        note=", ".join(others),
    )


def lines(pythons: Mapping[str, str], folder: Path, minutes: float, is_light: bool) -> Lines:
    """Yield each line when it is known; after ``minutes`` no other one is started.

    A command that is behind is measured once more, and the smaller ratio counts.
    """
    end = time.monotonic() + 60 * minutes
    # Without bytecode every process compiles each module again, which no installed command does.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")

    def commands(works: Iterator[Work]) -> Lines:
        for work in works:
            if time.monotonic() > end:
                yield Line(name=work.name, goal=work.goal, note=LATE)
                continue
            found = measured(work, pythons)
            if behind([found], committed()):
                found = min(found, measured(work, pythons), key=lambda line: line.ratio or 0.0)
            yield found

    yield from commands(light_works(folder))
    yield from step_lines()
    if is_light:
        return
    for name, part in (
        ("commands on much data", lambda: commands(heavy_works(folder))),
        ("make demo", lambda: demo_lines(folder)),
        ("page", page_lines),
    ):
        if time.monotonic() > end:
            yield Line(name=name, goal="", note=LATE)
        else:
            yield from part()


def committed() -> dict[str, float]:
    """Return the ratios that are kept in the repository."""
    found: dict[str, float] = json.loads(COMMITTED.read_text())
    return found


def behind(found: Iterable[Line], ratios: Mapping[str, float]) -> list[str]:
    """Return the lines whose ratio is more than 20 % above the committed one, or that failed."""
    slower = [
        f"{line.name}: ratio {line.ratio:.3g}, committed {ratios[line.name]:.3g}"
        for line in found
        if line.ratio is not None and line.ratio > SLACK * ratios.get(line.name, float("inf"))
    ]
    is_late = (line for line in found if line.note == LATE or line.note.startswith("failed"))
    return slower + [f"{line.name}: {line.note}" for line in is_late]


def cells(line: Line, ratios: Mapping[str, float]) -> str:
    """Return a line of the Markdown table."""
    figure = "" if line.seconds is None else f"{line.seconds:.3g} s"
    ratio = "" if line.ratio is None else f"{line.ratio:.3g}"
    before = f"{ratios[line.name]:.3g}" if line.name in ratios else ""
    return f"| {line.name} | {line.goal} | {figure} | {ratio} | {before} | {line.note} |"


def write_table(rows: Iterable[str]) -> None:
    """Replace the generated part of `TABLE`."""
    text = TABLE.read_text()
    before, rest = text.split(START, 1)
    part = f"{date.today()}, {os.cpu_count()} cores, `make bench`.\n\n{HEAD}\n" + "\n".join(rows)
    TABLE.write_text(f"{before}{START}\n{part}\n{END}{rest.split(END, 1)[1]}")


def main() -> None:
    """Print the table; with ``--commit`` write the ratios that later runs are compared with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", metavar="PYTHON", help="Python of another installation")
    parser.add_argument("--commit", action="store_true", help=f"write {COMMITTED.name}")
    parser.add_argument("--light", action="store_true", help="only lines without large inputs")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="start no line after this time"
    )
    arguments = parser.parse_args()
    pythons = {"here": sys.executable}
    if arguments.against:
        pythons["before"] = arguments.against
    print(HEAD, flush=True)
    before, found, rows = committed(), [], []
    with tempfile.TemporaryDirectory() as folder:
        for line in lines(pythons, Path(folder), arguments.minutes, arguments.light):
            found.append(line)
            rows.append(cells(line, before))
            print(rows[-1], flush=True)
            if arguments.commit:
                ratios = {each.name: each.ratio for each in found if each.ratio is not None}
                rounded = {name: round(ratio, 3) for name, ratio in ratios.items()}
                COMMITTED.write_text(json.dumps(committed() | rounded, indent=1) + "\n")
                write_table(rows)
    if not arguments.commit and (slower := behind(found, before)):
        sys.exit("Behind the committed ratios:\n" + "\n".join(slower))


if __name__ == "__main__":
    main()
