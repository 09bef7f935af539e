"""A real sweep over mixtures of files that every machine has: trained, fitted, decided."""

from __future__ import annotations

import importlib.util
import json
import sysconfig
from pathlib import Path

import duckdb
import pytest

from scalelab.cli.main import main

STDLIB = Path(sysconfig.get_path("stdlib"))
SOURCES = (
    *("--mix-source", f"code={STDLIB}/asyncio/*.py", "--mix-source", f"code={STDLIB}/email/*.py"),
    *("--mix-source", f"docs={STDLIB}/pydoc_data/topics.py", "--eval-tokens", "4K"),
    *("--seq-len", "64", "--device", "cpu", "--workers", "2"),
)
MIXTURE = ("sweep", "mixture", *SOURCES, "--n-params", "9K", "--n-tokens", "40K", "--runs", "6")


def pages() -> str:
    """Return the pages of an installed package."""
    found = importlib.util.find_spec("matplotlib")
    assert found is not None
    assert found.origin is not None
    return f"{Path(found.origin).parent}/backends/web_backend/*.html"


@pytest.mark.slow
def test_two_sources_and_three_sets_from_the_plan_to_the_best_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = ("--eval-set", f"json={STDLIB}/json/*.py", "--eval-set", f"html={pages()}")
    command = (*MIXTURE, *sets, "--name", "mix")
    assert main([*command, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "code" in out
    assert "4K held out of each" in out
    assert main([*command, "--yes"]) == 0
    assert "Next: scalelab fit --form mixture --sweep mix" in capsys.readouterr().out
    with duckdb.connect("results/scalelab.duckdb", read_only=True) as connection:
        losses = connection.execute(
            "SELECT m.weight, e.set, e.loss_nats FROM evals AS e JOIN mixtures AS m USING (run_id) "
            "WHERE m.source = 'code' AND is_final ORDER BY 1, 2"
        ).fetchall()
        drawn = connection.execute(
            "SELECT run_id, sum(m.n_tokens) = any_value(r.n_tokens), bool_and(abs(m.n_tokens - "
            "m.weight * r.n_tokens) < 128), bool_and(m.epochs BETWEEN 0 AND 1) "
            "FROM mixtures AS m JOIN runs AS r USING (run_id) GROUP BY 1"
        ).fetchall()
    assert [row[1:] for row in drawn] == [(True, True, True)] * 6
    assert [row[1] for row in losses[:5]] == ["code", "docs", "heldout", "html", "json"]
    by_set = {name: [row[2] for row in losses if row[1] == name] for name in ("code", "docs")}
    # Without a source, its loss is the highest; with nothing else, the lowest.
    assert by_set["code"][0] == max(by_set["code"])
    assert by_set["docs"][-1] == max(by_set["docs"])
    for code, docs, held_out, _, _ in zip(*[iter([row[2] for row in losses])] * 5, strict=True):
        assert held_out == pytest.approx((code + docs) / 2, rel=1e-9)
    # The same sweep again has nothing to train.
    assert main([*command, "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_started"] == 0
    assert main(["fit", "--form", "mixture", "--sweep", "mix", "--bootstrap", "20", "--json"]) == 0
    fit = json.loads(capsys.readouterr().out)
    assert fit["sources"] == ["code", "docs"]
    assert {"code", "docs", "json", "html"} <= set(fit["sets"])
    assert main(["decide", "--mixture", "--sweep", "mix", "--target", "code", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"]["code"]["value"] > 0.8
    assert main(["status", "mix"]) == 0
    assert "fit --form mixture" in capsys.readouterr().out


@pytest.mark.slow
def test_a_fixed_mixture_in_another_sweep_and_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fixed.toml").write_text(
        f"""
kind = "isoflop"
budgets = "2e9"
sizes = 2
span = 2
[data]
tokenizer = "bpe:400"
eval_tokens = 2048
[data.mix]
code = {{ paths = "{STDLIB}/asyncio", weight = 0.7 }}
docs = {{ paths = "{STDLIB}/pydoc_data/topics.py", weight = 0.3 }}
[train]
seq_len = 32
"""
    )
    command = ["sweep", "run", "fixed.toml", "--device", "cpu"]
    assert main([*command, "--yes"]) == 0
    out = capsys.readouterr().out
    assert "weight 0.7" in out
    assert "2 done" in out
    wrong = [*command, "--mix-weight", "code=0.5"]
    assert main(wrong) == 2
    assert "weights that sum to 0.8" in capsys.readouterr().err
    assert main([*command, "--mix-weight", "cod=0.5"]) == 2
    assert "Did you mean code" in capsys.readouterr().err
    assert main([*MIXTURE, "--n-tokens", "200M", "--dry-run"]) == 2
    assert "together hold too few tokens" in capsys.readouterr().err
