"""``scalelab tables``: the public tables of the package."""

from __future__ import annotations

from scalelab.cli.options import JsonOption
from scalelab.cli.output import console, emit_json
from scalelab.errors import EXIT_OK


def tables(as_json: JsonOption = False) -> int:
    """List the public tables of runs in the package.

    Open one with --from public:NAME.

    Example: scalelab fit --from public:chinchilla --predict C=1e24
    """
    from dataclasses import asdict

    from rich.table import Table

    from scalelab.store.public_tables import list_public_tables

    found = list_public_tables()
    if as_json:
        emit_json({"schema": 1, "command": "tables", "tables": [asdict(table) for table in found]})
        return EXIT_OK
    out = Table(box=None, pad_edge=False)
    out.add_column("name", no_wrap=True)
    for heading in ("rows", "runs", "licence"):
        out.add_column(heading)
    for table in found:
        out.add_row(table.name, f"{table.rows:,}", table.title, table.licence)
    console().print(out)
    console().print("Open one with: scalelab fit --from public:chinchilla", soft_wrap=True)
    return EXIT_OK
