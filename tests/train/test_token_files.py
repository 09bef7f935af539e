"""A run on token files in place: its batches, its resume and its document mask."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scalelab.corpus.dataset import Dataset, prepare
from scalelab.corpus.source import DataSource
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.train import loop
from scalelab.train.engine import Engine
from scalelab.train.model import starts_of
from tests.bare_machine import bare_environment
from tests.train.outcome import curve, result, run_attempt
from tests.train.test_imports import PROGRAM

MakeRun = Callable[..., RunDir]
VOCAB = 61
END = 60


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of documents of about 20 tokens that end with token 60."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, END, 20_000) // rng.integers(1, 9, 20_000)
    tokens[rng.random(len(tokens)) < 0.05] = END
    file = tmp_path_factory.mktemp("tokens") / "train.bin"
    tokens.astype("<u2").tofile(file)
    return file


@pytest.fixture
def tokens(written: Path, tmp_path: Path) -> Dataset:
    source = DataSource(paths=(str(written),), eval_tokens=1000, vocab_size=VOCAB, end_token=END)
    return prepare(source, tmp_path / "results")


@pytest.fixture
def spec(spec: RunSpec, tokens: Dataset) -> RunSpec:
    return replace(
        spec,
        n_steps=12,
        data_fingerprint=tokens.fingerprint,
        eval_fingerprint=tokens.eval_fingerprint,
        tokenizer=tokens.tokenizer,
    )


def test_a_run_resumes_bit_for_bit_also_from_another_format(
    make_run: MakeRun,
    tokens: Dataset,
    written: Path,
    execution: ExecutionSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    straight = make_run("straight")
    assert run_attempt(straight.path, tokens.folder, execution) == "done"
    run = make_run("stopped")
    monkeypatch.setattr(loop, "POLL_INTERVAL_S", 0.0)
    stop = iter([None, None])
    status = run_attempt(
        run.path, tokens.folder, execution, should_stop=lambda: next(stop, "enough")
    )
    assert status == "preempted"
    assert 0 < max(curve(run)) < run.read_spec().n_steps
    array = np.fromfile(written, "<u2")
    other = written.with_name("train.npy")
    np.save(other, array.astype("<i4"))
    source = DataSource(paths=(str(other),), eval_tokens=1000, vocab_size=VOCAB, end_token=END)
    moved = prepare(source, tokens.folder.parents[1])
    assert moved.folder == tokens.folder
    assert {shard.name for shard in moved.manifest.train} == {str(other)}
    assert run_attempt(run.path, moved.folder, execution) == "done"
    assert curve(run) == curve(straight)
    assert result(run).loss_nats == result(straight).loss_nats


@pytest.mark.slow
def test_a_worker_trains_in_place_without_the_packages_of_a_laptop(
    make_run: MakeRun, tokens: Dataset, tmp_path: Path
) -> None:
    run = make_run(n_steps=2, warmup_steps=0)
    root = Path(__file__).parents[2]
    environment = bare_environment(tmp_path, root, root / "kernels")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(run.path), str(tokens.folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert result(run).n_steps == 2


def test_a_document_ends_with_the_token_of_the_data() -> None:
    tokens = torch.tensor([[7, END, 3, 3, END, END, 5]])
    assert starts_of(tokens, END).tolist() == [[0, 0, 2, 2, 2, 5, 6]]


@pytest.mark.parametrize("step", ["eager", "direct"])
def test_every_step_masks_by_the_end_token_of_the_run(
    spec: RunSpec, execution: ExecutionSpec, tokens: Dataset, step: str
) -> None:
    """Renaming the tokens, so that the end is token 0, changes no mask."""
    way = replace(execution, step=step)
    batch = tokens.batch(0, 0, spec.batch_seqs, spec.seq_len)
    inputs = torch.from_numpy(batch)
    losses = []
    for end_token in (END, 0):
        run = replace(spec, is_document_masked=True, end_token=end_token)
        engine = Engine([run], way)
        engine.initialize(0)
        # Rows of the embedding follow the names of their tokens.
        names = torch.arange(VOCAB)
        names[[0, END]] = names[[END, 0]]
        if end_token == 0:
            for name in ("embedding", "head"):
                weight = engine.layout.views(engine.master)[name]
                rows = weight[..., :VOCAB, :].clone()
                weight[..., :VOCAB, :] = rows[..., names, :]
            inputs = names[inputs]
        losses.append(engine.gradients.token_losses(0, inputs))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)
    plain = Engine([replace(spec, is_document_masked=True, end_token=1)], way)
    plain.initialize(0)
    other = plain.gradients.token_losses(0, torch.from_numpy(batch))
    assert not torch.allclose(losses[0], other, rtol=1e-3, atol=1e-3)
