"""Run folders into DuckDB: schema, collector, snapshot, import and export."""
