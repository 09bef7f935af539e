"""The report of a run of the cases: one JSON file, rewritten after each case, and a table."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_cases.case import CHECK, Case, Goal

LIMITS = {"gb_s": ("copy_gb_s", "share_of_copy"), "tflop_s": ("matmul_tflop_s", "share_of_matmul")}
LIMITS["palm_tflop_s"] = ("matmul_tflop_s", "palm_share_of_matmul")
"""Rate of a case, the ceiling that limits it, and the name of their quotient."""
MET, MISSED, UNKNOWN = "met", "missed", "not measured"


class Report:
    """Collects answers and writes ``NAME.json`` and ``NAME.md``.

    An earlier report stays until a case has passed, which needs a device.

    Parameters
    ----------
    path : Path
        Folder and name, without an ending.
    facts : Mapping
        What is known before the first case.
    goals : sequence of Goal
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], goals: Sequence[Goal]) -> None:
        self.path, self.goals = path, goals
        self.started_s = time.monotonic()
        self.content: dict[str, Any] = {**facts, "wall_s": 0.0, "cases": {}, "goals": []}
        self.failed_checks: list[str] = []
        self._keeps_earlier = path.with_suffix(".json").exists()
        self.save()

    def add(self, case: Case, answer: Mapping[str, Any], clocks: Mapping[str, Any]) -> None:
        """Add the answer of a case and write the files."""
        row = dict(answer)
        if clocks:
            row["clocks"] = dict(clocks)
        if (figures := row.get("figures")) is not None and figures.get("problems"):
            row |= {"status": "failed", "reason": "; ".join(figures["problems"])[:500]}
        if case.kind == CHECK and row["status"] != "ok":
            self.failed_checks.append(case.name)
        self.content["cases"][case.name] = row
        self._keeps_earlier &= row["status"] != "ok"
        self.save()

    def save(self) -> None:
        """Write both files; each is complete at all times."""
        if self._keeps_earlier:
            return
        cases = self.content["cases"]
        self.content["wall_s"] = time.monotonic() - self.started_s
        ceilings = cases.get("ceilings", {}).get("figures", {})
        for row in cases.values():
            figures = row.get("figures", {})
            for rate, (ceiling, share) in LIMITS.items():
                if figures.get(rate) and ceilings.get(ceiling):
                    figures[share] = figures[rate] / ceilings[ceiling]
        self.content["goals"] = [reached(goal, cases) for goal in self.goals]
        _replace(self.path.with_suffix(".json"), json.dumps(self.content, indent=1) + "\n")
        _replace(self.path.with_suffix(".md"), self.table())

    def table(self) -> str:
        """Return the cases and the goals as Markdown."""
        content = self.content
        lines = [
            f"{key}: {value}" for key, value in content["facts"].items() if isinstance(value, str)
        ]
        lines += ["", "| case | s | result |", "|---|---|---|"]
        for name, row in content["cases"].items():
            lines.append(f"| {name} | {row['wall_s']:.0f} | {_said(row)} |")
        lines += ["", "| goal | wanted | reached | |", "|---|---|---|---|"]
        for goal in content["goals"]:
            value = "-" if goal["reached"] is None else f"{goal['reached']:.3g}"
            what = f"{goal['case']}: {goal['figure']}"
            lines.append(f"| {what} | {goal['wanted']:g} | {value} | {goal['verdict']} |")
        return "\n".join(lines) + "\n"


def reached(goal: Goal, cases: Mapping[str, Any]) -> dict[str, Any]:
    """Return a goal with the figure that was reached."""
    value = cases.get(goal.case, {}).get("figures", {}).get(goal.figure)
    verdict = UNKNOWN if value is None else MET if value >= goal.wanted else MISSED
    return {
        "case": goal.case,
        "figure": goal.figure,
        "wanted": goal.wanted,
        "reached": value,
        "verdict": verdict,
    }


def _said(row: Mapping[str, Any]) -> str:
    if row["status"] != "ok":
        return f"**{row['status']}**: {row.get('reason', '')}".replace("|", "/")
    figures = row["figures"]
    shares = [
        f"{100 * figures[share]:.0f} % of {ceiling.split('_')[0]}"
        for _, (ceiling, share) in LIMITS.items()
        if share in figures and not share.startswith("palm")
    ]
    return "; ".join([str(figures.get("says", "ok")), *shares]).replace("|", "/")


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    os.replace(part, path)
