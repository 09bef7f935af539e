"""Run folders and plans that cannot be read, or are absent: named, and the others stay."""

import pytest

from scalelab.errors import DataError
from scalelab.store.collect import collect
from tests.store.conftest import query


def test_a_bad_run_is_skipped_with_the_reason_and_the_others_stay(make):
    good, edited, torn, broken = (make.done(seed) for seed in range(4))
    path = edited.path / "spec.json"
    path.write_text(path.read_text().replace("0.0031", "0.0032"))
    (torn.path / "spec.json").write_text('{"lr"')
    next((broken.path / "attempts").glob("*/record.json")).write_text("{")
    (make.path / "runs" / "stray.txt").write_text("x")
    report = collect(make.path)
    assert query(make.path, "SELECT run_id FROM runs") == [(good.run_id,)]
    assert len(report.problems) == 3
    for run in (edited, torn, broken):
        assert any(run.run_id in problem for problem in report.problems)
    assert len(collect(make.path).problems) == 3, "reported until the runs are repaired"


def test_a_run_whose_spec_was_edited_is_removed(make):
    run = make.done()
    collect(make.path)
    path = run.path / "spec.json"
    text = path.read_text()
    path.write_text(text.replace("0.0031", "0.0032"))
    assert collect(make.path).runs_removed == 1
    path.write_text(text)
    assert collect(make.path).runs_new == 1


@pytest.mark.parametrize("text", ["", "[]", "{", '{"rows": [{"budget_flops": 1}]}', '{"rows": 3}'])
def test_an_unreadable_plan_is_skipped_with_the_reason(make, text):
    make.sweep("good", [make.done()])
    make.sweep("bad", [])
    (make.path / "sweeps" / "bad" / "plan.json").write_text(text)
    report = collect(make.path)
    assert query(make.path, "SELECT DISTINCT sweep FROM sweeps") == [("good",)]
    assert any("sweep bad" in problem for problem in report.problems)


def test_wrong_types_in_a_note_become_null(make):
    run = make.run()
    attempt = make.attempt(run)
    attempt.write_note(
        {"execution": {"n_threads": "many", "device": 3}, "started_s": "noon", "ended": 7}
    )
    make.finish(attempt, accepts=False)
    collect(make.path)
    assert query(make.path, "SELECT status, n_threads, device FROM runs") == [("done", None, "3")]


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        collect(tmp_path / "nowhere")


def test_an_empty_folder_gives_empty_tables(make):
    assert collect(make.path).runs == 0
    assert query(make.path, "FROM runs") == []
