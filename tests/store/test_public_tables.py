"""The public tables match their index and open by name."""

import csv
import json
from pathlib import Path

import pytest

from scalelab import api
from scalelab.cli.main import main
from scalelab.errors import DataError
from scalelab.store.public_tables import FOLDER, list_public_tables
from scalelab.store.table_files import open_file

TABLES = list_public_tables()


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_table_has_the_rows_source_and_licence_that_the_index_names(table):
    with (FOLDER / table.file).open(newline="") as lines:
        assert len(list(csv.DictReader(lines))) == table.rows
    readme = (FOLDER / table.file).parent / "README.md"
    assert table.source.split(" @ ")[0].split(",")[0] in readme.read_text(encoding="utf-8")
    assert table.licence
    assert table.cite


def test_the_index_lists_every_file_of_the_folder():
    files = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.csv")}
    assert files == {table.file for table in TABLES}


def test_all_tables_together_are_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 3e6


def test_a_fit_opens_a_table_by_name():
    report = api.fit("public:chinchilla", where="excluded_besiroglu = 0")
    assert len(report.observations) == 240
    with open_file(Path("public:llama3")) as source:
        assert "n_tokens" in source.types


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(DataError, match="public:chinchilla"), open_file(Path("public:chinchila")):
        pass


@pytest.mark.parametrize("name", ["chinchilla", "chinchila"])
def test_a_name_without_its_prefix_suggests_the_table(name):
    with pytest.raises(DataError, match="Did you mean public:chinchilla"), open_file(Path(name)):
        pass


def test_the_command_lists_them(capsys):
    assert main(["tables"]) == 0
    assert "chinchilla" in capsys.readouterr().out
    assert main(["tables", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["tables"]
    assert [entry["name"] for entry in listed] == [table.name for table in TABLES]
