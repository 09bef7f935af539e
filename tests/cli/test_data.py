from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from scalelab.cli.data import prepare
from scalelab.cli.progress import preparing
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


def test_one_text_file_is_a_corpus_and_the_share_held_out_is_said(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("".join(f"line {i:05}\n" for i in range(1000)))
    page = invoke(tmp_path / "input.txt", "--results", tmp_path / "results", "--eval-tokens", "2K")
    assert "tokens of 1 document " in page
    assert "2,000 tokens from the last 18 % of the document" in page


def test_unusable_rows_and_markup_are_said(text: Path, tmp_path: Path) -> None:
    options = ("--results", tmp_path / "results", "--eval-tokens", 500)
    (text / "rows.ndjson").write_text('{"text": "a row"}\n{"text": null}\n')
    (text / "page.html").write_text("<html>page")
    result = CliRunner().invoke(app, [str(word) for word in (text, *options)])
    assert "1 document that cannot be used" in result.stdout
    assert "listed in" in result.stdout
    assert "1 file of HTML, XML, JSON or CSV was read as text, markup included" in result.stderr
    found = json.loads(invoke(text, *options, "--json"))
    assert found["n_rejected"] == found["n_markup_files"] == 1
    assert "line 2" in Path(found["rejects"]).read_text()
    assert len(found["warnings"]) == 2
    with pytest.raises(DataError, match="at most a share of 0 that cannot be used"):
        invoke(text, *options, "--max-rejects", 0)
    # As text, each file is one document, and its markup is what was asked for.
    words = (text, *options, "--data-format", "text")
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert "62 distinct" in result.stdout
    assert "warning" not in result.stderr


def test_nested_fields_and_columns_are_options(tmp_path: Path) -> None:
    rows = [{"meta": {"body": f"row {i} " + "word " * i}} for i in range(40)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    options = ("--results", tmp_path / "results", "--eval-tokens", 300, "--json")
    found = [
        json.loads(invoke(tmp_path / name, flag, "meta.body", *options))["fingerprint"]
        for name, flag in (("a.json", "--field"), ("a.parquet", "--column"))
    ]
    assert found[0] == found[1]


def test_a_log_says_now_and_then_when_a_stage_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = 100.0
    monkeypatch.setattr("scalelab.cli.progress.time.monotonic", lambda: now_s)
    with preparing() as report:
        report("reading", 5, 100)
        now_s = 110.0
        report("reading", 40, 100)
        now_s = 140.0
        report("reading", 85, 100)  # 80 in 40 s
        now_s = 150.0
        report("reading", 95, 100)
        now_s = 200.0
        report("tokenizing", 500, 1000)  # continued: what was done before has no speed
        now_s = 230.0
        report("tokenizing", 600, 1000)
        now_s = 300.0
        report("tokenizing", 1000, 1000)
    assert capsys.readouterr().err == (
        "reading: 85%, about 7.5 s left\ntokenizing: 60%, about 2 min left\n"
    )
