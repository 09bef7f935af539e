"""Sweep files of each kind of model run as they are: trained, recorded, fitted and on the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from streamlit.testing.v1 import AppTest

from scalelab.cli.main import main

SWEEPS = Path(__file__).parents[2] / "sweeps"
KINDS = {
    "documents": "is_document_masked AND logit_softcap = 30 AND z_loss = 1e-4 "
    "AND decay_steps > 0 AND weight_decay <> 0.1",
    "gqa_tied": "is_tied AND has_qk_norm AND d_head = 8 AND n_heads = 2 * n_kv_heads",
    "mup_muon": "parametrization = 'mup' AND optimizer = 'muon' AND lr = 0.01",
    "completep": "parametrization = 'completep' AND optimizer = 'adamw' AND lr = 0.01",
}
"""Sweep files with what is true of each of their rows in the runs table."""
# Such small models do not always determine a law, and a fit says so.
FITTED = (0, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_the_sweep_file_runs_through_fit_and_page(
    page: Callable[..., AppTest],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "results"
    where = ["--results", str(results)]
    assert main(["sweep", "run", str(SWEEPS / f"{name}.toml"), *where, "--yes"]) == 0
    capsys.readouterr()
    assert main(["fit", "--sweep", name, *where, "--json"]) in FITTED
    fitted = json.loads(capsys.readouterr().out)
    assert main(["collect", *where]) == 0
    query = f"SELECT count(*), count(*) FILTER ({KINDS[name]}), sum(is_finite) FROM " + (
        "(SELECT *, isfinite(loss_nats)::INT AS is_finite FROM runs)"
    )
    with duckdb.connect(str(results / "scalelab.duckdb"), read_only=True) as store:
        n_runs, n_as_asked, n_finite = store.execute(query).fetchone()
    assert n_runs == n_as_asked == n_finite > 5
    assert fitted["n_rows"] == n_runs
    for view in ("Overview", "Runs"):
        test = page(results, page=view)
        assert not test.exception
        assert test.header[0].value == view
