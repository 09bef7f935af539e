"""Mixtures of prepared sources: one tokenizer, exact proportions, a held-out part of each."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scalelab.corpus.mixed import MixedDataset, open_data
from scalelab.corpus.mixing import find_mixture, prepare_mixture
from scalelab.corpus.source import DataSource
from scalelab.errors import DataError
from tests.corpus.conftest import make_documents
from tests.corpus.prepared import leftovers, source_of

Write = Callable[[Path, list[str]], Path]
WEIGHTS = {"code": 0.7, "web": 0.3}
SEQ_LEN = 32


@pytest.fixture
def sources(tmp_path: Path, write_files: Write) -> dict[str, DataSource]:
    return {
        name: source_of(write_files(tmp_path / name, make_documents(80, seed=seed)))
        for seed, name in enumerate(("web", "code"))
    }


def test_a_run_draws_each_source_in_its_own_order(
    sources: dict[str, DataSource], tmp_path: Path
) -> None:
    mixed = prepare_mixture(sources, tmp_path / "r").with_weights(WEIGHTS)
    assert list(mixed.sources) == ["code", "web"]
    sequences = np.concatenate([mixed.batch(5, step, 8, SEQ_LEN) for step in range(40)])
    found = {name: [] for name in WEIGHTS}
    for row in sequences:
        text = row.astype(np.uint8).tobytes()
        # Each text names its document after the seed of its source.
        of = [name for seed, name in ((0, "web"), (1, "code")) if b"doc%dx" % seed in text]
        if len(of) == 1:
            found[of[0]].append(row.tolist())
    assert mixed.draws(320 * SEQ_LEN, SEQ_LEN) == {"code": 224 * SEQ_LEN, "web": 96 * SEQ_LEN}
    for name, source in mixed.sources.items():
        n = mixed.draws(320 * SEQ_LEN, SEQ_LEN)[name] // SEQ_LEN
        own = iter(source.batch(5, 0, n, SEQ_LEN).tolist())
        assert len(found[name]) > n / 20
        # A subsequence of the source's own order.
        assert all(any(row == other for other in own) for row in found[name])
    unique = mixed.unique_tokens(320 * SEQ_LEN, SEQ_LEN)
    assert unique == sum(
        min(n, mixed.sources[name].n_sequences(SEQ_LEN) * SEQ_LEN)
        for name, n in mixed.draws(320 * SEQ_LEN, SEQ_LEN).items()
    )


def test_a_step_needs_no_earlier_step(sources: dict[str, DataSource], tmp_path: Path) -> None:
    mixed = prepare_mixture(sources, tmp_path / "r").with_weights(WEIGHTS)
    other = pickle.loads(pickle.dumps(mixed))
    assert isinstance(other, MixedDataset)
    whole = np.empty((2, 6, SEQ_LEN + 1), dtype=np.int32)
    other.read_batches([(1, 400), (2, 7)], whole)
    assert whole[0].tolist() == mixed.batch(1, 400, 6, SEQ_LEN).tolist()
    assert whole[1].tolist() == mixed.batch(2, 7, 6, SEQ_LEN).tolist()
    # Twice the batch is the same order.
    wide = mixed.batch(1, 200, 12, SEQ_LEN)
    assert wide[:6].tolist() == whole[0].tolist()


def test_the_folder_of_a_mixture_names_its_sources(
    sources: dict[str, DataSource], tmp_path: Path
) -> None:
    results = tmp_path / "r"
    assert find_mixture(sources, results) is None
    mixed = prepare_mixture(sources, results)
    found = open_data(mixed.folder)
    assert isinstance(found, MixedDataset)
    assert found.sources == {
        name: replace(each, manifest=found.sources[name].manifest)
        for name, each in mixed.sources.items()
    }
    assert found.fingerprint == mixed.fingerprint
    assert prepare_mixture(dict(reversed(sources.items())), results).folder == mixed.folder
    assert not leftovers(results)
    parts = mixed.eval_parts(SEQ_LEN)
    assert mixed.eval_sequences(SEQ_LEN).tolist() == [
        *parts["code"].tolist(),
        *parts["web"].tolist(),
    ]
    alone = prepare_mixture({"a": sources["web"], "b": sources["code"]}, results)
    assert alone.fingerprint != mixed.fingerprint
    assert {s.fingerprint for s in alone.sources.values()} == {
        s.fingerprint for s in mixed.sources.values()
    }


@pytest.mark.usefixtures("_settled")
def test_one_bpe_tokenizer_is_trained_on_all_sources(
    sources: dict[str, DataSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalelab.corpus.mixing.UNSETTLED_S", 0.0)
    results = tmp_path / "r"
    bpe = {name: replace(source, tokenizer="bpe:300") for name, source in sources.items()}
    mixed = prepare_mixture(bpe, results)
    hashes = {source.manifest.tokenizer_sha256 for source in mixed.sources.values()}
    assert len(hashes) == 1
    assert mixed.tokenizer == "bpe:300"
    assert find_mixture(bpe, results) == mixed
    assert len(list((results / "data" / "tokenizers").iterdir())) == 1
    # The tokens of both sources are those of the shared tokenizer, not of one trained alone.
    from scalelab.corpus.dataset import prepare

    alone = prepare(bpe["web"], results)
    assert alone.manifest.tokenizer_sha256 not in hashes
    assert alone.fingerprint != mixed.sources["web"].fingerprint


def test_sources_that_cannot_be_mixed_are_refused(
    sources: dict[str, DataSource], tmp_path: Path
) -> None:
    results = tmp_path / "r"
    with pytest.raises(DataError, match=r"sources more and web with the same text"):
        prepare_mixture({"web": sources["web"], "more": sources["web"]}, results)
    (tmp_path / "tokens.npy").write_bytes(b"")
    np.save(tmp_path / "tokens.npy", np.arange(5000, dtype=np.uint16) % 90)
    tokens = DataSource(paths=(str(tmp_path / "tokens.npy"),), eval_tokens=600)
    with pytest.raises(DataError, match=r"source web with tokenizer bytes beside source tok with"):
        prepare_mixture({"tok": tokens, "web": sources["web"]}, results)
    with pytest.raises(DataError, match=r"source tok: token files with the tokenizer bpe:300"):
        prepare_mixture(
            {
                "tok": replace(tokens, tokenizer="bpe:300"),
                "web": replace(sources["web"], tokenizer="bpe:300"),
            },
            results,
        )
    with pytest.raises(DataError, match=r"source gone: --data .*, which does not exist"):
        prepare_mixture({"gone": DataSource(paths=("nowhere/",)), **sources}, results)


def test_a_changed_source_is_noticed(sources: dict[str, DataSource], tmp_path: Path) -> None:
    mixed = prepare_mixture(sources, tmp_path / "r")
    manifest = mixed.folder / "manifest.json"
    fingerprint = mixed.sources["web"].fingerprint
    other = mixed.sources["code"].fingerprint
    manifest.write_text(manifest.read_text().replace(fingerprint, other))
    with pytest.raises(DataError, match="a mixture whose sources have changed"):
        open_data(mixed.folder)
    # The next preparation repairs it.
    assert prepare_mixture(sources, tmp_path / "r").folder == mixed.folder
    assert open_data(mixed.folder).fingerprint == mixed.fingerprint


def test_a_held_out_document_that_another_source_trains_on_is_refused(
    tmp_path: Path, write_files: Write
) -> None:
    ours, theirs = make_documents(80, seed=1), make_documents(400, seed=2)
    web = source_of(write_files(tmp_path / "web", [*theirs, *ours]), 6000)
    code = source_of(write_files(tmp_path / "code", ours), 6000)
    with pytest.raises(DataError) as found:
        prepare_mixture({"web": web, "code": code}, tmp_path / "r")
    assert "held-out document" in found.value.given
    assert "in the training part of source" in found.value.given
    assert "(also " in found.value.given
    alone = source_of(write_files(tmp_path / "alone", theirs), 6000)
    mixed = prepare_mixture({"web": alone, "code": code}, tmp_path / "r")
    # The hashes are kept only for files that have not changed just now.
    assert prepare_mixture({"web": alone, "code": code}, tmp_path / "r").folder == mixed.folder
