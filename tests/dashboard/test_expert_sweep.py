"""The sweep file of mixtures of experts, from training to fits, table and page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from scalelab.cli.main import main

FILE = Path(__file__).parents[2] / "sweeps" / "moe.toml"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moe")
    text = ["--data", str(FILE.parents[1] / "scalelab" / "sweep" / "*.py")]
    assert main(["sweep", "run", str(FILE), *text, "--yes", "--results", str(folder)]) == 0
    return folder


def fitted(results: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    capsys.readouterr()
    main(["fit", "--sweep", "moe", "--results", str(results), "--json", "--bootstrap", "0", *words])
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_grid_of_experts_goes_from_its_file_to_fits_table_and_page(
    results: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    page: Callable[..., AppTest],
) -> None:
    table = tmp_path / "runs.csv"
    words = ["export", "--sweep", "moe", "--out", str(table), "--results", str(results)]
    assert main(words) == 0
    runs = pd.read_csv(table)
    # Dense, and expansion 4 at granularity 1 and 2; each at two sizes and two lengths.
    assert runs["n_experts"].value_counts().to_dict() == {1: 4, 4: 4, 8: 4}
    assert (runs["status"] == "done").all()
    assert (runs["n_params_active"] < runs["n_params"])[runs["n_experts"] > 1].all()
    assert (runs["router_z_weight"] > 0).tolist() == (runs["n_experts"] > 1).tolist()

    for form, where, n_rows in (("routed", "true", 12), ("granularity", "n_experts > 1", 8)):
        for source in ([], ["--from", str(table), "--param-convention", "active"]):
            name = ["--where", where, "--form", form]
            if source:
                main(["fit", *source, *name, "--json", "--bootstrap", "0"])
                found = json.loads(capsys.readouterr().out)
            else:
                found = fitted(results, capsys, *name)
            assert found["form"] == form
            assert found["n_rows"] == n_rows
            assert found["param_convention"] == "active"
    found = fitted(results, capsys, "--param-convention", "chinchilla")
    assert found["param_convention"] == "chinchilla"

    view = page(results, page="Runs")
    shown = view.dataframe[0].value
    assert {"n_params", "n_params_active", "n_experts", "granularity"} <= set(shown)
    assert "optimizer" not in shown
    for form in ("chinchilla", "granularity", "routed"):
        view = page(results, page="Fit", form=form)
        assert not view.exception
        (count,) = (box for box in view.sidebar.selectbox if box.key == "count_n")
        assert count.value == "active"
