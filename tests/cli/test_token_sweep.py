"""Real sweeps on token files and with a tokenizer from a file, from the command to the table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SAMPLES = Path(__file__).parents[1] / "corpus/samples"
MARK = ("--end-token", "256", "--document-mask")
GRID = (
    *("sweep", "grid", "--n-params", "20K", "--n-tokens", "20K", "--seq-len", "64"),
    *("--batch-seqs", "8", "--lr", "1e-2", "--eval-tokens", "1K", "--workers", "1", "--yes"),
)


def scalelab(results: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "scalelab", *words, "--results", str(results)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


def runs(results: Path, sweep: str) -> list[dict[str, Any]]:
    table = results / "runs.json"
    scalelab(results, "export", "--sweep", sweep, "--format", "json", "--out", str(table))
    content = json.loads(table.read_text())
    found: list[dict[str, Any]] = content["rows"] if isinstance(content, dict) else content
    return found


@pytest.mark.slow
def test_sweeps_train_on_token_files_of_every_format(tmp_path: Path) -> None:
    results = tmp_path / "results"
    raw = str(SAMPLES / "data_nanogpt_bin/train.bin")
    scalelab(results, *GRID, *MARK, "--data", raw, "--name", "raw")
    (first,) = runs(results, "raw")
    assert (first["status"], first["vocab_size"], first["end_token"]) == ("done", 257, 256)
    assert first["bits_per_byte"] is None
    # The same tokens in another format are the same runs, which are not trained again.
    for name in ("data_llmc_bin/tiny_llama3.bin", "data_hf_disk/ragged"):
        words = (*GRID, *MARK, "--data", str(SAMPLES / name), "--name", name.partition("/")[0])
        assert "1 run already done" in scalelab(results, *words)
    # Blocks of MosaicML, with a tokenizer that says the bytes of its tokens, by a sweep file.
    file = tmp_path / "sweep.toml"
    file.write_text(
        'kind = "grid"\nname = "mds"\nn_params = "20K"\nn_tokens = "20K"\n'
        f'[data]\npaths = "{SAMPLES / "data_mds"}"\neval_tokens = "1K"\nend_token = 256\n'
        f'tokenizer = "{SAMPLES / "tokenizers/tokenizer.json"}"\n'
        "[train]\nseq_len = 64\nbatch_seqs = 8\nlr = 1e-2\n"
    )
    scalelab(results, "sweep", "run", str(file), "--yes")
    (row,) = runs(results, "mds")
    assert (row["status"], row["tokenizer"], row["vocab_size"]) == ("done", "tokenizer.json", 512)
    assert row["bits_per_byte"] > 0.5
