"""Tables, comments and documentation are generated from one list of columns."""

from dataclasses import fields
from pathlib import Path

import duckdb
import pytest

from scalelab.records.types import MetricRow
from scalelab.store import schema
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import FLOP_CONVENTIONS, PARAM_CONVENTIONS
from scalelab.theory.shape import ModelShape

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "tables.md"


@pytest.fixture
def database():
    with duckdb.connect() as connection:
        connection.execute(schema.create_statements())
        yield connection


@pytest.mark.parametrize("table", schema.TABLES, ids=lambda table: table.name)
def test_the_database_has_exactly_these_columns(database, table):
    found = database.execute(f"DESCRIBE {table.name}").fetchall()
    assert [(name, kind) for name, kind, *_ in found] == [(c.name, c.type) for c in table.columns]
    assert set(table.key) <= set(table.column_names())


def test_every_column_carries_its_meaning(database):
    found = database.execute(
        "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE schema_name = 'main'"
    ).fetchall()
    comments = {(table, column): comment for table, column, comment in found}
    for table in schema.TABLES:
        for column in table.columns:
            assert comments[table.name, column.name].startswith(column.meaning)


def test_the_documentation_is_up_to_date():
    assert DOCS.read_text() == schema.as_markdown(), (
        "stale: python -m scalelab.store.schema > docs/reference/tables.md"
    )


def test_every_field_of_the_spec_has_a_column():
    """Fails if a field of the spec, the shape or a metric row has no column."""
    runs = set(schema.RUNS.column_names())
    science = {f.name for cls in (RunSpec, ModelShape) for f in fields(cls)} - {"shape"}
    assert science <= runs
    assert {f"n_params_{name}" for name in PARAM_CONVENTIONS} <= runs
    assert {f"flops_{name}" for name in FLOP_CONVENTIONS} <= runs
    assert {f.name for f in fields(MetricRow)} <= set(schema.ATTEMPT_METRICS.column_names())


def test_every_relevant_field_of_the_execution_has_a_column():
    unimportant = {"checkpoint_interval_s", "metrics_interval_steps", "keeps_weights"}
    unimportant |= {"program"}  # how it is started; its command is a column of runs
    renamed = {"step": "step_mode"}
    names = {renamed.get(f.name, f.name) for f in fields(ExecutionSpec)} - unimportant
    for table in (schema.RUNS, schema.ATTEMPTS):
        assert names - set(table.column_names()) == set()
