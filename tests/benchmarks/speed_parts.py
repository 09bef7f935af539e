"""Lines of `speed_table` that bring their own yardstick: training steps, the page, the demo.

A part yields lines as it measures them. Where the machine lacks what a line needs, or its
measurement ends with an error, the line has no figure and says why.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from speed_works import YARDSTICK, process_seconds

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "results" / "bench" / "dashboard.json"
PAGE_TESTS = {
    "first visit, 120 runs": "tests/browser/test_first_view.py",
    "10,000 runs": "tests/browser/test_speed.py::test_ten_thousand_runs",
    "100,000 runs": "tests/browser/test_speed.py::test_a_hundred_thousand_runs",
}
PAGE_LINES = (
    ("first visit, 120 runs", "first_view_s", "page, 120 runs: first view", "2.5 s"),
    ("first visit, 120 runs", "reload_s", "page, 120 runs: reload", "1.2 s"),
    ("10,000 runs", "first_view_s", "page, 10,000 runs: first view", "2.5 s"),
    ("10,000 runs", "reload_s", "page, 10,000 runs: reload", "1.2 s"),
    ("10,000 runs", "select_s", "page, 10,000 runs: another level", "0.3 s"),
    ("10,000 runs", "fragment_s", "page, 10,000 runs: fragment", "0.25 s"),
    ("100,000 runs", "overview_s", "page, 100,000 runs: Overview", "2.5 s"),
)
STEP_GOALS = {
    "eager": dict.fromkeys(("0.2M", "0.9M", "4.8M", "14M"), "1"),
    "bf16": {"0.2M": "0.74", "0.9M": "0.63", "4.8M": "0.48", "14M": "0.43"},
    "llama": {"0.2M": "0.63", "0.9M": "0.63", "4.8M": "0.67", "14M": "0.77"},
}
"""Largest CPU time relative to a plain trainer (eager), and of the bf16 step relative to our fp32
step (bf16) and to the fastest bf16 step of Llama (llama)."""
DEMO_GOAL = "150 s on two idle cores"
PATIENCE_S = 900


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the table.

    Attributes
    ----------
    name, goal : str
    seconds : float or None
        None where it was not measured.
    ratio : float or None
        Over the part's own yardstick.
    note : str
        Why it was not measured, or what else is known.
    """

    name: str
    goal: str
    seconds: float | None = None
    ratio: float | None = None
    note: str = ""


def has_amx() -> bool:
    """Return whether this CPU multiplies bf16 matrices by AMX."""
    facts = Path("/proc/cpuinfo")
    return facts.exists() and "amx_bf16" in facts.read_text()


def step_lines() -> Iterator[Line]:
    """Yield the CPU time of a step over that of the plain trainer in the same process."""
    for shape, goal in STEP_GOALS["eager"].items():
        command = [sys.executable, str(Path(__file__).with_name("eager_step.py")), "--json"]
        command += ["--shapes", shape, "--steps", "9", *(["--bf16"] if has_amx() else [])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
        if done.returncode:
            yield Line(name=f"eager step, {shape}", goal=goal, note=last_line(done.stderr))
            continue
        ms = json.loads(done.stdout)[shape]
        for side, words, base in (
            ("eager", "a lighter model in plain torch", ms["plain"]),
            ("eager", "the same model in plain torch", ms["twin"]),
            ("direct", "the same model in plain torch", ms["twin"]),
        ):
            yield Line(
                name=f"{side} step over {words}, {shape}",
                goal=goal if side == "eager" else "",
                seconds=ms[side] / 1e3,
                ratio=ms[side] / base,
            )
        llamas = [each for side, each in ms.items() if side.startswith("llama")]
        bases = {
            "bf16": ("our fp32 step", ms["direct"] if "bf16" in ms else None),
            "llama": ("Llama of transformers", min(llamas, default=None)),
        }
        for side, (words, base) in bases.items():
            lacks = "transformers is not installed" if "bf16" in ms else "this CPU has no AMX"
            yield Line(
                name=f"bf16 step over {words}, {shape}",
                goal=STEP_GOALS[side][shape],
                seconds=None if base is None else ms["bf16"] / 1e3,
                ratio=None if base is None else ms["bf16"] / base,
                note=f"not measured: {lacks}" if base is None else "",
            )


def page_lines() -> Iterator[Line]:
    """Yield the times of the page over an empty Streamlit app in the same browser."""
    lacks = ""
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        lacks = "not measured: no Chromium (`make system`)"
    elif find_spec("streamlit") is None:
        lacks = "not measured: no Streamlit"
    FIGURES.unlink(missing_ok=True)
    for key, test in {} if lacks else PAGE_TESTS.items():
        # The limits of these tests hold on an idle machine; here only their figures count.
        command = [sys.executable, "-m", "pytest", "-q", "-m", "bench", test]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        found = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
        for place, figure, name, goal in PAGE_LINES:
            if place != key:
                continue
            if key not in found:
                yield Line(name=name, goal=goal, note=f"failed: {last_line(done.stdout)}")
                continue
            seconds = found[key][figure]
            yield Line(name=name, goal=goal, seconds=seconds, ratio=seconds / found[key]["empty_s"])
    if lacks:
        yield from (Line(name=name, goal=goal, note=lacks) for *_, name, goal in PAGE_LINES)


def demo_lines(folder: Path) -> Iterator[Line]:
    """Yield the CPU time of the demo on an empty home, workers included."""
    home, work = folder / "home", folder / "demo"
    home.mkdir()
    work.mkdir()
    command = ["sh", str(ROOT / "examples" / "demo.sh"), str(Path(sys.executable).parent)]
    units = [process_seconds([sys.executable, "-c", YARDSTICK])]
    started = time.perf_counter()
    try:
        seconds = process_seconds(
            ["env", f"HOME={home}", "XDG_CACHE_HOME=", *command], cwd=work, timeout=PATIENCE_S
        )
    except subprocess.SubprocessError as error:
        yield Line(name="make demo, 24 runs", goal=DEMO_GOAL, note=f"failed: {error}")
        return
    wall_s = time.perf_counter() - started
    units.append(process_seconds([sys.executable, "-c", YARDSTICK]))
    yield Line(
        name="make demo, 24 runs",
        goal=DEMO_GOAL,
        seconds=seconds,
        ratio=2 * seconds / sum(units),
        note=f"{wall_s:.0f} s from start to end",
    )


def last_line(text: str) -> str:
    """Return the last line of a program's output."""
    return ([line for line in text.splitlines() if line.strip()] or ["no output"])[-1]
