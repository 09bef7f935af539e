"""Saving a plan again changes no file and writes missing ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scalelab.errors import DataError, UsageError
from scalelab.sweep.spec import SweepSpec
from tests.launch.slurm.replayed import make_runs


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_saving_the_same_plan_again_changes_no_file(tmp_path: Path) -> None:
    make_runs(tmp_path / "results", 4)
    before = stamps(tmp_path)
    make_runs(tmp_path / "results", 4)
    assert stamps(tmp_path) == before


def test_saving_the_same_plan_again_writes_removed_files(tmp_path: Path) -> None:
    results, run_ids = make_runs(tmp_path / "results", 4)
    spec = results.run(run_ids[2]).path / "spec.json"
    sweep_spec = results.sweep("crash") / "spec.json"
    texts = spec.read_text(), json.loads(sweep_spec.read_text())
    spec.unlink()
    sweep_spec.unlink()
    make_runs(tmp_path / "results", 4)
    assert (spec.read_text(), json.loads(sweep_spec.read_text())) == texts


def test_another_dataset_needs_extend(tmp_path: Path) -> None:
    results, run_ids = make_runs(tmp_path / "results", 2)
    with pytest.raises(
        UsageError, match=r"dataset \(fingerprint f{12}; the files now have a{12}\)"
    ):
        make_runs(tmp_path / "results", 2, text="a" * 12)
    assert results.load_plan("crash").run_ids == run_ids
    _, both = make_runs(tmp_path / "results", 2, text="a" * 12, extend=True)
    assert both[:2] == run_ids
    assert len(both) == 4
    # Both datasets now belong to the sweep.
    assert make_runs(tmp_path / "results", 2)[1] == both


@pytest.mark.parametrize("content", ['{"kind": "grid", ', "[]", None])
def test_an_unreadable_specification_refuses_other_runs(
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
def test_a_plan_with_wrong_types_is_a_data_error(tmp_path: Path, old: str, new: str) -> None:
    results, _ = make_runs(tmp_path / "results", 2)
    path = results.sweep("crash") / "plan.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=r"plan\.json.*(run_id = 5|budget_flops = '1e9')"):
        results.load_plan("crash")


def test_a_run_keeps_the_budget_for_which_it_was_planned_first(tmp_path: Path) -> None:
    results, run_ids = make_runs(tmp_path / "results", 1)
    path = results.sweep("crash") / "plan.json"
    path.write_text(path.read_text().replace('"budget_flops": null', '"budget_flops": 1e9'))
    make_runs(tmp_path / "results", 2, extend=True)
    assert results.load_plan("crash").budgets[run_ids[0]] == 1e9


def test_a_sweep_from_before_the_tables_of_shapes_continues_if_its_runs_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, run_ids = make_runs(tmp_path / "results", 2)
    science = SweepSpec.science
    monkeypatch.setattr(
        SweepSpec, "science", lambda sweep: {**science(sweep), "model": {"shapes": "aligned"}}
    )
    with pytest.raises(UsageError, match=r"another model, train.*--shapes fine"):
        make_runs(tmp_path / "results", 3)
    assert make_runs(tmp_path / "results", 2)[1] == run_ids
    content = json.loads((results.sweep("crash") / "spec.json").read_text())
    assert content["model"] == {"shapes": "aligned"}
