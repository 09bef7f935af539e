"""Archives: the way back is the identity, and a cut or changed one is refused."""

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalelab import api
from scalelab.cli.main import main
from scalelab.errors import DataError, UsageError
from scalelab.records import notes
from scalelab.records.machine import own_process
from scalelab.records.unpack import unpack
from scalelab.store.live import open_snapshot
from tests.store.conftest import tree

LOCK = "launcher.lock"
pytestmark = pytest.mark.usefixtures("without_waiting_for_the_disk")


def unlocked(path: Path) -> dict[str, bytes | None]:
    """Return the tree of a results folder without the locks that commands leave."""
    return {name: content for name, content in tree(path).items() if Path(name).name != LOCK}


def fill(make) -> None:
    """A sweep with everything that a sweep may have, and what is not part of it."""
    run, other = make.done(1, loss=1.25), make.run(2)
    make.attempt(run)
    other.claim()
    attempt = make.attempt(other)
    attempt.write_note({**attempt.read_note(), "source_diff": "source/0123.diff"})
    with attempt.writing_checkpoint(20) as folder:
        (folder / "state.bin").write_bytes(bytes(range(256)) * 300)
        (folder / "rank-1").mkdir()
        (folder / "rank-1" / "state.bin").write_bytes(b"")
    make.end(attempt)
    for name, content in {
        f"runs/{run.run_id}/log.txt": "a\x00b\r\n",
        "sweeps/demo/intents/demo.12ab/intent.json": "{}",
        "sweeps/demo/spec.json": "{}",
        "sweeps/demo/" + "n" * 150 + "/" + "f" * 120: "long",
        "source/0123.diff": "diff",
        "source/9999.diff": "not of this sweep",
        f"data/{'d' * 16}/manifest.json": "{}",
        f"data/{'d' * 16}/train-00000.bin": "x" * 3000,
        f"data/{'a' * 16}/manifest.json": "{}",
    }.items():
        (make.path / name).parent.mkdir(parents=True, exist_ok=True)
        (make.path / name).write_text(content)
    make.sweep("demo", [run, other])
    make.sweep("other", [make.done(3)])


@pytest.mark.parametrize("ending", [".tar.gz", ".tar.zst"])
def test_a_sweep_that_was_removed_comes_back_byte_for_byte(make, tmp_path, capsys, ending):
    fill(make)
    before = unlocked(make.path)
    file = tmp_path / f"demo{ending}"
    words = ["--results", str(make.path)]
    assert main(["archive", "demo", str(file), *words]) == 0
    assert unlocked(make.path) == before
    assert main(["remove", "demo", "--yes", *words]) == 0
    assert main(["remove", "--unused-data", "--yes", *words]) == 0
    shutil.rmtree(make.path / "data" / ("d" * 16))
    capsys.readouterr()
    assert main(["restore", str(file), "--dry-run", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [part["kind"] for part in found["new"]] == ["dataset", "run", "run", "sweep"]
    assert main(["restore", str(file), *words]) == 0
    unused = {f"data/{'a' * 16}", f"data/{'a' * 16}/manifest.json"}
    assert unlocked(make.path) == {name: before[name] for name in before if name not in unused}
    with open_snapshot(make.path) as connection:
        query = "SELECT loss_nats FROM runs ORDER BY ALL"
        assert connection.execute(query).fetchall() == [(1.25,), (1.4375,), (None,)]
    # Once more changes nothing.
    capsys.readouterr()
    assert main(["restore", str(file), "--json", *words]) == 0
    assert json.loads(capsys.readouterr().out)["new"] == []
    with (
        tarfile.open(fileobj=io.BytesIO(gzip.open(file).read()))
        if ending == ".tar.gz"
        else (tempfile.TemporaryFile()) as archive
    ):
        if ending == ".tar.gz":
            assert archive.extractfile("source/0123.diff").read() == b"diff"
            assert "source/9999.diff" not in archive.getnames()


def test_notes_come_along_in_archives_and_merges(make, tmp_path):
    fill(make)
    run = make.run(1)
    written = {
        notes.add_note(make.path, "demo", "the first sweep").id,
        notes.add_note(make.path, run.run_id, "loss spike at step 300").id,
    }
    notes.add_note(make.path, make.done(90).run_id, "a run of no sweep")
    file = tmp_path / "demo.tar.zst"
    api.archive("demo", file, results=make.path)
    api.restore(file, results=tmp_path / "back")
    assert {note.id for note in notes.read_notes(tmp_path / "back")} == written
    api.merge(make.path, results=tmp_path / "merged", rename={"demo": "renamed"})
    about = {note.text: note.about for note in notes.read_notes(tmp_path / "merged")}
    assert about["the first sweep"] == "renamed"
    assert about["loss spike at step 300"] == run.run_id
    assert len(about) == 3


def test_an_archive_without_data_and_checkpoints_and_one_of_an_import(make, tmp_path):
    fill(make)
    small = tmp_path / "small.tar.zst"
    api.archive("demo", small, results=make.path, with_data=False, with_checkpoints=False)
    api.restore(small, results=tmp_path / "other")
    found = unlocked(tmp_path / "other")
    assert not any(name.startswith("data/d") or "checkpoint" in name for name in found)
    assert found.items() <= unlocked(make.path).items()
    csv = tmp_path / "runs.csv"
    csv.write_text("n_params,n_tokens,loss_nats\n1e6,2e7,3.5\n2e6,3e7,3.25\n")
    assert main(["import", str(csv), "--name", "t", "--results", str(make.path)]) == 0
    api.archive("t", tmp_path / "t.tar.gz", results=make.path)
    api.restore(tmp_path / "t.tar.gz", results=tmp_path / "other", rename={"t": "u"})
    with open_snapshot(tmp_path / "other") as connection:
        query = 'SELECT DISTINCT "import" FROM imports'
        assert connection.execute(query).fetchall() == [("u",)]


def test_an_archive_that_contradicts_the_folder_is_a_conflict(make, tmp_path):
    make.sweep("demo", [make.done(1, loss=1.25)])
    api.archive("demo", tmp_path / "demo.tar.gz", results=make.path)
    api.remove("demo", results=make.path)
    make.sweep("demo", [make.done(1, loss=1.75)])
    with pytest.raises(DataError, match=r"loss 1\.75 here, loss 1\.25 there"):
        api.restore(tmp_path / "demo.tar.gz", results=make.path)
    api.restore(tmp_path / "demo.tar.gz", results=make.path, conflicts="theirs")
    assert make.run(1).accepted().read_record().loss_nats == 1.25


def test_what_cannot_be_archived_is_refused(make, tmp_path):
    run = make.run(1)
    attempt = make.attempt(run)
    attempt.write_note({**attempt.read_note(), **own_process()})
    make.sweep("demo", [run])
    for name, file in (("demo", "a.zip"), ("demo", ".tar.gz"), ("nothing", "a.tar.gz")):
        with pytest.raises(UsageError):
            api.archive(name, tmp_path / file, results=make.path)
    with pytest.raises(UsageError, match="may train now"):
        api.archive("demo", tmp_path / "a.tar.gz", results=make.path)
    make.end(attempt)
    api.archive("demo", tmp_path / "a.tar.gz", results=make.path)
    with pytest.raises(UsageError, match="which exists"):
        api.archive("demo", tmp_path / "a.tar.gz", results=make.path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz", "results"]


def test_links_to_folders_are_named_and_hidden_files_come_along(make, tmp_path):
    run = make.done(1)
    out = make.run(1).attempts()[0].path / "out"
    (out / ".hydra").mkdir(parents=True)
    (out / ".hydra" / "config.yaml").write_text("lr: 1")
    (out / "latest").symlink_to(out / ".hydra")
    (out / "dangling").symlink_to(out / "gone")
    (out / "best.pt").symlink_to(out / ".hydra" / "config.yaml")
    os.mkfifo(out / "pipe")
    (run.path / ".accepted.77.0123abcd").write_text("")
    make.sweep("demo", [run])
    report = api.archive("demo", tmp_path / "a.tar.gz", results=make.path)
    odd = [name.rpartition("/")[2] for name in report.left_out]
    assert odd == ["dangling", "latest", "pipe"]
    plan = api.restore(tmp_path / "a.tar.gz", results=tmp_path / "restored")
    assert plan.left_out == ()
    plan = api.merge(make.path, results=tmp_path / "merged")
    assert "dangling is no file, and 2 more" in plan.left_out[0]
    for name in ("restored", "merged"):
        copy = tmp_path / name / out.relative_to(make.path)
        assert sorted(p.name for p in copy.iterdir()) == [".hydra", "best.pt"]
        assert (copy / ".hydra" / "config.yaml").read_text() == "lr: 1"
        assert (copy / "best.pt").read_text() == "lr: 1"
        assert not list((tmp_path / name / "runs" / run.run_id).glob(".accepted*"))


@pytest.fixture(scope="module")
def archives(maker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    (folder / "results").mkdir()
    fill(maker(folder / "results"))
    for ending in (".tar.gz", ".tar.zst"):
        api.archive("demo", folder / f"demo{ending}", results=folder / "results")
    return {ending: (folder / f"demo{ending}").read_bytes() for ending in (".tar.gz", ".tar.zst")}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), ending=st.sampled_from([".tar.gz", ".tar.zst"]))
def test_a_cut_or_changed_archive_is_refused_or_whole(archives, data, ending):
    whole = archives[ending]
    is_inside = ending == ".tar.gz" and data.draw(st.booleans())
    content = bytearray(gzip.decompress(whole) if is_inside else whole)
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, len(content) - 1))
            content[place] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"x{ending}")
        file.write_bytes(gzip.compress(content, 1) if is_inside else content)
        out, good = Path(folder, "out"), Path(folder, "good")
        out.mkdir(), good.mkdir()
        try:
            unpack(file, out)
        except DataError:
            return
        other = Path(folder, f"good{ending}")
        other.write_bytes(whole)
        unpack(other, good)
        assert unlocked(out) == unlocked(good)


# A command that stops after some calls of a function, until it is killed.
COMMAND = """
import sys, time
from scalelab.cli.main import main
from scalelab.records import {module}
call = {module}.{name}
count = 0
def counted(*arguments, **options):
    global count
    answer = call(*arguments, **options)
    count += 1
    if count == {n_steps}:
        print("step", count, flush=True)
        time.sleep(600)
    return answer
{module}.{name} = counted
main(sys.argv[1:])
"""


def killed(words: list[str], module: str, name: str, n_steps: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(module=module, name=name, n_steps=n_steps), *words],
        stdout=subprocess.PIPE,
        text=True,
    )
    while f"step {n_steps}\n" not in (line := process.stdout.readline()) and line:
        pass
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()


@pytest.mark.slow
def test_a_killed_archive_is_absent_and_a_killed_restore_is_ended_by_the_next(make, tmp_path):
    fill(make)
    words = ["--results", str(make.path)]
    file = tmp_path / "demo.tar.gz"
    killed(["archive", "demo", str(file), *words], "archive", "_add", 5)
    assert not file.exists()
    before = unlocked(make.path)
    assert main(["archive", "demo", str(file), *words]) == 0
    assert main(["remove", "demo", "--yes", *words]) == 0
    removed = unlocked(make.path)
    killed(["restore", str(file), *words], "merge", "copy", 1)
    assert unlocked(make.path) == removed
    killed(["restore", str(file), *words], "merge", "_put", 1)
    assert unlocked(make.path).items() >= removed.items()
    assert main(["restore", str(file), *words]) == 0
    assert unlocked(make.path) == before
    assert [p.name for p in make.path.iterdir() if p.name.startswith(".scalelab-scratch")] == []
