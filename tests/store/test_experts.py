"""Runs of mixtures of experts: their columns, and which N a fit takes."""

from dataclasses import replace

import numpy as np
import pytest

from scalelab.cli.main import main
from scalelab.records.run_dir import RunDir
from scalelab.store.collect import collect
from scalelab.store.live import open_snapshot
from scalelab.store.read_options import ReadOptions
from scalelab.store.results import read_results
from scalelab.theory.accounting import count_params
from tests.store.conftest import BASE

DENSE = BASE.shape
MIXTURE = replace(DENSE, d_ff=32, n_experts=16, n_active_experts=4, d_shared_expert=64)


@pytest.fixture(scope="module")
def results(maker, tmp_path_factory):
    """Return a results folder with a dense run and a mixture of experts; tests only read it."""
    make = maker(tmp_path_factory.mktemp("results"))
    runs = []
    for shape in (DENSE, MIXTURE):
        spec = replace(BASE, shape=shape)
        run = RunDir(make.path / "runs" / spec.run_id)
        run.write_spec(spec)
        make.finish(make.attempt(run))
        runs.append(run)
    make.sweep("both", runs)
    make.sweep("dense", runs[:1])
    collect(make.path)
    return make.path


def test_the_columns_are_those_that_the_laws_of_mixtures_ask_for(results):
    """A dense model is one expert of granularity 1; 128 = 8/3 x 48 is four times 32."""
    columns = "n_experts, n_active_experts, granularity, d_shared_expert, n_params_active, density"
    with open_snapshot(results) as connection:
        dense, mixture = connection.execute(
            f"SELECT {columns} FROM runs JOIN sweeps USING (run_id) WHERE sweep = 'both' "
            "ORDER BY position"
        ).fetchall()
    counts = count_params(MIXTURE).by_convention()
    assert dense == (1, 1, 1.0, 0, count_params(DENSE).total, 1.0)
    assert mixture[:5] == (16, 4, 4.0, 64, counts["active"])
    assert mixture[5] == pytest.approx(counts["active"] / counts["chinchilla"])


def test_a_fit_takes_the_active_parameters_where_runs_have_experts(results):
    read = read_results(results, "both", ReadOptions())
    expected = [count_params(shape).by_convention()["active"] for shape in (DENSE, MIXTURE)]
    np.testing.assert_array_equal(read.observations.n_params, expected)
    assert read.observations.param_convention == "active"
    np.testing.assert_array_equal(read.observations.extra["n_experts"], [1, 16])
    assert read_results(results, "dense", ReadOptions()).observations.param_convention == (
        "chinchilla"
    )


def test_a_law_without_experts_warns_of_a_mixture_of_them(results):
    note = read_results(results, "both", ReadOptions()).notes["mixed_runs"]
    assert "n_experts (1, 16)" in note
    of_law = ReadOptions(law_columns=("n_params", "n_experts"))
    assert "mixed_runs" not in read_results(results, "both", of_law).notes
    one = ReadOptions(where="n_experts = '16'")
    assert "mixed_runs" not in read_results(results, "both", one).notes


def test_an_option_says_which_parameters_a_fit_takes(results, capsys):
    words = ["fit", "--results", str(results), "--sweep", "both", "--json", "--bootstrap", "0"]
    for convention in ("chinchilla", "active", "kaplan"):
        main([*words, "--param-convention", convention])
        assert f'"param_convention": "{convention}"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--param-convention", "activ"], "Did you mean active?"),
        (["--param-convention", "active", "--map", "n_params=n_params_kaplan"], "one of them"),
    ],
)
def test_a_wrong_convention_is_refused(results, capsys, words, message):
    assert main(["fit", "--results", str(results), "--sweep", "both", *words]) == 2
    assert message in capsys.readouterr().err
