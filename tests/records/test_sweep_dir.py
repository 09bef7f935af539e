"""A saved plan: the same again touches nothing, and mends what is missing."""

from __future__ import annotations

import json
from pathlib import Path

from tests.launch.replayed_slurm import make_runs


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_the_same_plan_again_touches_no_file(tmp_path: Path) -> None:
    make_runs(tmp_path / "results", 4)
    before = stamps(tmp_path)
    make_runs(tmp_path / "results", 4)
    assert stamps(tmp_path) == before


def test_the_same_plan_again_mends_what_was_removed(tmp_path: Path) -> None:
    results, run_ids = make_runs(tmp_path / "results", 4)
    spec = results.run(run_ids[2]).path / "spec.json"
    sweep_spec = results.sweep("crash") / "spec.json"
    texts = spec.read_text(), json.loads(sweep_spec.read_text())
    spec.unlink()
    sweep_spec.unlink()
    make_runs(tmp_path / "results", 4)
    assert (spec.read_text(), json.loads(sweep_spec.read_text())) == texts
