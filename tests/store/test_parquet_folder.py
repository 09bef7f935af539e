"""A folder of Parquet files answers the queries of the results folder's tables."""

import duckdb
import pytest

from scalelab.cli.main import main
from scalelab.errors import UsageError
from scalelab.store import parquet_folder
from scalelab.store.collect import collect
from scalelab.store.live import open_snapshot
from scalelab.store.parquet_folder import ParquetReport, write_parquet
from scalelab.store.schema import TABLES

QUERIES = (
    *(f"SELECT * FROM {table.name} ORDER BY ALL" for table in TABLES),
    "SELECT s.sweep, count(*), min(loss_nats) FROM sweeps s JOIN runs USING (run_id) "
    "GROUP BY 1 ORDER BY 1",
)


@pytest.fixture
def results(make):
    runs = [make.done(seed, loss=2 + seed / 100) for seed in range(6)]
    make.sweep("b=c d", runs[:3], created_s=1.0)
    make.sweep("later", runs[2:5], created_s=2.0)
    collect(make.path)
    return make.path


def answers(folder, monkeypatch):
    monkeypatch.chdir(folder)
    connection = duckdb.connect()
    connection.execute((folder / "views.sql").read_text())
    return [connection.sql(query).fetchall() for query in QUERIES]


def test_the_same_queries_have_the_same_answers(results, tmp_path, monkeypatch):
    folder = tmp_path / "warehouse"
    assert write_parquet(results, folder) == ParquetReport(partitions=3, written=3)
    with open_snapshot(results) as connection:
        expected = [connection.sql(query).fetchall() for query in QUERIES]
    assert answers(folder, monkeypatch) == expected
    names = {path.name for path in (folder / "runs").iterdir()}
    assert names == {"sweep=b%3Dc%20d", "sweep=later", f"sweep={parquet_folder.NO_SWEEP}"}


def test_only_changed_partitions_are_written_again(results, make, tmp_path, monkeypatch):
    folder = tmp_path / "warehouse"
    write_parquet(results, folder)
    assert write_parquet(results, folder).written == 0
    make.sweep("third", [make.done(40), make.done(41)], created_s=3.0)
    collect(results)
    assert write_parquet(results, folder) == ParquetReport(partitions=4, written=1)
    with open_snapshot(results) as connection:
        expected = [connection.sql(query).fetchall() for query in QUERIES]
    assert answers(folder, monkeypatch) == expected


def test_a_folder_of_something_else_is_refused_and_kept(results, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("words")
    with pytest.raises(UsageError, match="holds something else"):
        write_parquet(results, folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_the_command_writes_parquet_and_nothing_else(results, tmp_path, capsys):
    assert main(["collect", "--to", "parquet", str(tmp_path / "w"), "--results", str(results)]) == 0
    assert "3 of 3 partitions written as Parquet" in capsys.readouterr().out
    assert main(["collect", "--to", "csv", str(tmp_path / "w"), "--results", str(results)]) == 2
    assert "--to parquet" in capsys.readouterr().err
