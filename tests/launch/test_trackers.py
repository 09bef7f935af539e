"""Trackers show each row of the training curve once and distinguish attempts."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from scalelab.errors import UsageError
from scalelab.launch import trackers
from scalelab.launch.trackers import following
from scalelab.records.run_dir import RunDir
from scalelab.records.sweep_dir import Results
from scalelab.records.types import MetricRow
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import train_flops_per_token
from scalelab.theory.shape import ModelShape

SPEC = RunSpec(
    shape=ModelShape(
        n_layers=2, d_model=16, n_heads=2, d_head=8, d_ff=40, vocab_size=61, n_kv_heads=1
    ),
    seq_len=24,
    batch_seqs=6,
    n_steps=30,
    lr=0.01,
    warmup_steps=3,
    data_fingerprint="d",
    eval_fingerprint="e",
    tokenizer="bytes",
    seed=3,
)


def row(step: int, loss: float) -> MetricRow:
    return MetricRow(
        step=step,
        tokens=step * SPEC.tokens_per_step,
        loss_nats=loss,
        lr=0.01 / step,
        grad_norm=2.5,
        tokens_per_s=1e4,
        tflops_per_s=0.125,
        loss_scale=1024.0,
        time_s=1.75e9 + step,
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "runs" / SPEC.run_id)
    made.write_spec(SPEC)
    return made


@dataclass
class FakeRun:
    id: str
    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    is_finished: bool = False

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.is_finished = True


def test_tensorboard_holds_the_rows(run: RunDir, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    results = Results(tmp_path)
    first = run.claim()
    with following(["tensorboard"], results, "tiny", [run.run_id]) as follow:
        first.append_metrics([row(1, 5.0), row(2, 4.5), row(3, 4.25)])
        follow()
        # An incomplete line is not a row yet.
        with first.metrics_path.open("a") as file:
            file.write('{"step": 4, ')
        second = run.claim()
        second.append_metrics([row(3, 4.0), row(4, 3.5)])
    shown = EventAccumulator(str(tmp_path / "tensorboard" / "tiny" / run.run_id))
    shown.Reload()
    assert set(shown.Tags()["scalars"]) == {
        "loss_nats",
        "flops",
        "tflops_per_s",
        "loss_scale",
        "lr",
        "grad_norm",
    }
    losses = [(event.step, event.value) for event in shown.Scalars("loss_nats")]
    assert losses == [(1, 5.0), (2, 4.5), (3, 4.0), (4, 3.5)]
    assert shown.Scalars("loss_nats")[-1].wall_time == 1.75e9 + 4
    per_step = SPEC.tokens_per_step * train_flops_per_token(SPEC.shape, SPEC.seq_len)["exact"]
    assert shown.Scalars("flops")[-1].value == pytest.approx(4 * per_step, rel=1e-6)


def test_wandb_gets_the_same_rows_when_asked(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[FakeRun] = []

    def init(**options: Any) -> FakeRun:
        made.append(FakeRun(options["id"]))
        return made[-1]

    module = types.ModuleType("wandb")
    module.__dict__["init"] = init
    module.__spec__ = ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    run.claim().append_metrics([row(1, 5.0), row(2, 4.5)])
    with following(["wandb"], Results(tmp_path), "tiny", [run.run_id]):
        pass
    assert [made[0].id, made[0].is_finished] == [run.run_id, True]
    assert [(step, values["loss_nats"]) for step, values in made[0].rows] == [(1, 5.0), (2, 4.5)]


def test_a_tracker_that_is_not_installed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with (
        pytest.raises(UsageError, match="pip install wandb"),
        following(["wandb"], Results(tmp_path), "tiny", []),
    ):
        pass


def test_no_tracker_costs_nothing(tmp_path: Path) -> None:
    with following([], Results(tmp_path), "tiny", ["absent"]) as follow:
        follow()
    assert not list(tmp_path.iterdir())
