"""The options of a stored sweep as words of a command, so that further runs are like its own.

``spec.json`` has the options that determine the runs. Those of text, models and training that
differ from their defaults become flags; sizes and budgets do not, because further runs have others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scalelab.errors import ScalelabError
from scalelab.records.files import read_json
from scalelab.records.sweep_dir import Results
from scalelab.sweep.shape_rule import ALIGNED, ALIGNED_FROM_FLOPS, DEFAULT_RULE, FINE

FILE = "spec.json"
ALL_RUNS = ("allow_repeats",)
LARGER = 10.0
"""Budgets of further runs relative to the largest of the sweep, at most."""
ASPECT = "<aspect>"
"""Placeholder of an option of pairs, width:number."""
TABLES = ("data", "train", "model")
KNOWN = {"budgets", "kind", "n_params", "n_tokens", "sizes", "span", "tokens_per_param", *ALL_RUNS}


def sweep_words(results: Path, name: str) -> tuple[str, ...] | None:
    """Return the options of a sweep with which `scalelab sweep isoflop` plans runs like its own.

    Parameters
    ----------
    results : Path
        The results folder.
    name : str

    Returns
    -------
    tuple of str or None
        None if the specification is not there, or has options that no flag can give, such as
        several sources of text.
    """
    try:
        content = read_json(Results(results).sweep(name) / FILE)
    except ScalelabError:
        return None
    return None if not isinstance(content, Mapping) else option_words(content)


def option_words(content: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the options of a specification as words; None if a flag cannot give one of them.

    Parameters
    ----------
    content : Mapping
        As `scalelab.sweep.spec.SweepSpec.science` returns it.
    """
    from scalelab.sweep.option import options
    from scalelab.sweep.spec import SweepSpec

    if set(content) - KNOWN - set(TABLES):
        return None
    tables = {name: dict(content.get(name) or {}) for name in TABLES}
    # The default table of shapes depends on the largest budget, which further runs change.
    shapes = tables["model"].pop("shapes", DEFAULT_RULE.table)
    if not _is_usual(shapes, content.get("budgets") or [0.0, math.inf]):
        tables["model"]["shapes"] = shapes
    known = {each.path: each for each in options(SweepSpec) if each.flag is not None}
    values: dict[tuple[str, ...], Any] = {
        (key,): content[key] for key in ALL_RUNS if key in content
    }
    values |= {(name, key): value for name in TABLES for key, value in tables[name].items()}
    words: list[str] = []
    for path, value in values.items():
        if value == _default(path):
            continue
        option = known.get(path)
        if option is None or option.is_mapping or isinstance(value, Mapping):
            return None
        parts = value if isinstance(value, list) else [value]
        if option.metavar == ASPECT:
            parts = [":".join(map(_text, pair)) for pair in parts]
        if any(isinstance(part, (list, Mapping)) for part in parts):
            return None
        flag = str(option.flag)
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
        elif option.is_list:
            words += [word for part in parts for word in (flag, _text(part))]
        else:
            words += [flag, ",".join(map(_text, parts))]
    return tuple(words)


def _is_usual(shapes: str, budgets: Sequence[float]) -> bool:
    """Return whether a sweep of these budgets, or ten times larger ones, has these shapes."""
    if shapes == ALIGNED:
        return min(budgets) >= ALIGNED_FROM_FLOPS
    return shapes == FINE and LARGER * max(budgets) < ALIGNED_FROM_FLOPS


def _default(path: tuple[str, ...]) -> Any:
    """Return the default of an option, as a specification stores it."""
    from scalelab.sweep.spec import SweepSpec

    table: Any = SweepSpec
    for key in path[:-1]:
        table = type(table.model_fields[key].default)
    default = table.model_fields[path[-1]].default if path[-1] in table.model_fields else None
    return list(default) if isinstance(default, tuple) else default


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
