"""Tables that are given key by key with a repeated option, such as ``--sbatch KEY=VALUE``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from scalelab.sweep.mix_table import split_named
from scalelab.sweep.option import Option
from scalelab.sweep.site_options import split_pairs


def flag_table(option: Option, pairs: Iterable[str]) -> dict[str, Any]:
    """Return the content of the table that a repeated option gives.

    Raises
    ------
    UsageError
        If an item has no name or no value.
    """
    if option.metavar == "<key=value>":
        return dict(split_pairs(pairs))
    named = split_named(pairs, str(option.flag), f"{option.flag} {option.example}")
    if option.metavar == "<name=path>":
        # Keeps the other keys that a sweep file has for the same name.
        return {name: {"paths": paths} for name, paths in named.items()}
    return dict(named)
