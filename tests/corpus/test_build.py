from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.corpus.build import build_dataset
from scalelab.corpus.dataset import Dataset, open_dataset, prepare
from scalelab.corpus.source import DataSource
from scalelab.errors import DataError, UsageError
from tests.corpus.prepared import eval_text, leftovers, source_of, train_documents, train_text

WriteFiles = Callable[[Path, list[str]], Path]
MakeDocuments = Callable[..., list[str]]

NAME = re.compile(rb"doc\d+x\d+ ")


def test_every_document_is_in_training_whole_or_held_out(text: Path, tmp_path: Path) -> None:
    dataset = prepare(source_of(text), tmp_path / "results")
    given = {path.read_bytes() for path in text.iterdir()}
    train = train_documents(dataset)
    assert len(set(train)) == len(train) == dataset.manifest.n_train_documents
    assert set(train) < given
    held_out = given - set(train)
    assert len(held_out) == dataset.manifest.n_held_out_documents
    assert dataset.manifest.n_documents == len(given)
    # The evaluation set is made of runs of held-out documents and of nothing else.
    evaluation = eval_text(dataset)
    assert len(evaluation) == dataset.n_eval_tokens == 600
    for part in evaluation.split(b"\0"):
        assert any(part in document for document in held_out), part
        # Beyond the first word of a window cut in two, its words name documents held out.
        assert not any(name in document for name in NAME.findall(part) for document in train)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_names_order_and_copies_of_files_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory,
    make_documents: MakeDocuments,
    write_files: WriteFiles,
    seed: int,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("order")
    texts = make_documents(30, seed=seed)
    shuffled = data.draw(st.permutations(texts))
    copies = shuffled[: data.draw(st.integers(0, 10))]
    first = prepare(source_of(write_files(folder / "a", texts), 300), folder / "r1")
    other = write_files(folder / "b" / "deeper", [*shuffled, *copies]).parent
    second = prepare(source_of(other, 300), folder / "r2")
    assert second.fingerprint == first.fingerprint
    assert second.eval_fingerprint == first.eval_fingerprint
    assert second.manifest.n_duplicates == len(copies)
    assert train_text(second) == train_text(first)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), n_more=st.integers(1, 60))
def test_where_documents_are_added_none_passes_from_training_to_the_held_out_side(
    tmp_path_factory: pytest.TempPathFactory,
    make_documents: MakeDocuments,
    write_files: WriteFiles,
    seed: int,
    n_more: int,
) -> None:
    folder = tmp_path_factory.mktemp("added")
    texts = make_documents(40, seed=seed)
    more = make_documents(n_more, seed=seed + 1)
    before = prepare(source_of(write_files(folder / "a", texts), 300), folder / "r")
    after = prepare(source_of(write_files(folder / "b", [*texts, *more]), 300), folder / "r")
    trained, later = set(train_documents(before)), set(train_documents(after))
    assert trained <= later
    assert after.manifest.held_out_share <= before.manifest.held_out_share
    if after.manifest.held_out_share == before.manifest.held_out_share:
        assert {text.encode() for text in texts} & later == trained


def test_rows_and_files_of_equal_text_are_the_same_corpus(text: Path, tmp_path: Path) -> None:

    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [path.read_text() for path in sorted(text.iterdir())]
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps({"body": t}) + "\n" for t in texts))
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"content": texts}), table)
    found = {
        prepare(
            DataSource(paths=(str(path),), field="body", column="content", eval_tokens=600),
            tmp_path / "results",
        ).fingerprint
        for path in (text, lines, table)
    }
    assert len(found) == 1


def test_another_tokenizer_text_or_evaluation_size_is_another_dataset(
    text: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    first = prepare(source_of(text), results)
    bpe = prepare(source_of(text, tokenizer="bpe:350"), results)
    smaller = prepare(source_of(text, 500), results)
    (text / "0000.txt").write_text("something else than before")
    changed = prepare(source_of(text), results)
    assert len({d.fingerprint for d in (first, bpe, smaller, changed)}) == 4
    assert first.eval_fingerprint != bpe.eval_fingerprint
    assert bpe.vocab_size == 350
    assert bpe.tokenizer == "bpe:350"
    assert bpe.manifest.bytes_per_token > 1.5
    assert bpe.n_eval_tokens == 600
    assert first.manifest.bytes_per_token == 1.0


def test_bpe_is_prepared_from_the_same_split_and_can_be_read_back(
    text: Path, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    dataset = prepare(source_of(text, 200, "bpe:350"), tmp_path / "results")
    tokens = np.concatenate(
        [np.fromfile(dataset.folder / shard.name, dtype="<u2") for shard in dataset.manifest.train]
    )
    reader = Tokenizer.from_file(str(dataset.folder / "tokenizer.json"))
    ends = np.flatnonzero(tokens == 0)
    documents = [reader.decode(part.tolist()) for part in np.split(tokens, ends + 1)[:-1]]
    given = {path.read_text() for path in text.iterdir()}
    assert len(documents) == dataset.manifest.n_train_documents
    assert set(documents) < given


def test_the_vocabulary_is_trained_on_text_that_can_never_be_held_out(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scalelab.corpus import tokenizer

    seen: list[bytes] = []
    train = tokenizer._train_bpe

    def watching(documents: Iterator[bytes], vocab_size: int) -> str:
        seen.extend(documents)
        return train(seen, vocab_size)

    monkeypatch.setattr(tokenizer, "_train_bpe", watching)
    prepare(source_of(text, 100, "bpe:350"), tmp_path / "a")
    # Bytes of the same text, with as much held out as there can be, agree on the split.
    total = sum(path.stat().st_size for path in text.iterdir())
    largest = prepare(source_of(text, int(0.4 * total)), tmp_path / "b")
    assert largest.manifest.held_out_share == 0.5
    assert seen
    assert set(seen) <= set(train_documents(largest))


def test_the_vocabulary_is_trained_on_a_sample_of_the_asked_size(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scalelab.corpus import tokenizer

    sizes: list[int] = []
    train = tokenizer._train_bpe

    def watching(documents: Iterator[bytes], vocab_size: int) -> str:
        seen = list(documents)
        sizes.append(sum(map(len, seen)))
        return train(seen, vocab_size)

    monkeypatch.setattr(tokenizer, "_train_bpe", watching)
    source = source_of(text, 100, "bpe:350")
    prepare(source, tmp_path / "results")
    prepare(replace(source, bpe_sample=sizes[0] // 2), tmp_path / "results")
    assert 0 < sizes[1] <= sizes[0] // 2
    with pytest.raises(UsageError, match="bpe-sample 0"):
        replace(source, bpe_sample=0)


def test_files_that_are_not_text_are_skipped_and_counted(text: Path, tmp_path: Path) -> None:
    before = prepare(source_of(text), tmp_path / "results")
    (text / "image.png").write_bytes(b"\x89PNG\0\0")
    (text / "latin.txt").write_bytes(b"caf\xe9")
    (text / "empty.txt").touch()
    pq.write_table(pa.table({"text": pa.array([None, ""], pa.string())}), text / "rows.parquet")
    after = prepare(source_of(text), tmp_path / "other")
    assert (after.manifest.n_skipped_files, after.manifest.n_empty) == (2, 2)
    assert after.manifest.n_rejected == 1
    assert after.fingerprint == before.fingerprint
    # A file that the user named counts as a document.
    named = DataSource(paths=(str(text), str(text / "latin.txt")), eval_tokens=600)
    again = prepare(named, tmp_path / "other")
    assert (again.manifest.n_skipped_files, again.manifest.n_rejected) == (1, 2)
    alone = DataSource(paths=(str(text / "latin.txt"),), eval_tokens=600)
    with pytest.raises(DataError, match=r"latin\.txt, which is not text: byte 4 is not UTF-8"):
        prepare(alone, tmp_path / "other")


def test_counts_belong_to_the_given_source_not_to_the_source_that_built_the_folder(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalelab.corpus.build.UNSETTLED_S", 0.0)
    first = prepare(source_of(text), tmp_path / "results")
    copy = tmp_path / "copy"
    shutil.copytree(text, copy)
    (copy / "image.png").write_bytes(b"\x89PNG\0\0")
    both = DataSource(paths=(str(text), str(copy)), eval_tokens=600)
    for _ in ("made", "found"):
        second = prepare(both, tmp_path / "results")
        assert second.folder == first.folder
        assert second.manifest.n_duplicates == len(list(text.iterdir()))
        assert second.manifest.n_skipped_files == 1
        assert second.manifest.source == f"{text}, {copy}"
    assert prepare(source_of(text), tmp_path / "results").manifest == first.manifest


def refused(folder: Path, results: Path, problem: str, **options: int) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        prepare(source_of(folder, **options), results)
    assert caught.value.do
    assert leftovers(results) == []


def test_text_that_cannot_be_used_is_refused_and_nothing_is_left(
    tmp_path: Path, make_documents: MakeDocuments, write_files: WriteFiles
) -> None:
    results = tmp_path / "results"
    binary = tmp_path / "binary"
    binary.mkdir()
    (binary / "a.dat").write_bytes(b"\0\1\2")
    refused(binary, results, "1 file without UTF-8 text")
    refused(write_files(tmp_path / "empty", ["", ""]), results, "no text in .*2 empty documents")
    refused(write_files(tmp_path / "same", ["a word " * 99] * 50), results, "1 distinct document ")
    few = write_files(tmp_path / "few", make_documents(20))
    refused(few, results, "half of the text holds", eval_tokens=10**6)
    total = sum(path.stat().st_size for path in few.iterdir())
    refused(few, results, "for training|half of the text", eval_tokens=int(0.55 * total))


@settings(max_examples=20, deadline=None)
@given(n=st.integers(16, 60), seed=st.integers(0, 10**6))
def test_the_evaluation_set_that_a_refusal_proposes_is_accepted(
    tmp_path_factory: pytest.TempPathFactory,
    make_documents: MakeDocuments,
    write_files: WriteFiles,
    n: int,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("advice")
    text = write_files(folder / "text", make_documents(n, seed=seed))
    with pytest.raises(DataError) as caught:
        prepare(source_of(text, 10**7), folder / "results")
    proposed = re.search(r"--eval-tokens (\d+)\.", caught.value.do)
    assert proposed is not None
    assert prepare(source_of(text, int(proposed[1])), folder / "results").manifest.n_documents == n


def test_a_source_whose_files_did_not_change_is_not_read_again(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    # The files were written a moment ago, however slow the machine is.
    monkeypatch.setattr("scalelab.corpus.build.UNSETTLED_S", 1e6)
    first = prepare(source_of(text), results)
    said: list[str] = []

    def again() -> Dataset:
        said.clear()
        return prepare(source_of(text), results, progress=lambda stage, *_: said.append(stage))

    # Times of a moment ago may hide another change within the clock's tick: they are not trusted.
    assert again() == first
    assert said
    monkeypatch.setattr("scalelab.corpus.build.UNSETTLED_S", 0.0)
    assert again() == first
    assert again() == first
    assert not said
    path = next(text.iterdir())
    content, times = path.read_text(), path.stat()
    path.write_text(content.replace("doc", "DOC", 1))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert again().fingerprint != first.fingerprint
    assert said


def test_progress_runs_to_its_end_in_every_stage(text: Path, tmp_path: Path) -> None:
    last: dict[str, tuple[int, int]] = {}

    def note(stage: str, done: int, total: int) -> None:
        assert last.get(stage, (0, total))[0] <= done <= total
        last[stage] = (done, total)

    prepare(source_of(text, tokenizer="bpe:300"), tmp_path / "results", progress=note)
    assert set(last) == {"reading", "training the tokenizer", "tokenizing"}
    assert all(done == total for done, total in last.values())


def test_the_standard_library_is_prepared_in_seconds(tmp_path: Path) -> None:
    started_s = time.process_time()
    folder, _ = build_dataset(DataSource(), tmp_path, lambda *_: None)
    dataset = open_dataset(folder)
    # 0.5 s of processor time where measured; ten times that is not a matter of the machine.
    assert time.process_time() - started_s < 5
    assert dataset.n_eval_tokens == 262_144
    assert dataset.n_train_tokens > 5_000_000
    assert dataset.manifest.n_held_out_documents >= 50
    assert dataset.manifest.held_out_share <= 1 / 8
    shutil.rmtree(tmp_path / "data")


def numbered(kind: str, n: int) -> list[str]:
    return [
        f"{kind} {i}: " + " ".join(str(i * k % 97) for k in range(20 + i % 30)) for i in range(n)
    ]


@pytest.mark.parametrize(
    ("tokenizer", "fingerprints"),
    [
        ("bytes", ("7c66a2b8808c07a9", "d4bad415d89f2b1f")),
        ("bpe:400", ("415fb6ab436165fd", "d2c53126eb359748")),
    ],
)
def test_text_and_rows_keep_the_fingerprints_of_the_first_reader(
    tmp_path: Path, tokenizer: str, fingerprints: tuple[str, str]
) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for number, text in enumerate(numbered("file", 40)):
        (folder / f"{number}.txt").write_text(text)
    (folder / "long.md").write_text("\n\n".join(numbered("part é", 300)))
    rows = [json.dumps({"text": text}) + "\n" for text in numbered("line", 40)]
    (folder / "rows.jsonl").write_text("".join(rows))
    pq.write_table(pa.table({"text": numbered("row", 40)}), folder / "rows.parquet")
    (folder / "image.png").write_bytes(b"\x89PNG\0")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    dataset = prepare(source_of(folder, 2000, tokenizer), tmp_path / "results")
    assert (dataset.fingerprint, dataset.eval_fingerprint) == fingerprints
    assert dataset.manifest.split == "documents"
