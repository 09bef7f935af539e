"""Runs of small programs in plain Python, and how an attempt at them ends."""

import dataclasses
import json
import textwrap
from pathlib import Path

import pytest

from scalelab.launch.programs import attempt, process
from scalelab.launch.programs.run import run_program
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.program import ProgramExecution, ProgramSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import count_params
from scalelab.theory.shape import ModelShape

SHAPE = ModelShape(n_layers=2, d_model=32, n_heads=2, d_head=16, d_ff=88, vocab_size=256)
N_PARAMS = count_params(SHAPE).total
HEADER = f"""
import json, os, signal, subprocess, sys, time
rows = open(os.environ["SCALELAB_METRICS"], "a")
checkpoint = os.environ["SCALELAB_CHECKPOINT"]
out_dir = os.environ["SCALELAB_OUT_DIR"]
def say(**row):
    rows.write(json.dumps(row) + "\\n"); rows.flush()
def save(step):
    with open(f"{{out_dir}}/ckpt_{{step}}.json", "w") as file:
        json.dump(step, file)
def train(first, last, loss=lambda step: 5.0 - 0.1 * step, pause=0.0):
    for step in range(first, last + 1):
        say(step=step, tokens=step * 128, loss=loss(step), lr=0.001)
        time.sleep(pause)
def finish(loss=3.25, **more):
    say(final=True, eval_loss=loss, loss_se=0.01, **more)
say(scalelab=1, n_params={N_PARAMS}, unit="nats")
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Return a function that makes a run whose program is this Python text."""
    monkeypatch.setattr(attempt, "POLL_S", 0.02)
    monkeypatch.setattr(attempt, "FENCE_INTERVAL_S", 0.05)
    monkeypatch.setattr(attempt, "CHECKPOINT_INTERVAL_S", 0.05)
    monkeypatch.setattr(attempt, "ASKED_WAIT_S", 0.05)

    monkeypatch.setattr(process, "LINGER_S", 0.2)

    def make(text: str, *, header: str = HEADER, spec=None, **execution) -> Program:
        script = tmp_path / "train.py"
        script.write_text(header + textwrap.dedent(text))
        fields = {"command": ("{python}", str(script)), **(spec or {})}
        run_spec = RunSpec(
            shape=SHAPE, seq_len=32, batch_seqs=4, n_steps=20, lr=1e-3, warmup_steps=2,
            data_fingerprint="undeclared", eval_fingerprint="undeclared", tokenizer="bytes",
            seed=1, program=ProgramSpec(**fields),
        )  # fmt: skip
        run = RunDir(tmp_path / "results" / "runs" / run_spec.run_id)
        run.write_spec(run_spec)
        given = {"cwd": str(tmp_path), "grace_s": 0.3, **execution}
        return Program(run, ExecutionSpec(program=ProgramExecution(**given)))

    return make


@dataclasses.dataclass
class Program:
    """A run and the execution of its program."""

    run: RunDir
    execution: ExecutionSpec

    def train(self, should_stop=None, **more) -> str:
        """Train the run in this process."""
        return run_program(self.run.path, self.execution, should_stop=should_stop, **more)

    def ends(self) -> list[dict]:
        """Return how its attempts ended."""
        return [attempt.read_note().get("ended", {}) for attempt in self.run.attempts()]

    def end(self) -> dict:
        """Return how its last attempt ended."""
        return self.ends()[-1]

    def record(self):
        """Return the one accepted record; no other attempt has one."""
        records = [a for a in self.run.attempts() if (a.path / "record.json").exists()]
        accepted = self.run.accepted()
        assert accepted is not None
        assert [a.token for a in records] == [accepted.token]
        return accepted.read_record()

    def rows(self) -> list[dict]:
        """Return the curve of the last attempt."""
        path = self.run.attempts()[-1].metrics_path
        return [json.loads(line) for line in path.read_text().splitlines()]


def is_alive(pid: int) -> bool:
    """Return whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
