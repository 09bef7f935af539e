"""Values as Arrow columns: the same as pyarrow makes, without its import of pandas."""

import subprocess
import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalelab.store.arrow_columns import arrow_array, arrow_columns
from scalelab.store.table_types import BOOL, INT, REAL, TEXT, Column, Table

TYPES = {INT: pa.int64(), REAL: pa.float64(), BOOL: pa.bool_(), TEXT: pa.string()}
VALUES = {
    INT: st.integers(-(2**63), 2**63 - 1),
    REAL: st.floats() | st.integers(-(2**53), 2**53),
    BOOL: st.booleans(),
    TEXT: st.text(st.characters(exclude_categories=["Cs"])),
}


@given(st.data())
def test_columns_are_those_of_pyarrow(data):
    kind = data.draw(st.sampled_from(sorted(TYPES)))
    values = data.draw(st.lists(st.none() | VALUES[kind]))
    found, expected = arrow_array(values, kind), pa.array(values, TYPES[kind])
    found.validate(full=True)
    assert found.type == expected.type
    assert found.null_count == expected.null_count
    assert str(found.to_pylist()) == str(expected.to_pylist())  # NaN is not equal to itself


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (INT, [1, "2", 2**63, 2.0, True, None], [1, 2, None, 2, 1, None]),
        (INT, [1, 2**70], [1, None]),
        (REAL, [1, "x", 0.5, 2**60], [1.0, None, 0.5, float(2**60)]),
        (BOOL, [True, 1, None], [True, None, None]),
        (TEXT, ["a", 1, None], ["a", "1", None]),
    ],
)
def test_a_value_of_another_type_is_converted_or_null(kind, values, expected):
    table = Table("t", "a row", (), (Column("c", kind, "", "a column"),))
    assert arrow_columns(table, {"c": values})["c"].to_pylist() == expected


def test_a_collection_does_not_load_pandas(make):
    make.done()
    code = (
        "import sys\n"
        "from scalelab.cli.main import main\n"
        f"assert main(['collect', '--results', {str(make.path)!r}]) == 0\n"
        "assert not {'pandas', 'scipy', 'torch'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
