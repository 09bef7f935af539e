"""Runs over a mixture of sources: weights, batching, resuming."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalelab.corpus.dataset import Dataset, open_dataset
from scalelab.corpus.mixed import MixedDataset, mixture_of
from scalelab.corpus.shards import ShardWriter, fingerprints
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec, SourceWeight
from scalelab.train import loop, worker
from scalelab.train.engine import Engine
from tests.train.conftest import VOCAB
from tests.train.outcome import curve, result

Train = Callable[..., list[RunDir]]


@pytest.fixture(scope="module")
def mixed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> MixedDataset:
    """The random process and a text that repeats one token."""
    data = tmp_path_factory.mktemp("mixed")
    flat = data / "flat"
    flat.mkdir()
    shards = []
    for name, n in (("train", 20_000), ("eval", 4_000)):
        writer = ShardWriter(flat, name, np.dtype(np.uint8))
        writer.append(np.full(n, VOCAB - 1))
        shards.append(writer.finish())
    whole, held_out = fingerprints("bytes", None, *shards)
    manifest = replace(
        dataset.manifest,
        fingerprint=whole,
        eval_fingerprint=held_out,
        train=shards[0],
        evaluation=shards[1],
    )
    (flat / "manifest.json").write_text(manifest.to_json())
    flat.rename(data / whole)
    shutil.copytree(dataset.folder, data / dataset.fingerprint)
    sources = {"chain": dataset.fingerprint, "flat": whole}
    found = mixture_of(data, {name: open_dataset(data / sources[name]) for name in sources})
    found.folder.mkdir()
    (found.folder / "manifest.json").write_text(found.to_json())
    return found


@pytest.fixture
def train(
    tmp_path: Path,
    spec: RunSpec,
    mixed: MixedDataset,
    execution: ExecutionSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> Train:
    """Return a function that trains runs of these weights of ``chain``, batched together."""
    monkeypatch.setattr(loop, "POLL_INTERVAL_S", 0.0)

    def run(group: str, weights: list[float], stop_at: int | None = None) -> list[RunDir]:
        runs = []
        for weight in weights:
            shares = {"chain": weight, "flat": 1 - weight}
            changed = replace(
                spec,
                data_fingerprint=mixed.fingerprint,
                eval_fingerprint=mixed.eval_fingerprint,
                mixture=tuple(
                    SourceWeight(name=n, fingerprint=s.fingerprint, weight=shares[n])
                    for n, s in mixed.sources.items()
                ),
            )
            folder = RunDir(tmp_path / group / changed.run_id)
            folder.write_spec(changed)
            runs.append(folder)
        taken = [0]
        original = Engine.step

        def counted(self: Engine, tokens: Any) -> None:
            original(self, tokens)
            taken[0] += 1

        with monkeypatch.context() as patch:
            patch.setattr(Engine, "step", counted)
            worker.run_batched(
                [folder.path for folder in runs],
                mixed.folder,
                replace(execution, batched_runs=len(runs)),
                should_stop=lambda: "enough" if taken[0] == stop_at else None,
            )
        return runs

    return run


def test_batched_runs_with_different_weights_have_the_results_of_separate_ones(
    train: Train,
) -> None:
    weights = [1.0, 0.5, 0.1]
    together = train("together", weights)
    alone = [train("alone", [weight])[0] for weight in weights]
    for batched, single in zip(together, alone, strict=True):
        # Losses of batched steps differ in the last bits from those of a run alone.
        assert curve(batched) == pytest.approx(curve(single), rel=1e-5)
    # More of the repeated token is easier to predict in training.
    last = [curve(run)[30] for run in alone]
    assert last[0] > last[1] > last[2]
    assert result(alone[1]).unique_tokens == 30 * 6 * 24


@pytest.mark.parametrize("stop_at", [1, 13, 29])
def test_a_stopped_run_continues_with_the_same_bits(train: Train, stop_at: int) -> None:
    (whole,) = train("whole", [0.3])
    (stopped,) = train("stopped", [0.3], stop_at)
    assert stopped.accepted() is None
    train("stopped", [0.3])
    assert len(stopped.attempts()) == 2
    assert curve(stopped) == curve(whole)
    assert result(stopped).loss_nats == result(whole).loss_nats


def test_the_held_out_loss_is_the_mean_over_the_sources_for_any_weights(
    train: Train, mixed: MixedDataset
) -> None:
    (run,) = train("one", [0.9])
    accepted = run.accepted()
    assert accepted is not None
    losses = np.load(accepted.path / "eval_losses.npy")
    sizes = [len(part) for part in mixed.eval_parts(24).values()]
    assert sum(sizes) == len(losses)
    parts = np.split(losses, np.cumsum(sizes)[:-1])
    mean = np.mean([part.mean() for part in parts])
    assert result(run).loss_nats == pytest.approx(mean, rel=1e-12)
    assert parts[1].mean() < parts[0].mean()
