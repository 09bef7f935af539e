"""A tiny corpus and tiny runs for the tests of the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scalelab.corpus.dataset import Dataset, open_dataset
from scalelab.corpus.shards import Manifest, ShardWriter, fingerprints
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.shape import ModelShape
from scalelab.train import loop, session
from tests.train.outcome import run_attempt

VOCAB = 61


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Tokens of a random Markov chain with 61 states, which a model learns within a few steps."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(7)
    follows = rng.integers(0, VOCAB, (VOCAB, 4))
    tokens = np.zeros(60_000, dtype=np.int64)
    choices = rng.integers(0, 4, len(tokens))
    for i in range(1, len(tokens)):
        tokens[i] = follows[tokens[i - 1], choices[i]]
    shards = []
    for name, part in (("train", tokens[:56_000]), ("eval", tokens[56_000:])):
        writer = ShardWriter(folder, name, np.dtype(np.uint8))
        writer.append(part)
        shards.append(writer.finish())
    whole, held_out = fingerprints("bytes", None, *shards)
    manifest = Manifest(
        fingerprint=whole,
        eval_fingerprint=held_out,
        tokenizer="bytes",
        tokenizer_sha256=None,
        vocab_size=VOCAB,
        dtype="uint8",
        n_documents=2,
        n_train_documents=1,
        n_held_out_documents=1,
        n_duplicates=0,
        n_skipped_files=0,
        held_out_share=0.5,
        eval_window_tokens=4_000,
        bytes_per_token=1.0,
        source="a random process",
        train=shards[0],
        evaluation=shards[1],
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    return open_dataset(folder)


@pytest.fixture
def spec(dataset: Dataset) -> RunSpec:
    return RunSpec(
        shape=ModelShape(
            n_layers=2, d_model=16, n_heads=2, d_head=8, d_ff=40, vocab_size=VOCAB, n_kv_heads=1
        ),
        seq_len=24,
        batch_seqs=6,
        n_steps=30,
        lr=0.01,
        warmup_steps=3,
        data_fingerprint=dataset.fingerprint,
        eval_fingerprint=dataset.eval_fingerprint,
        tokenizer="bytes",
        seed=3,
    )


@pytest.fixture
def execution() -> ExecutionSpec:
    return ExecutionSpec(metrics_interval_steps=4)


@pytest.fixture
def make_run(tmp_path: Path, spec: RunSpec) -> Callable[..., RunDir]:
    """Return a function that writes the spec of a run and returns its folder."""

    def make(group: str = "runs", **changes: Any) -> RunDir:
        changed = replace(spec, **changes)
        run = RunDir(tmp_path / group / changed.run_id)
        run.write_spec(changed)
        return run

    return make


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def attempt_at(
    dataset: Dataset, execution: ExecutionSpec, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Return a function that makes an attempt, stopped after ``stop_at`` steps if given."""
    monkeypatch.setattr(loop, "POLL_INTERVAL_S", 0.0)

    def make(run: RunDir, stop_at: int | None = None, **changes: Any) -> str:
        def stop() -> str | None:
            steps = [c.observed for c in watched]
            return "enough" if stop_at is not None and steps and steps[-1] >= stop_at else None

        watched: list[Any] = []
        original = session.Session.observe

        class Watched:
            observed = 0

        def observe(self: session.Session, *args: Any) -> str | None:
            reason = original(self, *args)
            Watched.observed = self.step
            watched.append(Watched)
            return reason

        with monkeypatch.context() as patch:
            patch.setattr(session.Session, "observe", observe)
            return run_attempt(
                run.path, dataset.folder, replace(execution, **changes), should_stop=stop
            )

    return make
