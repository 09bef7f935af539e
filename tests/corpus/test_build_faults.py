"""A preparation that is harmed, killed, or has no room leaves one whole dataset or none."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from scalelab.corpus.dataset import open_dataset, prepare
from scalelab.errors import DataError
from tests.corpus.prepared import leftovers, source_of, train_text

WriteFiles = Callable[[Path, list[str]], Path]
MakeDocuments = Callable[..., list[str]]


@pytest.mark.usefixtures("_settled")
@pytest.mark.parametrize("kind", ["short", "gone", "manifest", "bit"])
def test_preparing_again_mends_a_damaged_folder(text: Path, tmp_path: Path, kind: str) -> None:
    results = tmp_path / "results"
    dataset = prepare(source_of(text), results)
    whole = train_text(dataset)
    path = dataset.folder / "train-00000.bin"
    if kind == "short":
        path.write_bytes(whole[:-1])
    elif kind == "gone":
        path.unlink()
    elif kind == "manifest":
        (dataset.folder / "manifest.json").write_text("{")
    else:
        path.write_bytes(b"X" + whole[1:])
    repaired = prepare(source_of(text), results, checks_hashes=True)
    assert repaired.fingerprint == dataset.fingerprint
    assert train_text(repaired) == whole
    assert leftovers(results) == []


def test_two_that_prepare_at_once_end_with_one_whole_dataset(text: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    processes = [start_preparing(text, results) for _ in range(4)]
    outputs = {process.communicate(timeout=300)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(outputs) == 1
    dataset = open_dataset(results / "data" / outputs.pop().strip())
    assert dataset.manifest.n_documents == 80
    assert leftovers(results) == []


def start_preparing(text: Path, results: Path, extra: str = "") -> subprocess.Popen[str]:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from scalelab.corpus.dataset import prepare\n"
        "from scalelab.corpus.source import DataSource\n"
        f"{extra}\n"
        f"source = DataSource(paths=({str(text)!r},), eval_tokens=600)\n"
        f"print(prepare(source, Path({str(results)!r})).fingerprint)"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "stage", ["text_dataset._write_train", "text_dataset.fingerprints", "build.publish"]
)
def test_one_that_is_killed_leaves_nothing_half_made(
    text: Path, tmp_path: Path, stage: str
) -> None:
    results = tmp_path / "results"
    # It stops dead on entering the stage, its files as they are then, and says that it did.
    stop = (
        "from scalelab.corpus import build, text_dataset\n"
        f"{stage} = lambda *a, **k: (print('there', flush=True), time.sleep(60))"
    )
    process = start_preparing(text, results, stop)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (left,) = leftovers(results)
    assert [p.name for p in (results / "data").iterdir()] == [left]
    dataset = prepare(source_of(text), results)
    assert dataset.manifest.n_documents == 80
    # What was left goes once nobody can be at work on it any more.
    assert leftovers(results) == [left]
    old = time.time() - 2 * 24 * 3600
    os.utime(results / "data" / left, (old, old))
    (text / "more.txt").write_text("one more document")
    prepare(source_of(text), results)
    assert leftovers(results) == []


STOP = """
from scalelab.corpus import build, text_dataset, tokenizer, unfinished
build.UNSETTLED_S = unfinished.SAVE_S = 0
text_dataset.REPORT_BYTES = 1
n_left = {n_saves}
for name in ("save_documents", "save_written"):
    def save(self, state, save=getattr(unfinished.Unfinished, name)):
        global n_left
        save(self, state)
        n_left -= 1
        if not n_left:
            {then}
    setattr(unfinished.Unfinished, name, save)
"""


@pytest.mark.parametrize("n_saves", [1, 2, 30, 70])
@pytest.mark.parametrize("then", ["os.kill(os.getpid(), 9)", "raise KeyboardInterrupt"])
@pytest.mark.parametrize("n_files", [80, 1])
def test_one_that_is_stopped_goes_on_where_it_was(
    tmp_path: Path,
    write_files: WriteFiles,
    make_documents: MakeDocuments,
    monkeypatch: pytest.MonkeyPatch,
    n_saves: int,
    then: str,
    n_files: int,
) -> None:
    """The same dataset to the last byte, and nothing is done twice."""
    texts = make_documents(80)
    text = write_files(tmp_path / "text", texts if n_files > 1 else ["\n".join(texts)])
    monkeypatch.setattr("scalelab.corpus.pieces.PIECE_BYTES", 256)
    monkeypatch.setattr("scalelab.corpus.build.UNSETTLED_S", 0)
    monkeypatch.setattr("scalelab.corpus.text_dataset.REPORT_BYTES", 1)
    usual: list[tuple[str, int, int]] = []
    whole = prepare(source_of(text), tmp_path / "whole", progress=lambda *each: usual.append(each))
    stop = "import os; from scalelab.corpus import pieces; pieces.PIECE_BYTES = 256\n"
    process = start_preparing(
        text, tmp_path / "results", stop + STOP.format(n_saves=n_saves, then=then)
    )
    process.communicate(timeout=300)
    assert process.returncode in (-9, 1, -2)
    assert len(leftovers(tmp_path / "results")) == 1
    seen: list[tuple[str, int, int]] = []
    dataset = prepare(
        source_of(text), tmp_path / "results", progress=lambda *each: seen.append(each)
    )
    assert dataset.manifest == whole.manifest
    assert train_text(dataset) == train_text(whole)
    assert leftovers(tmp_path / "results") == []
    # Neither the files nor the tokens until the last saved state are done again.
    usual = [each for each in usual if each[0] == "tokenizing"]
    assert len(usual) > 70
    assert seen == usual[max(0, n_saves - 2) :]


def test_damaged_leftovers_and_those_of_a_living_process_are_not_continued(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalelab.corpus.build.UNSETTLED_S", 0)
    whole = prepare(source_of(text), tmp_path / "whole")
    for harm in ("short text", "no shard", "wrong state", "short shard"):
        results = tmp_path / harm.replace(" ", "-")
        stop = STOP.format(n_saves=20, then="os.kill(os.getpid(), 9)")
        start_preparing(text, results, "import os\n" + stop).communicate(timeout=300)
        (left,) = leftovers(results)
        folder = results / "data" / left
        if harm == "short text":
            os.truncate(folder / "text", 1000)
        elif harm == "no shard":
            (folder / "whole" / "train-00000.bin").unlink()
        elif harm == "short shard":
            os.truncate(folder / "whole" / "train-00000.bin", 10)
        else:
            (folder / "written.json").write_text('{"kind": "documents"}')
        assert train_text(prepare(source_of(text), results)) == train_text(whole)
        assert leftovers(results) == []
    results = tmp_path / "living"
    stop = STOP.format(n_saves=20, then="print('there', flush=True); time.sleep(60)")
    process = start_preparing(text, results, stop)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    assert train_text(prepare(source_of(text), results)) == train_text(whole)
    assert len(leftovers(results)) == 1
    process.kill()
    process.communicate()


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Let no file grow beyond this, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("n_bytes", [100, 700, 15_000])
def test_a_full_disk_is_said_and_leaves_nothing(text: Path, tmp_path: Path, n_bytes: int) -> None:
    results = tmp_path / "results"
    with largest_file(n_bytes), pytest.raises(DataError, match="cannot be written") as caught:
        prepare(source_of(text), results)
    assert "Free disk space" in caught.value.do
    assert leftovers(results) == []
    assert prepare(source_of(text), results).manifest.n_documents == 80


def test_a_results_folder_that_may_not_be_written_is_said(
    public_folder: Path,
    write_files: WriteFiles,
    make_documents: MakeDocuments,
    ordinary_user: Callable[[], AbstractContextManager[None]],
) -> None:
    text = write_files(public_folder / "text", make_documents(40))
    results = public_folder / "results"
    results.mkdir(mode=0o555)
    with ordinary_user(), pytest.raises(DataError, match=r"results/data, where data cannot be"):
        prepare(source_of(text, 300), results)


def test_a_results_folder_that_cannot_be_made_is_said(text: Path) -> None:
    with pytest.raises(DataError, match="/proc/none/data, where data cannot be written"):
        prepare(source_of(text, 300), Path("/proc/none"))


def test_a_results_folder_that_is_a_file_is_said(text: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.write_text("not a folder")
    with pytest.raises(DataError, match="where data cannot be written"):
        prepare(source_of(text), results)
