"""What is taken out is what is in the tables, to the last digit."""

import importlib.util
import io
import json
import shutil
from pathlib import Path

import duckdb
import pytest

from scalelab.errors import DataError, UsageError
from scalelab.store.collect import collect
from scalelab.store.export import export_table
from scalelab.store.importers import import_table
from scalelab.store.live import open_snapshot
from scalelab.store.read_options import ReadOptions
from scalelab.store.schema import TABLES


@pytest.fixture(scope="module")
def results(maker, tmp_path_factory):
    """Return one collected results folder for all tests: an export only reads it."""
    make = maker(tmp_path_factory.mktemp("results"))
    runs = [make.done(seed, loss=1.0 + 1 / (seed + 3)) for seed in range(4)]
    make.sweep("s", runs[2::-1], [3e12, 1e12, 2e12])
    make.attempt(make.run(seed=9))
    collect(make.path)
    return make.path


@pytest.mark.parametrize("table", [t.name for t in TABLES])
@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_every_table_comes_back_as_it_was(results, tmp_path, table, format):
    path = tmp_path / f"out.{format}"
    n_rows = export_table(results, table, format, path)
    with open_snapshot(results) as connection:
        expected = connection.execute(f"FROM {table}").fetchall()
        types = connection.execute(f"SELECT * FROM {table} LIMIT 0").description
    with duckdb.connect() as connection:
        if format == "csv":
            connection.execute(
                "CREATE TABLE back AS FROM read_csv($1, header = true, all_varchar = true)",
                [str(path)],
            )
            columns = ", ".join(f'CAST("{name}" AS {kind})' for name, kind, *_ in types)
            found = connection.execute(f"SELECT {columns} FROM back").fetchall()
        else:
            found = connection.execute("FROM read_parquet($1)", [str(path)]).fetchall()
    assert n_rows == len(expected)
    assert sorted(map(repr, found)) == sorted(map(repr, expected))
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [path.name]


def test_a_sweeps_runs_come_in_its_order_with_their_budgets(results):
    stream = io.BytesIO()
    assert export_table(results, "runs", "csv", stream, sweep="s") == 3
    header, *lines = stream.getvalue().decode().splitlines()
    columns = header.split(",")
    assert columns[:3] == ["sweep", "position", "budget_flops"]
    found = [dict(zip(columns, line.split(","), strict=True)) for line in lines]
    assert [(row["position"], float(row["budget_flops"]), row["seed"]) for row in found] == [
        ("1", 3e12, "2"),
        ("2", 1e12, "1"),
        ("3", 2e12, "0"),
    ]


def test_only_the_sweeps_rows_of_the_other_tables(results):
    assert export_table(results, "metrics", "csv", io.BytesIO(), sweep="s") == 12
    assert export_table(results, "sweeps", "csv", io.BytesIO(), sweep="s") == 3


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (UsageError, {"table": "nope"}),
        (UsageError, {"format": "orc"}),
        (DataError, {"table": "imports", "sweep": "s"}),
        (DataError, {"sweep": "t"}),
        (DataError, {"sweep": "' OR 1=1 --"}),
    ],
)
def test_what_there_is_not_is_a_clear_error(results, error, arguments):
    arguments = {"table": "runs", "format": "csv", **arguments}
    with pytest.raises(error):
        export_table(results, target=io.BytesIO(), **arguments)


def test_a_file_is_whole_or_absent(results, tmp_path):
    with pytest.raises(UsageError, match="folder does not exist"):
        export_table(results, "runs", "csv", tmp_path / "none" / "x.csv")
    path = tmp_path / "x.csv"
    path.write_text("old")
    with pytest.raises(UsageError):
        export_table(results, "nope", "csv", path)
    assert path.read_text() == "old"


def test_the_rows_of_an_import_come_by_its_name_and_are_pointed_to(results, tmp_path):
    results = shutil.copytree(results, tmp_path / "results")
    for name, loss in (("theirs", 3), ("others", 2)):
        table = tmp_path / f"{name}.csv"
        table.write_text(f"n_params,n_tokens,loss\n1e6,2e7,{loss}\n2e6,2e7,{loss}\n")
        import_table(results, table, ReadOptions())
    collect(results)
    stream = io.BytesIO()
    assert export_table(results, "imports", "csv", stream, sweep="theirs") == 2
    assert b"others" not in stream.getvalue()
    with pytest.raises(DataError, match="'theirs', which is an import") as caught:
        export_table(results, "runs", "csv", io.BytesIO(), sweep="theirs")
    assert "--table imports" in caught.value.do


def test_the_ending_of_the_file_says_the_format_and_is_not_contradicted(results, tmp_path):
    export_table(results, "runs", None, tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").read_bytes()[:4] == b"PAR1"
    export_table(results, "runs", None, tmp_path / "x.txt")
    assert (tmp_path / "x.txt").read_text().startswith("run_id,")
    with pytest.raises(UsageError, match="--format csv"):
        export_table(results, "runs", "csv", tmp_path / "y.parquet")


@pytest.mark.parametrize(
    ("ending", "read"),
    [
        ("csv.gz", "read_csv('{}', compression = 'gzip')"),
        ("csv.zst", "read_csv('{}', compression = 'zstd')"),
        ("tsv", r"read_csv('{}', delim = '\t', header = true)"),
        ("tsv.gz", r"read_csv('{}', delim = '\t', header = true, compression = 'gzip')"),
        ("json", "read_json('{}', format = 'array')"),
        ("jsonl", "read_json('{}', format = 'newline_delimited')"),
        ("ndjson", "read_json('{}', format = 'newline_delimited')"),
        ("jsonl.gz", "read_json('{}', format = 'newline_delimited', compression = 'gzip')"),
        ("pq", "read_parquet('{}')"),
    ],
)
def test_a_file_is_written_in_the_format_of_its_ending(results, tmp_path, ending, read):
    path = tmp_path / f"x.{ending}"
    assert export_table(results, "runs", None, path, sweep="s") == 3
    with duckdb.connect() as connection:
        query = f"SELECT position, loss_nats FROM {read.format(path)} ORDER BY position"
        found = connection.execute(query).fetchall()
    with open_snapshot(results) as connection:
        expected = connection.execute(
            "SELECT position, loss_nats FROM sweeps JOIN runs USING (run_id) ORDER BY position"
        ).fetchall()
    assert found == expected


def test_json_has_null_where_a_number_is_not_finite(tmp_path):
    table = tmp_path / "theirs.csv"
    table.write_text("n_params,n_tokens,loss,lr\n1e6,2e7,3,nan\n2e6,2e7,3,inf\n")
    import_table(tmp_path, table, ReadOptions())
    collect(tmp_path)
    export_table(tmp_path, "imports", None, tmp_path / "x.json")

    def refuse(word):
        raise AssertionError(word)

    rows = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert [row["n_params"] for row in rows] == [1e6, 2e6]


@pytest.mark.parametrize("ending", ["feather", "csv.bz2", "csv.zip", "parquet.gz", "h5"])
def test_an_ending_that_is_not_written_is_refused(results, tmp_path, ending):
    with pytest.raises(UsageError, match="--out"):
        export_table(results, "runs", None, tmp_path / f"x.{ending}")
    assert not (tmp_path / f"x.{ending}").exists()


def test_excel_needs_its_library(results, tmp_path, monkeypatch):
    path = tmp_path / "x.xlsx"
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UsageError, match="needs the package openpyxl"):
            export_table(results, "runs", None, path)
        assert list(tmp_path.glob("*.xlsx")) == []
    pytest.importorskip("openpyxl")
    export_table(results, "runs", None, path)
    assert path.read_bytes()[:4] == b"PK\x03\x04"


def test_a_place_that_cannot_be_written_is_named(results, tmp_path):
    with pytest.raises(UsageError, match="a folder"):
        export_table(results, "runs", "csv", tmp_path)
    with pytest.raises(DataError, match="--out /proc/x, which cannot be written"):
        export_table(results, "runs", "csv", Path("/proc/x"))
