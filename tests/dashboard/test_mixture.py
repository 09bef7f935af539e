"""The view of mixtures is there for runs that mix sources, and shows the best weights."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest
from scalelab_dashboard import data
from scalelab_dashboard.app import MIXTURE, VIEWS
from streamlit.testing.v1 import AppTest

from scalelab.store.live import snapshot_path
from scalelab.sweep.mixture_design import mixture_design

Opener = Callable[..., AppTest]


def test_the_view_is_listed_only_for_different_mixtures(small_store: Path, tmp_path: Path) -> None:
    import shutil

    results = tmp_path / "r"
    shutil.copytree(small_store, results)
    assert not data.sources(results)[0].has_mixture
    with duckdb.connect(str(snapshot_path(results))) as connection:
        connection.execute('UPDATE runs SET mixture = \'[{"name": "a"}]\'')
    assert not data.sources(results)[0].has_mixture
    with duckdb.connect(str(snapshot_path(results))) as connection:
        connection.execute("UPDATE runs SET mixture = concat(mixture, run_id)")
    assert data.sources(results)[0].has_mixture
    assert MIXTURE not in VIEWS


@pytest.mark.slow  # 200 replicates of three laws
def test_the_view_finds_the_best_weights_of_a_table(
    page: Opener, said: Callable[[AppTest], str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "mixtures.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["weight_code", "weight_web", "loss_code", "loss_web"])
        for mixture in mixture_design(16, {"code": 1.0, "web": 1.0}).mixtures:
            h = np.array([mixture["code"], mixture["web"]])
            writer.writerow([*h, *(1.5 + np.exp(-0.3 - 2 * h) + rng.normal(0, 1e-3, 2))])
    test = page(tmp_path, path, page=MIXTURE)
    assert not test.exception
    assert test.header[0].value == MIXTURE
    assert "Train on code 50 %, web 50 %" in said(test)
    assert "loss at the best weights" in test.dataframe[0].value.columns
    wrong = page(tmp_path, path, page=MIXTURE, mix_target="nope")
    assert not wrong.exception
    assert "an evaluation set of the runs: code, web" in said(wrong)
