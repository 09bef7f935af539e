from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from scalelab.cli.data import prepare
from scalelab.corpus.dataset import find_dataset
from scalelab.errors import DataError, UsageError

app = typer.Typer()
app.command()(prepare)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(60):
        (folder / f"{i}.txt").write_text(f"document {i} says " + "word " * (20 + i))
    (folder / "copy.txt").write_text((folder / "3.txt").read_text())
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    return folder


def invoke(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_object_printed_is_the_dataset_on_disk(text: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    options = ("--results", results, "--eval-tokens", "0.5K", "--json")
    found = json.loads(invoke(text, *options))
    assert found["command"] == "data prepare"
    dataset = find_dataset(results, found["fingerprint"])
    assert found["folder"] == str(dataset.folder)
    assert found["n_train_tokens"] == dataset.n_train_tokens
    assert found["n_eval_tokens"] == dataset.n_eval_tokens == 500
    assert (found["n_duplicates"], found["n_skipped_files"]) == (1, 1)
    # A shell expands globs into further words: they mean the same as --data.
    files = sorted(text.glob("*.txt"))
    again = json.loads(invoke("--data", files[0], *files[1:], *options))
    assert again["fingerprint"] == found["fingerprint"]


def test_the_table_says_what_was_taken_and_what_was_not(text: Path, tmp_path: Path) -> None:
    page = invoke(text, "--results", tmp_path / "results", "--eval-tokens", 500)
    assert "60 distinct" in page
    assert "1 duplicate, 1 file without UTF-8 text" in page
    assert "bytes, vocabulary 256, 1.00 bytes per token" in page
    assert "500 tokens of" in page


def test_damage_is_repaired(text: Path, tmp_path: Path) -> None:
    options = (text, "--results", tmp_path / "results", "--eval-tokens", 500, "--json")
    found = json.loads(invoke(*options))
    shard = Path(found["folder"], found["train"][0]["name"])
    content = shard.read_bytes()
    shard.write_bytes(b"!" + content[1:])
    invoke(*options)
    assert shard.read_bytes() == content


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("--tokenizer", "bpe:abc"), UsageError),
        (("--eval-tokens", "many"), UsageError),
        (("nowhere.txt",), DataError),
    ],
)
def test_bad_options_are_errors_on_purpose(
    text: Path, tmp_path: Path, words: tuple[str, ...], kind: type[Exception]
) -> None:
    options = [str(text), "--results", str(tmp_path / "r"), "--eval-tokens", "500", *words]
    result = CliRunner().invoke(app, options)
    assert type(result.exception) is kind
