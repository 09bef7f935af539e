"""A real sweep with three evaluation sets of files that every machine has."""

from __future__ import annotations

import importlib.util
import json
import sysconfig
from pathlib import Path

import duckdb
import pytest

from scalelab.cli.main import main

STDLIB = Path(sysconfig.get_path("stdlib"))
SWEEP = """
kind = "grid"
n_params = "20K,40K"
n_tokens = "30K,90K"
[data]
paths = ["{stdlib}/asyncio/*.py", "{stdlib}/unittest/*.py"]
tokenizer = "bpe:512"
eval_tokens = 4096
[data.eval]
python = ["{stdlib}/json/*.py", "{stdlib}/email/*.py"]
docs = {{ paths = [{docs}], tokens = "2K" }}
html = "{html}"
[train]
seq_len = 64
eval_every = 0.5
"""


def sweep_file(folder: Path) -> Path:
    """Write the sweep: licence and documentation texts, and pages of an installed package."""
    found = importlib.util.find_spec("matplotlib")
    assert found is not None
    assert found.origin is not None
    pages = Path(found.origin).parent / "backends" / "web_backend"
    texts = [*STDLIB.glob("LICENSE*"), STDLIB / "pydoc_data" / "topics.py"]
    path = folder / "sets.toml"
    docs = ", ".join(json.dumps(str(text)) for text in texts)
    path.write_text(SWEEP.format(stdlib=STDLIB, docs=docs, html=f"{pages}/*.html"))
    return path


@pytest.mark.slow
def test_every_run_reports_its_loss_on_real_code_texts_and_pages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "run", str(sweep_file(tmp_path)), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "evaluation: heldout 4.1K, python 4.1K, docs 2K, html" in out
    assert "2 times a run" in out
    assert main(["sweep", "run", "sets.toml", "--yes", "--device", "cpu", "--workers", "2"]) == 0
    assert "4 done" in capsys.readouterr().out
    with duckdb.connect("results/scalelab.duckdb", read_only=True) as connection:
        rows = connection.execute(
            "SELECT run_id, set, loss_nats, bits_per_byte, stderr, n_tokens, n_bytes FROM evals "
            "WHERE is_final ORDER BY ALL"
        ).fetchall()
        early = connection.execute(
            "SELECT e.set, count(*), bool_and(e.loss_nats > f.loss_nats - 0.2) FROM evals AS e "
            "JOIN evals AS f USING (run_id, set) WHERE NOT e.is_final AND f.is_final GROUP BY ALL "
            "ORDER BY ALL"
        ).fetchall()
    assert [row[1] for row in rows] == ["docs", "heldout", "html", "python"] * 4
    for _, _, loss, bits, stderr, n_tokens, n_bytes in rows:
        assert 1 < loss < 6.5
        assert bits == pytest.approx(loss * n_tokens / n_bytes / 0.6931471805599453, rel=1e-3)
        assert 0 < stderr < 0.5
        assert n_tokens % 64 == 0
    assert early == [(name, 4, True) for name in ("docs", "heldout", "html", "python")]
    # Code is nearer to the training text than pages and licences are.
    losses = {name: [row[2] for row in rows if row[1] == name] for name in ("python", "html")}
    assert all(code < page for code, page in zip(losses["python"], losses["html"], strict=True))
    assert main(["export", "--table", "evals", "--sweep", "sets", "--out", "evals.csv"]) == 0
    assert len(Path("evals.csv").read_text().splitlines()) == 1 + 4 * 4 * 2
    # The same sweep again is finished already; a set of the training text is refused.
    assert main(["sweep", "run", "sets.toml", "--yes", "--device", "cpu"]) == 0
    capsys.readouterr()
    shared = f"same={STDLIB}/asyncio/events.py"
    assert main(["sweep", "run", "sets.toml", "--yes", "--eval-set", shared]) == 3
    assert "is also in the training text" in capsys.readouterr().err
