"""A saved plan: the same again touches nothing, and mends what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scalelab.errors import DataError, UsageError
from tests.launch.slurm.replayed import make_runs


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


def test_another_text_is_not_added_unasked(tmp_path: Path) -> None:
    results, run_ids = make_runs(tmp_path / "results", 2)
    with pytest.raises(UsageError, match=r"another text \(data f{12}; its files now give a{12}\)"):
        make_runs(tmp_path / "results", 2, text="a" * 12)
    assert results.load_plan("crash").run_ids == run_ids
    _, both = make_runs(tmp_path / "results", 2, text="a" * 12, extend=True)
    assert both[:2] == run_ids
    assert len(both) == 4
    # Either text is now the sweep's own.
    assert make_runs(tmp_path / "results", 2)[1] == both


@pytest.mark.parametrize("content", ['{"kind": "grid", ', "[]", None])
def test_a_specification_that_cannot_be_read_lets_no_other_runs_in(
    tmp_path: Path, content: str | None
) -> None:
    results, run_ids = make_runs(tmp_path / "results", 2)
    spec = results.sweep("crash") / "spec.json"
    spec.unlink()
    if content is not None:
        spec.write_text(content)
    with pytest.raises(UsageError, match=r"spec\.json cannot be read"):
        make_runs(tmp_path / "results", 3)
    assert make_runs(tmp_path / "results", 2)[1] == run_ids
    with pytest.raises(UsageError, match="another train"):
        make_runs(tmp_path / "results", 3)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"run_id": "', '"run_id": 5, "x": "'), ('"budget_flops": null', '"budget_flops": "1e9"')],
)
def test_a_plan_of_wrong_types_is_bad_data(tmp_path: Path, old: str, new: str) -> None:
    results, _ = make_runs(tmp_path / "results", 2)
    path = results.sweep("crash") / "plan.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=r"plan\.json: (run_id = 5|budget_flops = '1e9')"):
        results.load_plan("crash")


def test_a_run_stays_in_the_valley_for_which_it_was_planned_first(tmp_path: Path) -> None:
    results, run_ids = make_runs(tmp_path / "results", 1)
    path = results.sweep("crash") / "plan.json"
    path.write_text(path.read_text().replace('"budget_flops": null', '"budget_flops": 1e9'))
    make_runs(tmp_path / "results", 2, extend=True)
    assert results.load_plan("crash").budgets[run_ids[0]] == 1e9
