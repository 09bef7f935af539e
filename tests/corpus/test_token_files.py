"""Token files of other programs: the samples, what is held out, and damaged files."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalelab.corpus.dataset import Dataset, open_dataset, prepare
from scalelab.corpus.source import DataSource
from scalelab.corpus.token_files import find_tokens
from scalelab.corpus.token_split import held_out
from scalelab.errors import DataError, UsageError

SAMPLES = Path(__file__).parent / "samples"
END = 256
FILES = {
    # Path below the samples: format, type, what the files say about the end of documents.
    "data_nanogpt_bin/train.bin": ("raw", "uint16", None),
    "data_llmc_bin/tiny_gpt2.bin": ("llmc", "uint16", None),
    "data_llmc_bin/tiny_llama3.bin": ("llmc", "uint32", None),
    "data_megatron_idx/tiny_text_document.bin": ("megatron", "uint16", END),
    "data_megatron_idx/tiny_text_document.idx": ("megatron", "uint16", END),
    "data_megatron_idx": ("megatron", "uint16", END),
    "data_olmo_npy/part-00000.npy": ("raw", "uint16", END),
    "data_olmo_npy/real_numpy_header.npy": ("npy", "uint16", None),
}


def tokens_of_sample() -> np.ndarray:
    return np.fromfile(SAMPLES / "data_nanogpt_bin/train.bin", dtype="<u2")


def source_of(path: Path | str, **options: object) -> DataSource:
    return DataSource(paths=(str(path),), **{"eval_tokens": 1000, **options})  # type: ignore[arg-type]


def refused(path: Path, results: Path, problem: str, **options: object) -> DataError | UsageError:
    with pytest.raises((DataError, UsageError), match=problem) as caught:
        prepare(source_of(path, **options), results)
    assert caught.value.do
    assert not [found for found in results.rglob("*") if found.is_file()]
    return caught.value


@pytest.mark.parametrize(("name", "facts"), FILES.items())
def test_samples_have_the_values_of_their_readme(
    name: str, facts: tuple[str, str, int | None], tmp_path: Path
) -> None:
    tokens = find_tokens(source_of(SAMPLES / name), tmp_path)
    assert tokens is not None
    assert (tokens.format, tokens.dtype, tokens.end_token) == facts
    found = np.concatenate(list(tokens.read()))
    np.testing.assert_array_equal(found, tokens_of_sample())
    assert (len(found), int((found == END).sum())) == (44_491, 49)


def test_equal_tokens_are_equal_data_in_every_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [
        prepare(source_of(SAMPLES / name, end_token=END), tmp_path / str(index))
        for index, name in enumerate(FILES)
    ]
    assert len({(d.fingerprint, d.eval_fingerprint, d.vocab_size) for d in made}) == 1
    assert len({d.batch(1, 2, 3, 50).tobytes() for d in made}) == 1
    assert len({d.eval_sequences(100).tobytes() for d in made}) == 1
    # One folder of results reads the file that was named last.
    monkeypatch.setattr("scalelab.corpus.build.UNSETTLED_S", 0.0)
    for name in (*FILES, *FILES):
        again = prepare(source_of(SAMPLES / name, end_token=END), tmp_path / "0")
        assert again.folder == made[0].folder
        assert {Path(shard.name).parent for shard in open_dataset(again.folder).manifest.train} == {
            (SAMPLES / name).parent if (SAMPLES / name).is_file() else SAMPLES / name
        }
        np.testing.assert_array_equal(
            open_dataset(again.folder).batch(1, 2, 3, 50), made[0].batch(1, 2, 3, 50)
        )


def test_tokens_stay_in_their_file_and_only_the_evaluation_set_is_copied(tmp_path: Path) -> None:
    file = SAMPLES / "data_nanogpt_bin/train.bin"
    dataset = prepare(source_of(file, end_token=END), tmp_path)
    assert {shard.name for shard in dataset.manifest.train} == {str(file)}
    written = {path.name: path.stat().st_size for path in dataset.folder.iterdir()}
    assert written.keys() == {"eval-00000.bin", "manifest.json"}
    assert written["eval-00000.bin"] == 4 * 1000
    assert len(pickle.dumps(dataset)) < 1000


def test_whole_documents_are_held_out_and_nothing_is_on_both_sides(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    # Document i is full of token i + 1, and ends with token 0.
    texts = [np.full(rng.integers(5, 60), i + 1, "<u2") for i in range(400)]
    tokens = np.concatenate([np.append(text, 0) for text in texts]).astype("<u2")
    file = tmp_path / "train.bin"
    tokens.tofile(file)
    dataset = prepare(source_of(file, end_token=0), tmp_path / "r")
    parts = [tokens[s.offset // 2 : s.offset // 2 + s.n_tokens] for s in dataset.manifest.train]
    assert len(parts) == 17
    assert all(part[-1] == 0 for part in parts)
    held_out = set(dataset.eval_sequences(999).ravel().tolist()) - {0}
    trained = set(np.concatenate(parts).tolist()) - {0}
    assert not held_out & trained
    assert len(held_out | trained) > 350
    assert dataset.n_eval_tokens == 1000 <= len(tokens) - dataset.n_train_tokens
    assert dataset.manifest.held_out_share == pytest.approx(
        1 - dataset.n_train_tokens / len(tokens)
    )


class Stream:
    """Tokens in memory, with the interface that `held_out` reads."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def read_rows(self, starts: np.ndarray, rows: np.ndarray) -> None:
        for row, start in zip(rows, starts, strict=True):
            row[:] = self.tokens[start : start + rows.shape[1]]


@given(
    n_tokens=st.integers(2, 3000),
    share=st.floats(0, 0.5),
    period=st.integers(1, 400),
    is_marked=st.booleans(),
)
def test_held_out_parts_are_apart_and_have_the_tokens_asked_for(
    n_tokens: int, share: float, period: int, *, is_marked: bool
) -> None:
    eval_tokens = max(1, int(share * n_tokens))
    tokens = (np.arange(n_tokens) + 1) % period
    parts = held_out(Stream(tokens), eval_tokens, 0 if is_marked else None)  # type: ignore[arg-type]
    assert sum(part.stop - part.start for part in parts) == eval_tokens
    edges = [edge for part in parts for edge in (part.start, part.end)]
    assert edges == sorted(edges)
    assert edges[0] >= 0
    assert edges[-1] <= n_tokens
    assert all(part.start < part.stop <= part.end for part in parts)


def test_evaluation_files_are_used_as_they_are(tmp_path: Path) -> None:
    tokens = tokens_of_sample()
    folder = tmp_path / "gpt"
    folder.mkdir()
    tokens[:40_000].tofile(folder / "train.bin")
    tokens[40_000:].tofile(folder / "val.bin")
    problem = "val.bin, which is for evaluation by its name"
    error = refused(folder, tmp_path / "r", problem)
    assert f"--data {folder / 'train.bin'} --eval-data {folder / 'val.bin'}" in error.do
    source = source_of(folder / "train.bin", eval_paths=(str(folder / "val.bin"),))
    dataset = prepare(source, tmp_path / "r")
    assert (dataset.n_train_tokens, dataset.n_eval_tokens) == (40_000, 1000)
    np.testing.assert_array_equal(dataset.eval_sequences(999)[0], tokens[40_000:41_000])
    assert dataset.vocab_size == 257


def test_a_token_outside_the_vocabulary_is_named_with_its_position(tmp_path: Path) -> None:
    tokens = np.arange(5000, dtype="<u2") % 100
    tokens[3210] = 777
    file = tmp_path / "a.bin"
    tokens.tofile(file)
    error = refused(file, tmp_path / "r", "token 777 at position 3,210", vocab_size=100)
    assert "--vocab-size 778" in error.do
    signed = tmp_path / "b.npy"
    np.save(signed, np.where(tokens == 777, -1, tokens.astype("<i4")))
    refused(signed, tmp_path / "r", "token -1 at position 3,210")


def test_tokens_too_large_to_read_whole_are_checked_in_every_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalelab.corpus.token_dataset.SCANNED_BYTES", 1)
    monkeypatch.setattr("scalelab.corpus.token_stream.CACHED_BYTES", 1)
    monkeypatch.setattr("scalelab.corpus.token_dataset.SCAN_SAMPLES", 3)
    monkeypatch.setattr("scalelab.corpus.token_dataset.WINDOW_TOKENS", 16)
    tokens = np.arange(5000, dtype="<u2") % 100
    tokens[3210] = 777
    file = tmp_path / "a.bin"
    tokens.tofile(file)
    refused(file, tmp_path / "r", "without the size of their vocabulary")
    refused(file, tmp_path / "r", "token 777", vocab_size=100, fingerprint="whole")
    dataset = prepare(source_of(file, vocab_size=100, eval_tokens=10), tmp_path / "r")
    n_batches = dataset.n_sequences(10)
    with pytest.raises(DataError, match=r"token 777 at position 3,2\d\d of the tokens"):
        dataset.batch(0, 0, n_batches, 10)


def test_a_worker_notices_that_a_token_file_changed(tmp_path: Path) -> None:
    file = tmp_path / "train.bin"
    shutil.copy(SAMPLES / "data_nanogpt_bin/train.bin", file)
    dataset = prepare(source_of(file), tmp_path / "r")
    os.utime(file, (1, 1))
    assert open_dataset(dataset.folder) == dataset
    content = bytearray(file.read_bytes())
    content[:200] = content[200:400]
    file.write_bytes(content)
    with pytest.raises(DataError, match="changed since") as caught:
        open_dataset(dataset.folder)
    assert "data prepare" in caught.value.do
    file.write_bytes(content[:-2])
    with pytest.raises(DataError, match="changed since"):
        open_dataset(dataset.folder)
    file.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        open_dataset(dataset.folder)
    file.write_bytes(content)
    again = prepare(source_of(file), tmp_path / "r")
    assert again.fingerprint != dataset.fingerprint


def test_the_whole_fingerprint_sees_every_token(tmp_path: Path) -> None:
    tokens = np.tile(np.arange(100, dtype="<u2"), 40_000)
    file = tmp_path / "a.bin"
    found = {"sampled": set(), "whole": set()}
    for change in (0, 1):
        tokens[20_481] += change
        tokens.tofile(file)
        for kind, seen in found.items():
            seen.add(prepare(source_of(file, fingerprint=kind), tmp_path / "r").fingerprint)
    assert (len(found["sampled"]), len(found["whole"])) == (1, 2)


def test_a_worker_needs_only_numpy(tmp_path: Path) -> None:
    dataset = prepare(source_of(SAMPLES / "data_nanogpt_bin/train.bin"), tmp_path)
    code = (
        "import sys; from pathlib import Path; from scalelab.corpus.dataset import open_dataset\n"
        f"open_dataset(Path({str(dataset.folder)!r})).batch(0, 0, 2, 8)\n"
        "heavy = {'torch', 'pyarrow', 'pandas', 'pydantic', 'tokenizers', 'duckdb', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_text_and_tokens_are_not_mixed_and_text_can_be_named_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words " * 100)
    tokens = SAMPLES / "data_nanogpt_bin/train.bin"
    both = DataSource(paths=(str(tmp_path / "a.txt"), str(tokens)), eval_tokens=10)
    with pytest.raises(UsageError, match=r"tokens in .*train.bin and text in .*a.txt"):
        prepare(both, tmp_path / "r")
    refused(tmp_path / "a.txt", tmp_path / "r", "--vocab-size for text", vocab_size=9)
    # A folder of text with a small binary file beside it is text.
    (tmp_path / "small.bin").write_bytes(b"\0\1")
    assert find_tokens(source_of(tmp_path), tmp_path / "r") is None
    assert find_tokens(source_of(tokens, format="text"), tmp_path) is None


def llmc(*header: int, tokens: int = 8) -> bytes:
    return struct.pack("<256i", *header, *[0] * (256 - len(header))) + b"\1\0" * tokens


def megatron(lengths: list[int], places: list[int], code: int = 8, **claims: int) -> bytes:
    n = claims.get("n", len(lengths))
    head = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", claims.get("version", 1), code, n, 2)
    return head + np.array(lengths, "<i4").tobytes() + np.array([*places, 0, 0], "<i8").tobytes()


DAMAGED = {
    "empty.bin": (b"", "an empty file"),
    "odd.bin": (b"\1\0\2", "not a whole number of uint16 tokens"),
    "wide.bin": (np.arange(100, dtype="<u4").tobytes(), "its tokens have 4 bytes"),
    "cut.bin": (llmc(20240520, 1, 9), "1040 bytes, but its header says 9 tokens"),
    "short.bin": (llmc(20240520, 1, 9)[:500], "less than the header"),
    "version.bin": (llmc(20240520, 3, 8), "of version 3"),
    "cut.npy": (b"\x93NUMPY\1\0", "header that cannot be read"),
    "huge.npy": (
        b"\x93NUMPY\1\0\x46\0{'descr': '<u2', 'fortran_order': False, 'shape': (10000000000000,)}"
        b"    ",
        "bytes, but its header says 10000000000000 tokens",
    ),
    "empty.idx": (b"", "no header of Megatron"),
    "type.idx": (megatron([4], [0], code=6), "version 1 with type 6"),
    "claims.idx": (megatron([4], [0], n=10**12), "not the 12000000000050 of 1000000000000"),
    "outside.idx": (megatron([400], [0]), "sequences outside outside.bin"),
    "negative.idx": (megatron([-4], [0]), "sequences outside negative.bin"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_named_with_what_is_wrong(name: str, tmp_path: Path) -> None:
    content, problem = DAMAGED[name]
    file = tmp_path / name
    if file.suffix == ".idx":
        file.with_suffix(".bin").write_bytes(b"\1\0" * 10)
    file.write_bytes(content)
    error = refused(file, tmp_path / "r", problem, eval_tokens=2)
    assert name in error.given


def test_arrays_that_are_not_tokens_are_refused(tmp_path: Path) -> None:
    arrays = {
        "float": np.ones(4),
        "big": np.ones(4, ">u2"),
        "columns": np.asfortranarray(np.ones((4, 3), "<u2")),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        refused(tmp_path / f"{name}.npy", tmp_path / "r", "not one of tokens")
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    refused(tmp_path / "object.npy", tmp_path / "r", "not one of tokens")


def test_documents_of_olmo_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "part.npy"
    np.arange(100, dtype="<u2").tofile(file)
    for text, problem in (
        ("0,50\n50,200\n200,210\n", "documents outside the 100 tokens"),
        ("start,end\n", "not a list of document starts and ends"),
    ):
        with gzip.open(tmp_path / "part.csv.gz", "wt") as opened:
            opened.write(text)
        refused(file, tmp_path / "r", problem, eval_tokens=2)
    (tmp_path / "part.csv.gz").write_bytes(b"\x1f\x8b not gzip")
    refused(file, tmp_path / "r", "not a list of document starts and ends", eval_tokens=2)


@given(content=st.binary(max_size=400), suffix=st.sampled_from([".bin", ".npy", ".idx"]))
def test_any_bytes_are_tokens_or_a_clear_error(
    content: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    file = folder / f"x{suffix}"
    for other in (".bin", ".npy", ".idx"):
        file.with_suffix(other).unlink(missing_ok=True)
    file.write_bytes(content)
    if suffix == ".idx":
        file.with_suffix(".bin").write_bytes(content)
    try:
        found = find_tokens(source_of(file), folder)
    except DataError as refusal:
        found = None
        said = refusal.do
    assert said if found is None else found.n_tokens


@given(data=st.data())
def test_any_change_of_a_sample_is_tokens_or_a_clear_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    changed = data.draw(
        st.sampled_from(
            [
                "data_llmc_bin/tiny_gpt2.bin",
                "data_megatron_idx/tiny_text_document.idx",
                "data_olmo_npy/part-00000.csv.gz",
                "data_olmo_npy/real_numpy_header.npy",
            ]
        )
    )
    shutil.copytree((SAMPLES / changed).parent, folder)
    file = folder / Path(changed).name
    content = bytearray(file.read_bytes())
    last = min(len(content), 400) - 1
    for place in data.draw(st.lists(st.integers(0, last), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    name = "part-00000.npy" if file.suffix == ".gz" else file.name
    try:
        found = find_tokens(source_of(folder / name), folder)
    except DataError as refusal:
        found = None
        said = refusal.do
    assert said if found is None else found.n_tokens


def test_the_dataset_opens_anywhere_by_its_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(SAMPLES / "data_nanogpt_bin/train.bin", tmp_path / "t.bin")
    monkeypatch.chdir(tmp_path)
    made = prepare(source_of("t.bin"), Path("results"))
    monkeypatch.chdir("/")
    found: Dataset = open_dataset(tmp_path / made.folder)
    assert found.n_train_tokens == made.n_train_tokens
