from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.corpus.dataset import (
    Dataset,
    find_dataset,
    find_prepared,
    open_dataset,
    prepare,
)
from scalelab.corpus.shards import Manifest, Shard, ShardWriter, fingerprints
from scalelab.corpus.source import DataSource
from scalelab.errors import DataError

N_TRAIN, N_EVAL = 2011, 301


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Training token i is i itself, in shards of 97 tokens; evaluation tokens go on from there."""
    folder = tmp_path_factory.mktemp("numbered")
    kind = np.dtype(np.uint16)
    train, evaluation = (
        ShardWriter(folder, name, kind, shard_bytes=2 * 97) for name in ("train", "eval")
    )
    train.append(np.arange(N_TRAIN))
    evaluation.append(np.arange(N_TRAIN, N_TRAIN + N_EVAL))
    shards = train.finish(), evaluation.finish()
    name, eval_name = fingerprints("bytes", None, *shards)
    manifest = _manifest(name, eval_name, *shards)
    (folder / "manifest.json").write_text(manifest.to_json())
    return open_dataset(folder)


def _manifest(
    name: str, eval_name: str, train: tuple[Shard, ...], evaluation: tuple[Shard, ...]
) -> Manifest:
    return Manifest(
        fingerprint=name,
        eval_fingerprint=eval_name,
        tokenizer="bytes",
        tokenizer_sha256=None,
        vocab_size=4096,
        dtype="uint16",
        n_documents=3,
        n_train_documents=2,
        n_held_out_documents=1,
        n_duplicates=0,
        n_skipped_files=0,
        held_out_share=0.5,
        eval_window_tokens=N_EVAL,
        bytes_per_token=1.0,
        source="numbers",
        train=train,
        evaluation=evaluation,
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    seq_len=st.integers(1, 300),
    batch_seqs=st.integers(1, 12),
    epoch=st.integers(0, 2),
)
def test_an_epoch_predicts_each_token_exactly_once(
    numbered: Dataset, seed: int, seq_len: int, batch_seqs: int, epoch: int
) -> None:
    n = numbered.n_sequences(seq_len)
    first, last = epoch * n, (epoch + 1) * n
    steps = range(first // batch_seqs, -(-last // batch_seqs))
    rows = np.concatenate([numbered.batch(seed, k, batch_seqs, seq_len) for k in steps])
    rows = rows[first - steps[0] * batch_seqs :][:n]
    np.testing.assert_array_equal(rows[:, 1:], rows[:, :-1] + 1)
    np.testing.assert_array_equal(np.sort(rows[:, 1:].ravel()), np.arange(1, n * seq_len + 1))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), step=st.integers(0, 500), batch_seqs=st.integers(1, 30))
def test_the_batch_is_a_pure_function_of_its_arguments(
    numbered: Dataset, seed: int, step: int, batch_seqs: int
) -> None:
    fresh = open_dataset(numbered.folder)
    fresh.batch(seed + 1, step + 3, 5, 17)
    np.testing.assert_array_equal(
        fresh.batch(seed, step, batch_seqs, 33), numbered.batch(seed, step, batch_seqs, 33)
    )


def test_the_order_does_not_depend_on_the_batch_size(numbered: Dataset) -> None:
    large = numbered.batch(5, 0, 12, 20)
    small = [numbered.batch(5, step, 3, 20) for step in range(4)]
    np.testing.assert_array_equal(large, np.concatenate(small))


def test_seeds_and_epochs_differ(numbered: Dataset) -> None:
    n = numbered.n_sequences(10)
    first = numbered.batch(5, 0, n, 10)
    assert not np.array_equal(first, numbered.batch(6, 0, n, 10))
    assert not np.array_equal(first, numbered.batch(5, 1, n, 10))


def test_a_batch_is_integers_that_the_trainer_can_take(numbered: Dataset) -> None:
    batch = numbered.batch(1, 2, 4, 9)
    assert batch.shape == (4, 10)
    assert batch.dtype == np.int64
    assert batch.flags.c_contiguous
    assert batch.flags.writeable


@settings(max_examples=30, deadline=None)
@given(seq_len=st.integers(1, N_EVAL - 1))
def test_evaluation_predicts_each_of_its_tokens_once_in_order(
    numbered: Dataset, seq_len: int
) -> None:
    rows = numbered.eval_sequences(seq_len)
    n = (N_EVAL - 1) // seq_len
    assert rows.shape == (n, seq_len + 1)
    np.testing.assert_array_equal(rows[:, 1:].ravel(), N_TRAIN + 1 + np.arange(n * seq_len))
    np.testing.assert_array_equal(rows[:, 0], N_TRAIN + np.arange(n) * seq_len)


@settings(max_examples=40, deadline=None)
@given(n_steps=st.integers(1, 400), seq_len=st.integers(1, 200), batch_seqs=st.integers(1, 4))
def test_unique_tokens_are_those_that_a_run_predicts(
    numbered: Dataset, n_steps: int, seq_len: int, batch_seqs: int
) -> None:
    batches = [numbered.batch(0, k, batch_seqs, seq_len)[:, 1:] for k in range(n_steps)]
    n_tokens = n_steps * batch_seqs * seq_len
    unique = numbered.unique_tokens(n_tokens, seq_len)
    assert unique == len(np.unique(np.concatenate(batches)))


def test_sequences_longer_than_the_text_are_refused(numbered: Dataset) -> None:
    numbered.batch(0, 0, 1, N_TRAIN - 1)
    with pytest.raises(DataError, match="at most 2010 tokens"):
        numbered.batch(0, 0, 1, N_TRAIN)
    numbered.eval_sequences(N_EVAL - 1)
    with pytest.raises(DataError, match="at most 300 tokens"):
        numbered.eval_sequences(N_EVAL)


def test_it_pickles_as_its_path(numbered: Dataset) -> None:
    numbered.batch(0, 0, 1, 5)
    pickled = pickle.dumps(numbered)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(
        pickle.loads(pickled).batch(3, 4, 5, 6), numbered.batch(3, 4, 5, 6)
    )


@pytest.mark.usefixtures("_settled")
def test_prepared_data_is_found_by_fingerprint_and_by_source(
    tmp_path: Path,
    make_documents: Callable[..., list[str]],
    write_files: Callable[[Path, list[str]], Path],
) -> None:
    text = write_files(tmp_path / "text", make_documents(40))
    source = DataSource(paths=(str(text),), eval_tokens=500)
    results = tmp_path / "results"
    assert find_prepared(source, results) is None
    assert not results.exists()
    dataset = prepare(source, results)
    assert dataset.folder == results / "data" / dataset.fingerprint
    assert find_prepared(source, results) == dataset
    assert find_dataset(results, dataset.fingerprint) == dataset
    with pytest.raises(DataError, match="data prepare"):
        find_dataset(results, "0123456789abcdef")


def test_a_worker_needs_only_numpy(numbered: Dataset) -> None:
    code = (
        "import sys; from pathlib import Path; from scalelab.corpus.dataset import open_dataset\n"
        f"open_dataset(Path({str(numbered.folder)!r})).batch(0, 0, 2, 8)\n"
        "heavy = {'torch', 'pyarrow', 'pandas', 'pydantic', 'tokenizers', 'duckdb', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
