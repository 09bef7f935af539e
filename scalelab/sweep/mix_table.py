"""``[data.mix]``: named sources of text and their weights.

In a sweep file, a source is a path, a list of paths, or a table with its weight and how its files
are read. On the command line, ``--mix-source NAME=PATH`` names the sources and ``--mix-weight
NAME=SHARE`` their weights.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from scalelab.corpus.eval_text import HELD_OUT, SET_NAME
from scalelab.errors import UsageError, did_you_mean
from scalelab.sweep.option import Metavar
from scalelab.sweep.run_spec import WEIGHT_TOLERANCE

WEIGHT_DECIMALS = 3
"""Of weights in messages and of designed mixtures."""
EXAMPLE = "Write for example --mix-source code='src/**/*.py' --mix-source web=pages/."


class MixSource(BaseModel):
    """One source of a mixture.

    Attributes
    ----------
    paths : tuple of str
        Files, folders and globs.
    weight : float or None
        Share of the training tokens; None where a sweep over mixtures chooses it.
    field, column, format : str or None
        How the files are read; None for the values of ``[data]``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    paths: tuple[str, ...]
    weight: float | None = None
    field: str | None = None
    column: str | None = None
    format: str | None = None


def read_mix(value: Any) -> Any:
    """Return sources by name, of what a sweep file or the options have.

    Raises
    ------
    UsageError
        If a name, a path or a weight cannot be used.
    """
    pairs = [value] if isinstance(value, str) else value
    if isinstance(pairs, (list, tuple)):
        value = split_named(pairs, "data.mix", "code=src/")
    if not isinstance(value, Mapping):
        raise UsageError(f"data.mix = {value!r}", "a table of sources by name", EXAMPLE)
    found = {str(name): _source(str(name), value[name]) for name in value}
    if len(found) == 1:
        ((name, source),) = found.items()
        raise UsageError(
            f"a mixture of one source, {name}",
            "at least two sources",
            "Add a source, for example --mix-source other=PATH, or write --data "
            f"{source.paths[0]}.",
        )
    return found


def split_named(pairs: Iterable[Any], what: str, example: str) -> dict[str, list[str]]:
    """Return values by name, of ``NAME=VALUE`` texts; the same name may come again.

    Raises
    ------
    UsageError
        If a text has no name or no value.
    """
    found: dict[str, list[str]] = {}
    for pair in pairs:
        name, separator, value = str(pair).partition("=")
        if not (separator and name.strip() and value.strip()):
            raise UsageError(f"{what} {pair!r}", "NAME=VALUE", f"Write for example {example}.")
        found.setdefault(name.strip(), []).append(value.strip())
    return found


def with_weights(sources: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``[data.mix]`` with the weights of ``--mix-weight``.

    Raises
    ------
    UsageError
        If a name is not that of a source, or has two weights.
    """
    known: dict[str, MixSource] = read_mix(sources)
    for name, given in weights.items():
        if name not in known:
            names = ", ".join(known) or "none"
            raise UsageError(
                f"--mix-weight for {name!r}, which is no source of the mixture",
                f"the name of a source: {names}",
                f"{did_you_mean(name, known)}Name its text with --mix-source {name}=PATH.",
            )
        if isinstance(given, (list, tuple)) and len(given) != 1:
            raise UsageError(
                f"two weights of source {name}: {', '.join(map(str, given))}",
                "one weight for each source",
                f"Keep one --mix-weight {name}=..",
            )
        weight = given[0] if isinstance(given, (list, tuple)) else given
        content = {**known[name].model_dump(), "weight": weight}
        known[name] = _source(name, content)
    return known


def require_weights(sources: Mapping[str, MixSource]) -> None:
    """Raise UsageError unless the sources have weights that sum to 1."""
    without = [name for name, source in sources.items() if source.weight is None]
    equal = round(1 / len(sources), WEIGHT_DECIMALS)
    if without:
        raise UsageError(
            f"{'source' if len(without) == 1 else 'sources'} {', '.join(without)} without a weight",
            "a weight for each source; they sum to 1",
            f"Write for example --mix-weight {without[0]}={equal:g}, or weight = {equal:g} in "
            f"[data.mix.{without[0]}]. To find the best weights, use `scalelab sweep mixture`.",
        )
    weights = {name: source.weight or 0.0 for name, source in sources.items()}
    total = math.fsum(weights.values())
    if abs(total - 1) <= WEIGHT_TOLERANCE:
        return
    scaled = rounded_weights({name: w / total for name, w in weights.items()}) if total else {}
    do = " ".join(f"--mix-weight {name}={weight:g}" for name, weight in scaled.items())
    raise UsageError(
        f"weights that sum to {total:.6g}: "
        + ", ".join(f"{name} {weight:g}" for name, weight in weights.items()),
        "weights that sum to 1",
        f"With the same proportions: {do}." if do else "Give a source a weight above 0.",
    )


def rounded_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Return weights that sum to 1 with `WEIGHT_DECIMALS`, by the largest remainders."""
    unit = 10**WEIGHT_DECIMALS
    exact = {name: weight * unit for name, weight in weights.items()}
    whole = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: whole[name] - exact[name])
    for name in by_remainder[: unit - sum(whole.values())]:
        whole[name] += 1
    return {name: count / unit for name, count in whole.items()}


def _source(name: str, content: Any) -> MixSource:
    if not re.fullmatch(SET_NAME, name) or name == HELD_OUT:
        raise UsageError(
            f"source {name!r} in [data.mix]",
            f"a name of a-z, 0-9 and _ that begins with a letter and is not {HELD_OUT}",
            EXAMPLE,
        )
    if isinstance(content, MixSource):
        return content
    if isinstance(content, (str, list, tuple)):
        content = {"paths": content}
    if not isinstance(content, Mapping):
        raise UsageError(
            f"source {name} = {content!r} in [data.mix]", "a path, or a table with paths", EXAMPLE
        )
    known = list(MixSource.model_fields)
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise UsageError(
                f"unknown key data.mix.{name}.{key}",
                f"one of {', '.join(known)}",
                f"Did you mean {near[0]}?" if near else f"Remove {key}.",
            )
    paths = content.get("paths")
    paths = (paths,) if isinstance(paths, str) else tuple(paths or ())
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise UsageError(
            f"source {name} without text",
            "at least one file, folder or glob",
            f"Write for example --mix-source {name}=corpus/{name}/.",
        )
    weight = content.get("weight")
    return MixSource(
        paths=paths,
        weight=None if weight is None else _weight(name, weight),
        **{key: content.get(key) for key in ("field", "column", "format")},
    )


def _weight(name: str, value: Any) -> float:
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 <= weight <= 1:
        percent = isinstance(weight, float) and 1 < weight <= 100
        raise UsageError(
            f"weight {value} of source {name}",
            "a share of the training tokens, from 0 to 1",
            f"For {weight:g} % write {weight / 100:g}." if percent else "Write for example 0.3.",
        )
    return weight


def _validate(value: Any) -> Any:
    try:
        return read_mix(value)
    except UsageError as error:
        raise ValueError(error) from None  # pydantic adds the path of the field


Mix = Annotated[
    dict[str, MixSource],
    BeforeValidator(
        _validate, json_schema_input_type=dict[str, str | list[str] | MixSource] | list[str]
    ),
    Metavar("<name=path>"),
]
"""Sources by name; values are `read_mix`'s."""
MixWeights = Annotated[dict[str, float], Metavar("<name=share>")]
