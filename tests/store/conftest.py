"""Fixtures: results folders with real run folders."""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from scalelab.records.run_dir import Attempt, RunDir
from scalelab.records.types import MetricRow, RunRecord
from scalelab.store.live import open_snapshot
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import count_params, train_flops
from scalelab.theory.shape import ModelShape

BASE = RunSpec(
    shape=ModelShape(n_layers=3, d_model=48, n_heads=3, d_head=16, d_ff=128, vocab_size=256),
    seq_len=96,
    batch_seqs=12,
    n_steps=340,
    lr=0.0031,
    warmup_steps=17,
    data_fingerprint="d" * 16,
    eval_fingerprint="e" * 16,
    tokenizer="bytes",
    seed=7,
)


def query(results: Path, sql: str) -> list:
    """Return the rows of a query on the snapshot of a results folder."""
    with open_snapshot(results) as connection:
        return connection.execute(sql).fetchall()


def tree(path: Path) -> dict[str, bytes | None]:
    """Return the content of every file of the parts of a results folder; None for a folder."""
    return {
        str(entry.relative_to(path)): entry.read_bytes() if entry.is_file() else None
        for entry in sorted(path.rglob("*"))
        if not any(p.startswith((".", "scalelab.duckdb")) for p in entry.relative_to(path).parts)
    }


def spec_of(seed: int, d_model: int = 48) -> RunSpec:
    return replace(BASE, seed=seed, shape=replace(BASE.shape, d_model=d_model))


def row(step: int, loss: float = 0.0) -> MetricRow:
    return MetricRow(
        step=step,
        tokens=step * BASE.tokens_per_step,
        loss_nats=loss or 5.5 / step,
        lr=0.003,
        grad_norm=0.7,
        tokens_per_s=1.25e4,
        time_s=1.7e9 + step,
    )


@dataclass
class Maker:
    """Writes runs and sweeps as the trainer and launchers do."""

    path: Path

    def row(self, step: int) -> MetricRow:
        return row(step)

    def run(self, seed: int = 7, d_model: int = 48) -> RunDir:
        spec = spec_of(seed, d_model)
        run = RunDir(self.path / "runs" / spec.run_id)
        run.write_spec(spec)
        return run

    def attempt(
        self, run: RunDir, steps=range(10, 50, 10), resumed: tuple[int, int] | None = None
    ) -> Attempt:
        attempt = run.claim()
        source = None if resumed is None else {"attempt": resumed[0], "step": resumed[1]}
        attempt.write_note(
            {
                "execution": asdict(ExecutionSpec()),
                "host": "node7",
                "device_name": "A test CPU",
                "started_s": 1.7e9,
                "resumed_from": source,
                "versions": {"torch": "2.13.0"},
            }
        )
        attempt.append_metrics([row(step, 10 * attempt.number + 1 / step) for step in steps])
        return attempt

    def end(self, attempt: Attempt, status: str = "preempted", reason: str | None = None) -> None:
        note = attempt.read_note()
        attempt.write_note({**note, "ended": {"status": status, "reason": reason, "time_s": 1.7e9}})

    def finish(self, attempt: Attempt, loss: float | None = 1.4375, accepts: bool = True) -> None:
        spec = attempt.run.read_spec()
        status = "diverged" if loss is None else "done"
        attempt.write_record(
            RunRecord(
                run_id=attempt.run.run_id,
                attempt=attempt.number,
                token=attempt.token,
                status=status,
                loss_nats=loss,
                loss_se_nats=0.011,
                n_params=count_params(spec.shape).by_convention(),
                flops=train_flops(spec.shape, spec.seq_len, spec.n_tokens) | {"executed": 3.5e12},
                n_tokens=spec.n_tokens,
                unique_tokens=spec.n_tokens // 2,
                n_steps=spec.n_steps,
                wall_s=12.5,
            )
        )
        if accepts:
            attempt.accept()
            self.end(attempt, status)

    def done(self, seed: int = 7, loss: float = 1.4375, d_model: int = 48) -> RunDir:
        run = self.run(seed, d_model)
        self.finish(self.attempt(run), loss)
        return run

    def sweep(self, name: str, runs: list[RunDir], budgets=None, created_s: float = 5.0) -> None:
        folder = self.path / "sweeps" / name
        folder.mkdir(parents=True, exist_ok=True)
        budgets = budgets or [None] * len(runs)
        rows = [
            {"run_id": run.run_id, "budget_flops": budget}
            for run, budget in zip(runs, budgets, strict=True)
        ]
        plan = {"schema": 1, "name": name, "created_s": created_s, "kind": "isoflop", "rows": rows}
        (folder / "plan.json").write_text(json.dumps(plan))


@pytest.fixture(scope="session")
def base_spec() -> RunSpec:
    return BASE


@pytest.fixture
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def maker() -> type[Maker]:
    return Maker


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    (tmp_path / "results").mkdir()
    return Maker(tmp_path / "results")


@pytest.fixture(scope="session")
def tables_of():
    """Return a function that returns the sorted rows of all public tables of a results folder."""
    from scalelab.store.schema import TABLES

    def read(results: Path) -> dict:
        with open_snapshot(results) as connection:
            return {
                table.name: sorted(map(repr, connection.execute(f"FROM {table.name}").fetchall()))
                for table in TABLES
            }

    return read
