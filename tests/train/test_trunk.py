"""Branches of a WSD ladder share a trunk: the bits of separate runs with fewer steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scalelab.corpus.dataset import Dataset
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.trunk import trunk_id
from scalelab.train.engine import Engine
from tests.train.outcome import run_attempt

MakeRun = Callable[..., RunDir]
UNIT = 10
LENGTHS = [UNIT * d for d in (1, 2, 4, 8, 16)]


def branch(n_steps: int) -> dict[str, object]:
    return {"schedule": "wsd", "n_steps": n_steps, "decay_steps": n_steps // 5, "lr": 0.005}


def final(run: RunDir) -> tuple[float | None, dict[int, float]]:
    accepted = run.accepted()
    assert accepted is not None
    record = accepted.read_record()
    assert record is not None
    rows = [json.loads(line) for line in accepted.metrics_path.read_text().splitlines()]
    return record.loss_nats, {row["step"]: row["loss_nats"] for row in rows}


def test_branches_equal_straight_runs_and_cost_at_most_two_thirds(
    make_run: MakeRun,
    dataset: Dataset,
    execution: ExecutionSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = {"ladder": 0, "straight": 0}
    kind = "ladder"
    original = Engine.step

    def counted(self: Engine, tokens: object) -> None:
        taken[kind] += 1
        original(self, tokens)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "step", counted)
    ladder = [make_run("ladder", **branch(n)) for n in LENGTHS]
    for run in ladder:
        status = run_attempt(run.path, dataset.folder, execution, trunks=tmp_path / "trunks")
        assert status == "done"
    kind = "straight"
    for run, n_steps in zip(ladder, LENGTHS, strict=True):
        straight = make_run("straight", **branch(n_steps))
        run_attempt(straight.path, dataset.folder, execution)
        loss, rows = final(run)
        expected_loss, expected_rows = final(straight)
        assert loss == expected_loss
        assert rows == {step: expected_rows[step] for step in rows}
    assert taken["straight"] == sum(LENGTHS)
    assert taken["ladder"] <= 0.65 * taken["straight"]
    note = ladder[2].attempts()[0].read_note()
    assert note["trunk"] == {"trunk_id": trunk_id(ladder[2].read_spec()), "step": 16}
    assert note["resumed_from"] is None


def test_a_corrupt_or_foreign_trunk_is_not_used(
    make_run: MakeRun, dataset: Dataset, execution: ExecutionSpec, tmp_path: Path
) -> None:
    trunks = tmp_path / "trunks"
    short, long = make_run("ladder", **branch(20)), make_run("ladder", **branch(40))
    other = make_run("ladder", **{**branch(40), "seed": 9})
    run_attempt(short.path, dataset.folder, execution, trunks=trunks)
    run_attempt(other.path, dataset.folder, execution, trunks=trunks)
    assert "trunk" not in other.attempts()[0].read_note()
    (state,) = (trunks / trunk_id(short.read_spec())).glob("checkpoint-16/state.pt")
    content = bytearray(state.read_bytes())
    content[1000] ^= 4
    state.write_bytes(content)
    run_attempt(long.path, dataset.folder, execution, trunks=trunks)
    assert "trunk" not in long.attempts()[0].read_note()
    assert long.status() == "done"


def test_a_shorter_run_does_not_start_from_a_later_trunk_state(
    make_run: MakeRun, dataset: Dataset, execution: ExecutionSpec, tmp_path: Path
) -> None:
    trunks = tmp_path / "trunks"
    long, short = make_run("ladder", **branch(40)), make_run("ladder", **branch(20))
    straight = make_run("straight", **branch(20))
    for run in (long, short):
        run_attempt(run.path, dataset.folder, execution, trunks=trunks)
    run_attempt(straight.path, dataset.folder, execution)
    assert "trunk" not in short.attempts()[0].read_note()
    assert final(short) == final(straight)
