"""The reference optima of public tables, from the command line."""

import csv
import json
from pathlib import Path

import pytest

REFERENCE = Path(__file__).parents[1] / "golden" / "reference_optima.csv"


def reference_rows():
    with REFERENCE.open() as stream:
        return list(csv.DictReader(stream))


def rows_to_try():
    """Return all rows; `make test` takes the first of each table, objective and column.

    `tests/fit/test_reference_optima.py` reaches all 42 optima there, by the solver that the command
    calls; this file adds that the options of the command reach it.
    """
    tried = set()
    for row in reference_rows():
        names = {row["dataset"], row["n_column"]}
        names.add((row["residual"], row["loss"], row["delta"]))
        yield pytest.param(row, id=name_of(row), marks=[pytest.mark.slow] if names <= tried else [])
        tried |= names


def name_of(row):
    return "-".join(
        str(part)
        for part in (row["dataset"], row["n"], row["n_column"], row["residual"], row["loss"])
        + ((row["delta"],) if row["delta"] else ())
    )


def test_the_reference_has_its_42_rows():
    assert len(reference_rows()) == 42


@pytest.mark.parametrize("row", list(rows_to_try()))
def test_the_reference_optima_are_reached_from_the_command_line(run, tables, row):
    words = [
        "fit",
        "--from",
        tables / row["file"],
        "--bootstrap",
        0,
        "--json",
        "--forecaster",
        "law",
    ]
    words += ["--residual", row["residual"], "--loss", row["loss"]]
    if row["where_sql"]:
        words += ["--where", row["where_sql"]]
    if row["delta"]:
        words += ["--delta", row["delta"]]
    if row["n_column"] != "n_params":
        words += ["--map", f"n_params={row['n_column']}"]
    runs_to_zero = "E runs to 0" in row["note"]
    out, _ = run(*words, code=4 if runs_to_zero else 0)
    found = json.loads(out)
    assert found["n_rows"] == int(row["n"])
    assert found["objective"]["value"] <= float(row["objective_sum"]) * (1 + 1e-6)
    # A lower value than the reference's own digits would be another objective.
    assert found["objective"]["value"] >= float(row["objective_sum"]) * (1 - 1e-9)
    if runs_to_zero:
        assert found["status"] == found["law_status"] == "not_identified"
        assert found["predictions"] == []
    else:
        assert not row["note"]
        for name in ("A", "B", "E", "alpha", "beta"):
            assert found["params"][name]["value"] == pytest.approx(float(row[name]), rel=1e-4)
        assert found["derived"]["a"]["value"] == pytest.approx(float(row["a"]), rel=1e-4)


def test_the_optimum_at_chinchillas_compute(run, tables):
    """N_opt and D_opt of the published table's row 4, at 5.76e23 FLOP."""
    words = ["--from", tables / "chinchilla" / "data.csv"]
    words += ["--where", "excluded_besiroglu=0", "--predict", "C=5.76e23", "--bootstrap", 0]
    words += ["--forecaster", "law"]
    out, _ = run("fit", *words, "--json")
    (found,) = json.loads(out)["predictions"]
    assert found["n_params"] == pytest.approx(73.19e9, rel=1e-4)
    assert found["n_tokens"] == pytest.approx(1.3116e12, rel=1e-4)
    assert found["n_tokens"] / found["n_params"] == pytest.approx(17.9, abs=0.05)
