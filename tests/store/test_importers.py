"""An import is complete, with its rejects, or absent."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from scalelab.errors import DataError, UsageError
from scalelab.store import importers
from scalelab.store.collect import collect
from scalelab.store.importers import import_table
from scalelab.store.live import open_snapshot
from scalelab.store.read_options import ReadOptions

TABLE = """\
params,tokens,val_loss,recipe
1.3e6,2.1e7,3.52,a
1.3e6,,3.41,b
-5,2.1e7,3.33,c
2.6e6,4.2e7,oops,d
2.6e6,4.2e7,nan,e
2.6e6,4.2e7,3.14,"f, g"
"""
OPTIONS = ReadOptions(mapping={"n_params": "params", "n_tokens": "tokens", "loss_nats": "val_loss"})


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "their runs.v2.csv"
    path.write_text(TABLE)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_good_rows_are_kept_and_bad_ones_rejected_with_line_and_reason(make, table):
    report = import_table(make.path, table, OPTIONS)
    assert (report.name, report.n_rows, report.n_rejects) == ("their-runs", 2, 4)
    assert names(report.folder) == ["data.parquet", "mapping.json", "rejects.csv"]
    rows = pq.read_table(report.folder / "data.parquet").to_pylist()
    assert [(r["line"], r["n_params"], r["loss_nats"], r["recipe"]) for r in rows] == [
        (2, 1.3e6, 3.52, "a"),
        (7, 2.6e6, 3.14, "f, g"),
    ]
    with (report.folder / "rejects.csv").open() as stream:
        rejects = list(csv.DictReader(stream))
    assert [(r["line"], r["column"]) for r in rejects] == [
        ("3", "n_tokens"),
        ("4", "n_params"),
        ("5", "loss_nats"),
        ("6", "loss_nats"),
    ]
    assert all(reject["reason"] for reject in rejects)
    about = json.loads((report.folder / "mapping.json").read_text())
    assert about["columns"]["loss_nats"] == "val_loss"
    assert about["source"] == str(table)


def test_it_is_collected_with_its_other_columns(make, table):
    import_table(make.path, table, OPTIONS, name="theirs")
    collect(make.path)
    with open_snapshot(make.path) as connection:
        found = connection.execute(
            'SELECT "import", line, n_params, flops, cluster, extra, flop_convention '
            "FROM imports ORDER BY line"
        ).fetchall()
    assert found == [
        ("theirs", 2, 1.3e6, 6 * 1.3e6 * 2.1e7, "theirs:2", '{"recipe": "a"}', "6nd"),
        ("theirs", 7, 2.6e6, 6 * 2.6e6 * 4.2e7, "theirs:7", '{"recipe": "f, g"}', "6nd"),
    ]


def test_the_same_table_again_changes_nothing(make, table):
    first = import_table(make.path, table, OPTIONS)
    stamp = (first.folder / "data.parquet").stat().st_mtime_ns
    again = import_table(make.path, table, OPTIONS)
    assert (first.is_new, again.is_new) == (True, False)
    assert (again.n_rows, again.n_rejects) == (2, 4)
    assert (first.folder / "data.parquet").stat().st_mtime_ns == stamp


def test_another_table_needs_another_name_or_replace(make, table):
    import_table(make.path, table, OPTIONS)
    table.write_text(TABLE + "5.2e6,8.4e7,2.9,h\n")
    with pytest.raises(UsageError, match="another table or mapping"):
        import_table(make.path, table, OPTIONS)
    assert import_table(make.path, table, OPTIONS, name="second").n_rows == 3
    assert import_table(make.path, table, OPTIONS, replaces=True).n_rows == 3
    assert names(make.path / "imports") == ["second", "their-runs"]


def test_the_same_table_with_another_mapping_is_another_import(make, table):
    import_table(make.path, table, OPTIONS)
    other = ReadOptions(mapping=OPTIONS.mapping, where="recipe = 'a'")
    with pytest.raises(UsageError):
        import_table(make.path, table, other)
    assert import_table(make.path, table, other, name="a").n_rows == 1


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "", "..", "a'b", "a\nb", "$(touch x)", "-rf", ".hidden"]
)
def test_a_name_cannot_leave_the_folder(make, table, name):
    with pytest.raises(UsageError):
        import_table(make.path, table, OPTIONS, name=name)
    assert list(make.path.iterdir()) == []


def test_the_name_of_a_sweep_is_refused(make, table):
    make.sweep("demo", [make.run()])
    with pytest.raises(UsageError, match="name of a sweep"):
        import_table(make.path, table, OPTIONS, name="demo")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("params,tokens\n1,2\n", "val_loss"),
        ("params,tokens,val_loss\n", "column|row"),
        ("params,tokens,val_loss\n0,1,2\n-1,2,3\n", "without a usable row"),
        ("", "which is empty"),
    ],
    ids=["missing column", "no rows", "only bad rows", "empty"],
)
def test_a_table_without_a_usable_row_writes_nothing(make, table, text, match):
    table.write_text(text)
    with pytest.raises((DataError, UsageError), match=match):
        import_table(make.path, table, OPTIONS)
    assert list(make.path.iterdir()) == []


def test_a_missing_file_is_an_error(make, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        import_table(make.path, tmp_path / "none.csv", OPTIONS)


def test_a_failed_write_leaves_no_partial_import(make, table, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importers.json, "dumps", fail)
    with pytest.raises(DataError, match="No space"):
        import_table(make.path, table, OPTIONS)
    assert names(make.path / "imports") == []
    monkeypatch.undo()
    import_table(make.path, table, OPTIONS)
    table.write_text(TABLE.replace("3.52", "3.53"))
    monkeypatch.setattr(importers.json, "dumps", fail)
    with pytest.raises(DataError, match="No space"):
        import_table(make.path, table, OPTIONS, replaces=True)
    rows = pq.read_table(make.path / "imports" / "their-runs" / "data.parquet")
    assert rows["loss_nats"][0].as_py() == 3.52


def test_the_folder_appears_with_all_its_files_at_once(make, table, monkeypatch):
    """A killed import leaves a hidden folder or a complete one."""
    renamed, rename = [], Path.rename

    def look_and_rename(path, target):
        renamed.append((path.name[0], names(path), target.exists()))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", look_and_rename)
    import_table(make.path, table, OPTIONS)
    assert renamed == [(".", ["data.parquet", "mapping.json", "rejects.csv"], False)]


def test_columns_of_the_file_never_hide_ours(make, table):
    table.write_text("params,tokens,val_loss,line,budget_flops\n1e6,2e7,3.5,77,5\n")
    report = import_table(make.path, table, OPTIONS)
    (row,) = pq.read_table(report.folder / "data.parquet").to_pylist()
    assert (row["line"], row["file_line"]) == (2, 77)


@pytest.mark.parametrize("option", ["param_convention", "flop_convention"])
def test_an_unknown_convention_is_refused_before_anything_is_written(make, table, option):
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} 'banana'"):
        import_table(make.path, table, replace(OPTIONS, **{option: "banana"}))
    assert not (make.path / "imports").exists()


def test_an_impossible_results_folder_is_an_error(table):
    with pytest.raises(DataError, match="/proc/none/imports, where an import cannot be written"):
        import_table(Path("/proc/none"), table, OPTIONS)
