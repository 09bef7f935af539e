"""Reading run folders: the fast identity is the identity, and every change shows."""

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.errors import SpecError
from scalelab.store import scan
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
def test_the_fast_identity_is_the_runs_identity(base_spec, is_tied, n_kv_heads, **changes):
    spec = replace(
        base_spec, shape=replace(base_spec.shape, is_tied=is_tied, n_kv_heads=n_kv_heads), **changes
    )
    assert scan.quick_run_id(json.loads(to_json(spec))) == spec.run_id


@pytest.mark.parametrize("content", [{}, {"shape": 3}, {"shape": None, "lr": 0.1}])
def test_what_is_no_spec_has_no_fast_identity(content):
    assert scan.quick_run_id(content) is None


def test_a_spec_written_by_an_older_version_is_read(make):
    """Fields that were added since stand at their default."""
    run = make.done()
    content = asdict(run.read_spec())
    for name in ("z_loss", "parametrization", "beta1"):
        del content[name]
    del content["shape"]["n_experts"]
    (run.path / "spec.json").write_text(json.dumps(content))
    assert scan.read_run(str(run.path)).spec == content


def test_a_spec_in_another_spelling_is_read(make):
    run = make.done()
    text = (run.path / "spec.json").read_text()
    (run.path / "spec.json").write_text(text.replace("0.0031", "0.0031000000001"))
    assert scan.read_run(str(run.path)).spec["lr"] == pytest.approx(0.0031)


class TestSignature:
    """What is compared with the signature, and what changes it."""

    def changes(self, run, act):
        before = scan.read_run(str(run.path)).signature
        assert scan.is_unchanged(str(run.path), before)
        act()
        return not scan.is_unchanged(str(run.path), before)

    def test_every_step_of_a_runs_life_shows(self, make):
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
        # Reading accepts a whole record, so the acceptance has happened already.
        assert not self.changes(run, steps[5])
        assert self.changes(run, steps[6])

    def test_a_settled_run_is_seen_to_change_only_where_it_can(self, make):
        run = make.done()
        assert scan.read_run(str(run.path)).signature.startswith(scan.SETTLED)
        assert self.changes(run, lambda: make.attempt(run))
        run = make.done(seed=8)
        assert self.changes(run, lambda: (run.path / "accepted").unlink())
        run = make.done(seed=9)
        assert self.changes(
            run, lambda: (run.path / "spec.json").write_text((run.path / "spec.json").read_text())
        )

    def test_a_run_with_an_attempt_that_never_said_it_ended_is_not_settled(self, make):
        run = make.run()
        zombie = make.attempt(run)
        make.finish(make.attempt(run))
        assert not scan.read_run(str(run.path)).signature.startswith(scan.SETTLED)
        assert self.changes(run, lambda: zombie.append_metrics([make.row(99)]))


def test_an_accepted_file_that_names_nothing_is_refused(make):
    run = make.done()
    (run.path / "accepted").write_text("7-0123456789abcdef")
    with pytest.raises(SpecError, match="names no whole record"):
        scan.read_run(str(run.path))


def test_where_nothing_may_be_written_a_whole_record_waits_for_its_owner(make, monkeypatch):
    run = make.run()
    make.finish(make.attempt(run), accepts=False)

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.link", refuse)
    assert scan.read_run(str(run.path)).accepted is None
    monkeypatch.undo()
    assert scan.read_run(str(run.path)).status == "done"


def test_names_are_those_of_visible_folders(make):
    runs = make.path / "runs"
    for name in ("b", "a", ".hidden"):
        (runs / name).mkdir(parents=True, exist_ok=True)
    (runs / "file").write_text("")
    assert [n for n in scan.run_names(str(runs)) if len(n) == 1] == ["a", "b"]
    assert "file" not in scan.run_names(str(runs))
    assert scan.run_names(str(make.path / "nowhere")) == []
