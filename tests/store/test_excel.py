"""Excel sheets of runs, where openpyxl is installed; without it, the error says what to install."""

import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scalelab import api
from scalelab.cli.main import main
from scalelab.errors import DataError

ROWS = pd.DataFrame(
    {
        "Model size": ["20M", "100M", "500M", "20M"],
        "Tokens": [400_000_000, 2_000_000_000, 10_000_000_000, 2_000_000_000],
        "val_loss": [3.9, "3.42", "**3.05**", "n/a"],
        "lr": [3e-3, 1e-3, 5e-4, 3e-3],
    }
)


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    pytest.importorskip("openpyxl")
    path = tmp_path / "runs.xlsx"
    with pd.ExcelWriter(path, engine="openpyxl") as book:
        ROWS.to_excel(book, sheet_name="runs", index=False)
        pd.DataFrame({"note": ["another sheet"]}).to_excel(book, sheet_name="notes", index=False)
    return path


def test_a_sheet_as_people_write_it_is_read(sheet: Path) -> None:
    frame = api.load(sheet)
    np.testing.assert_allclose(frame["n_params"], [2e7, 1e8, 5e8])
    np.testing.assert_allclose(frame["n_tokens"], [4e8, 2e9, 1e10])
    np.testing.assert_allclose(frame["loss_nats"], [3.9, 3.42, 3.05])


def test_a_sheet_is_imported_and_exported_and_read_again(sheet: Path, tmp_path: Path) -> None:
    results = ["--results", str(tmp_path / "results")]
    assert main(["import", str(sheet), "--name", "sheet", *results]) == 0
    out = tmp_path / "out.xlsx"
    assert main(["export", "--table", "imports", "--out", str(out), *results]) == 0
    frame = api.load(out)
    np.testing.assert_array_equal(frame["loss_nats"], [3.9, 3.42, 3.05])
    assert len(api.load(out, where="n_params < 2e8", reading=api.Reading(loss_unit="nats"))) == 2


def test_a_damaged_sheet_is_an_error(sheet: Path) -> None:
    content = sheet.read_bytes()
    for damaged in (content[:200], b"", b"PK\x03\x04" + bytes(500), content[:-300]):
        sheet.write_bytes(damaged)
        with pytest.raises(DataError):
            api.load(sheet)


def test_without_openpyxl_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with zipfile.ZipFile(tmp_path / "runs.xlsx", "w") as book:
        book.writestr("xl/workbook.xml", "<workbook/>")
    with pytest.raises(DataError, match="pip install openpyxl"):
        api.load(tmp_path / "runs.xlsx")
