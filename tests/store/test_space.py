"""``doctor --disk``: the kinds add up, and each command frees what its line says."""

import json
import os
import shlex
import shutil
import subprocess

import pytest

from scalelab import api
from scalelab.cli.main import main
from scalelab.records.parts import disk_bytes


@pytest.fixture
def filled(make, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    finished, stopped = make.run(1), make.run(2)
    lost = make.attempt(finished)
    last = make.attempt(finished)
    open_attempt = make.attempt(stopped)
    for number, attempt in enumerate((lost, last, open_attempt)):
        with attempt.writing_checkpoint(20) as folder:
            (folder / "state.bin").write_bytes(bytes(50_000 * (number + 1)))
        make.end(attempt)
    for attempt in (last, open_attempt):
        (attempt.path / "out" / ".hydra").mkdir(parents=True)
        (attempt.path / "out" / "model.pt").write_bytes(bytes(120_000))
    make.finish(last)
    make.sweep("demo", [finished, stopped])
    make.sweep("other", [finished])
    make.done(3)
    for name, size in (
        ("data/" + "a" * 16 + "/manifest.json", 300_000),
        ("data/" + "d" * 16 + "/manifest.json", 9),
        ("trunks/t/checkpoint-9/state.bin", 200_000),
        ("source/0123.diff", 70_000),
        (".scalelab-scratch-0123/x", 80_000),
        ("figures/x.png", 90_000),
    ):
        (make.path / name).parent.mkdir(parents=True, exist_ok=True)
        (make.path / name).write_bytes(bytes(size))
    return make


def test_the_kinds_add_up_to_what_du_counts(filled):
    usage = api.disk_usage(filled.path)
    said = subprocess.run(
        ["du", "-s", "-B1", str(filled.path)], capture_output=True, text=True, check=True
    )
    assert usage.n_bytes == sum(usage.kinds.values()) == int(said.stdout.split()[0])
    assert list(usage.kinds)[:2] == ["datasets", "files of users' programs"]
    for kind, least in {
        "datasets": 300_000,
        "trunk states": 200_000,
        "checkpoints of unfinished runs": 150_000,
        "checkpoints of finished runs": 100_000,
        "superseded attempts": 50_000,
        "files of users' programs": 240_000,
        "leftovers": 80_000,
        "source code of runs": 70_000,
        "other": 90_000,
    }.items():
        assert least < usage.kinds[kind] < least + 50_000, kind


def test_each_command_exists_and_frees_what_its_line_says(filled, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("scalelab.store.collect.collect", lambda results: None)
    words = ["--results", str(filled.path)]
    assert main(["doctor", "--disk", "--json", *words]) == 0
    lines = json.loads(capsys.readouterr().out)["disk"]["removable"]
    commands = [line["command"] for line in lines]
    assert sorted(commands) == [
        *(f"scalelab remove --{o}" for o in ("caches", "checkpoints", "orphans", "outputs")),
        *(f"scalelab remove --{o}" for o in ("superseded", "unused-data")),
        "scalelab remove demo",
        "scalelab remove other",
    ]
    for line in lines:
        copy = tmp_path / "copy"
        shutil.copytree(filled.path, copy)
        before = disk_bytes(copy)
        assert main([*shlex.split(line["command"])[1:], "--dry-run", "--results", str(copy)]) == 0
        assert disk_bytes(copy) == before
        parts = {p: disk_bytes(p) for p in copy.iterdir()}
        assert main([*shlex.split(line["command"])[1:], "--yes", "--results", str(copy)]) == 0
        freed = sum(n - disk_bytes(p) for p, n in parts.items())
        leftovers = parts[copy / ".scalelab-scratch-0123"]
        assert freed - line["n_bytes"] in (0, leftovers), line
        shutil.rmtree(copy)


def test_the_page_names_the_results_folder_in_each_command(filled, capsys):
    assert main(["doctor", "--disk", "--results", str(filled.path)]) == 0
    page = capsys.readouterr().out
    assert f"scalelab remove --unused-data --results {filled.path}" in page
    assert "datasets that no run uses" in page
    assert main(["doctor", "--disk", "--results", str(filled.path / "nowhere")]) == 3


def test_a_run_without_a_spec_hides_no_other_line(filled, capsys):
    (filled.path / "runs" / ("0" * 12)).mkdir()
    assert main(["doctor", "--disk", "--results", str(filled.path)]) == 0
    answer = capsys.readouterr()
    assert "not measured: datasets that no run uses" in answer.err
    assert "scalelab remove demo" in answer.out
