"""Reading run folders: the fast run_id is the run_id, and every change is detected."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.errors import SpecError
from scalelab.records import run_files
from scalelab.records.evaluations import (
    EVALUATIONS_FILE,
    Evaluation,
    read_evaluations,
    save_evaluations,
)
from scalelab.records.files import list_folders
from scalelab.records.run_dir import PRUNED_FILE
from scalelab.store.evaluation_rows import evaluation_rows
from scalelab.store.rows import run_row
from scalelab.sweep.run_spec import to_json

positive = st.floats(1e-12, 1e6)


@given(
    lr=positive,
    epsilon=positive,
    weight_decay=st.floats(0, 1),
    z_loss=st.one_of(st.just(0.0), positive),
    seed=st.integers(0, 2**40),
    precision=st.sampled_from(["fp32", "bf16"]),
    is_tied=st.booleans(),
    n_kv_heads=st.sampled_from([0, 1, 3]),
)
@settings(max_examples=150, deadline=None)
def test_the_fast_run_id_is_the_run_id(base_spec, is_tied, n_kv_heads, **changes):
    spec = replace(
        base_spec, shape=replace(base_spec.shape, is_tied=is_tied, n_kv_heads=n_kv_heads), **changes
    )
    assert run_files.quick_run_id(json.loads(to_json(spec))) == spec.run_id


@pytest.mark.parametrize("content", [{}, {"shape": 3}, {"shape": None, "lr": 0.1}])
def test_content_that_is_not_a_spec_has_no_run_id(content):
    assert run_files.quick_run_id(content) is None


def test_a_spec_written_by_an_older_version_is_read(make):
    """Missing new fields have their default."""
    run = make.done()
    content = json.loads(to_json(run.read_spec()))
    for name in ("z_loss", "parametrization", "beta1", "eval_sets", "mixture"):
        del content[name]
    del content["shape"]["n_experts"]
    (run.path / "spec.json").write_text(json.dumps(content))
    assert run_files.read_run(str(run.path)).spec == content


def test_a_spec_in_another_spelling_is_read(make):
    run = make.done()
    text = (run.path / "spec.json").read_text()
    (run.path / "spec.json").write_text(text.replace("0.0031", "0.0031000000001"))
    assert run_files.read_run(str(run.path)).spec["lr"] == pytest.approx(0.0031)


class TestSignature:
    """Which changes the signature detects."""

    def changes(self, run, act):
        before = run_files.read_run(str(run.path)).signature
        assert run_files.is_unchanged(str(run.path), before)
        act()
        return not run_files.is_unchanged(str(run.path), before)

    def test_a_pruned_run_is_detected_until_a_result_is_accepted(self, make):
        run = make.run()
        attempt = make.attempt(run, [10])
        mark = run.path / PRUNED_FILE
        assert self.changes(run, lambda: mark.write_text('{"reason": "above 1.2", "step": 10}'))
        found = run_files.read_run(str(run.path))
        assert (found.status, run.status(), run_row(found)["reason"]) == (
            *("pruned", "pruned", "above 1.2"),
        )
        make.finish(attempt)
        assert run_files.read_run(str(run.path)).status == run.status() == "done"

    def test_every_event_of_a_run_is_detected(self, make):
        run = make.run()
        held = []
        steps = [
            lambda: held.append(make.attempt(run, [10])),
            lambda: held[0].append_metrics([make.row(20)]),
            lambda: make.end(held[0]),
            lambda: held.append(make.attempt(run, [20])),
            lambda: make.finish(held[1], accepts=False),
            lambda: held[1].accept(),
            lambda: make.end(held[1], "done"),
        ]
        assert [self.changes(run, step) for step in steps[:5]] == [True] * 5
        # Reading has already accepted the record.
        assert not self.changes(run, steps[5])
        assert self.changes(run, steps[6])

    def test_changes_of_a_settled_run_are_detected(self, make):
        run = make.done()
        assert run_files.read_run(str(run.path)).signature.startswith(run_files.SETTLED)
        assert self.changes(run, lambda: make.attempt(run))
        run = make.done(seed=8)
        assert self.changes(run, lambda: (run.path / "accepted").unlink())
        run = make.done(seed=9)
        assert self.changes(
            run, lambda: (run.path / "spec.json").write_text((run.path / "spec.json").read_text())
        )

    def test_a_run_with_an_open_attempt_is_not_settled(self, make):
        run = make.run()
        zombie = make.attempt(run)
        make.finish(make.attempt(run))
        assert not run_files.read_run(str(run.path)).signature.startswith(run_files.SETTLED)
        assert self.changes(run, lambda: zombie.append_metrics([make.row(99)]))


def test_an_accepted_file_that_names_no_attempt_is_refused(make):
    run = make.done()
    (run.path / "accepted").write_text("7-0123456789abcdef")
    with pytest.raises(SpecError, match="no valid record"):
        run_files.read_run(str(run.path))


def test_a_read_only_folder_is_read_without_acceptance(make, monkeypatch):
    run = make.run()
    make.finish(make.attempt(run), accepts=False)

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.link", refuse)
    assert run_files.read_run(str(run.path)).accepted is None
    monkeypatch.undo()
    assert run_files.read_run(str(run.path)).status == "done"


def test_names_are_those_of_visible_folders(make):
    runs = make.path / "runs"
    for name in ("b", "a", ".hidden"):
        (runs / name).mkdir(parents=True, exist_ok=True)
    (runs / "file").write_text("")
    assert [n for n in list_folders(str(runs)) if len(n) == 1] == ["a", "b"]
    assert "file" not in list_folders(str(runs))
    assert list_folders(str(make.path / "nowhere")) == []


class TestEvaluations:
    """Evaluations of kept weights: read with the run, and a new one is seen."""

    def evaluation(self, **changes):
        numbers = {"step": 10, "set": "sums", "kind": "task", "fingerprint": "a", "accuracy": 0.5}
        return Evaluation(**{**numbers, **changes})

    def test_a_new_evaluation_is_seen_and_takes_the_place_of_an_earlier_one(self, make):
        run = make.done()
        before = run_files.read_run(str(run.path))
        assert before.signature.startswith(run_files.SETTLED)
        save_evaluations(run.path, [self.evaluation()])
        assert not run_files.is_unchanged(str(run.path), before.signature)
        after = run_files.read_run(str(run.path))
        assert after.evaluations == (self.evaluation(),)
        save_evaluations(run.path, [self.evaluation(accuracy=0.75), self.evaluation(set="two")])
        assert not run_files.is_unchanged(str(run.path), after.signature)
        found = run_files.read_run(str(run.path)).evaluations
        assert [(each.set, each.accuracy) for each in found] == [("sums", 0.75), ("two", 0.5)]

    def test_lines_that_are_no_evaluation_are_left_out(self, make):
        run = make.done()
        save_evaluations(run.path, [self.evaluation()])
        lines = ["", "{", "[]", '{"step": 1}', '{"step": "1", "set": "a", "kind": "task"}']
        with (run.path / EVALUATIONS_FILE).open("a") as file:
            file.write("\n".join(lines))
        assert read_evaluations(run.path) == (self.evaluation(),)

    def test_a_set_that_training_evaluated_keeps_its_row(self, make):
        run = make.done()
        step = run.accepted().read_record().n_steps
        known = [{"step": step, "set": "code", "kind": "text"}]
        new = [self.evaluation(step=step, set=name, kind="text") for name in ("code", "web")]
        save_evaluations(run.path, new)
        rows = evaluation_rows(run_files.read_run(str(run.path)), known)
        assert [(row["set"], row["source"], row["is_final"]) for row in rows] == [
            ("web", "evaluate", True)
        ]

    def test_the_set_of_a_later_evaluation_says_which_tokens_it_has(self, make):
        run = make.done()
        assert run_row(run_files.read_run(str(run.path)))["eval_sets"] is None
        step = run.accepted().read_record().n_steps
        later = [self.evaluation(step=step, set=name, kind="text") for name in ("web", "code")]
        early = self.evaluation(step=step - 1, set="early", kind="text")
        save_evaluations(run.path, [*later, early, self.evaluation(step=step)])
        sets = json.loads(run_row(run_files.read_run(str(run.path)))["eval_sets"])
        assert [(each["name"], each["fingerprint"]) for each in sets] == [
            ("code", "a"),
            ("web", "a"),
        ]
