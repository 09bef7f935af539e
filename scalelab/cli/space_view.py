"""The output of ``scalelab doctor --disk``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.cli.output import console, runnable, warn
from scalelab.units import format_bytes

if TYPE_CHECKING:
    from scalelab.records.space import DiskUsage


def print_space(usage: DiskUsage, results: Path) -> None:
    """Print what takes space, and what could go with the command that removes it."""
    from rich.table import Table

    from scalelab.cli.layout import Fitting

    out = console()
    out.print(f"{results} takes {format_bytes(usage.n_bytes)} on the disk.", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("what")
    for kind, n_bytes in usage.kinds.items():
        table.add_row(format_bytes(n_bytes), kind)
    out.print(Fitting(table))
    for problem in usage.problems:
        warn(f"not measured: {problem}")
    if not usage.removable:
        out.print("\nNothing could go.")
        return
    out.print("\nWhat could go, with the command that removes it (each asks first):")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("frees", justify="right", no_wrap=True)
    table.add_column("what")
    table.add_column("command", overflow="fold")
    for line in usage.removable:
        table.add_row(format_bytes(line.n_bytes), line.what, runnable(f"`{line.command}`")[1:-1])
    out.print(Fitting(table))
