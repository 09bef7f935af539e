"""Runs that `--exclude` leaves out: by name, by line, and what a wrong name says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scalelab.errors import UsageError
from scalelab.records.names import names_of_text, text_of_names
from scalelab.store.read_options import ReadOptions
from scalelab.store.reading import Reading
from scalelab.store.table_read import TableRead
from scalelab.store.tables import read_table

ROWS = "".join(f"{i * 1e6:g},{i * 2e7:g},{4 - i / 10}\n" for i in range(1, 7))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.csv"
    path.write_text(f"n_params,n_tokens,loss_nats\n{ROWS}")
    return path


@pytest.fixture
def named(tmp_path: Path) -> Path:
    path = tmp_path / "named.csv"
    rows = [f"run-{i // 2},{row}" for i, row in enumerate(ROWS.splitlines())]
    path.write_text("\n".join(["run,n_params,n_tokens,loss_nats", *rows]))
    return path


def without(path: Path, names: str) -> TableRead:
    return read_table(path, ReadOptions(reading=Reading(exclude=names_of_text(names))))


def test_a_line_is_left_out_and_said(plain: Path) -> None:
    found = without(plain, "3,7")
    assert found.lines.tolist() == [2, 4, 5, 6]
    assert found.observations.names is not None
    assert found.observations.names.tolist() == [2, 4, 5, 6]
    assert found.observations.source == "plain.csv without 2 excluded rows"
    assert "--exclude 3,7" in found.notes["excluded_runs"]


def test_a_name_leaves_out_all_rows_of_its_run_and_lines_still_work(named: Path) -> None:
    found = without(named, "run-1,2")
    assert found.lines.tolist() == [3, 6, 7]
    assert found.observations.names is not None
    assert found.observations.names.tolist() == ["run-0", "run-2", "run-2"]
    assert found.observations.take(np.array([2])).names == ["run-2"]


def test_a_name_that_is_not_there_is_refused_with_the_likely_one(named: Path, plain: Path) -> None:
    with pytest.raises(UsageError) as caught:
        without(named, "run-0,runn-1")
    assert "runn-1" in caught.value.given
    assert "Did you mean run-1?" in caught.value.do
    with pytest.raises(UsageError, match="a line of a row"):
        without(plain, "1")
    with pytest.raises(UsageError, match="at least one row"):
        without(plain, "2,3,4,5,6,7")


def test_a_rejected_row_does_not_move_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(f"n_params,n_tokens,loss_nats\nx,1,2\n{ROWS}")
    found = without(path, "4")
    assert found.lines.tolist() == [3, 5, 6, 7, 8]
    assert len(found.rejects) == 1


def test_names_with_commas_survive_the_command_line() -> None:
    names = ("a,b", 'say "x"', "12")
    assert names_of_text(text_of_names(names)) == names
    assert Reading(exclude=names).words() == ["--exclude", text_of_names(names)]
    with pytest.raises(UsageError):
        names_of_text("a,,b")
