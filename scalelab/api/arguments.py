"""Arguments of the verbs in the forms that people write them: numbers, names, dicts, DataFrames."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from scalelab.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from scalelab.fit.bootstrap import BootstrapSpec
    from scalelab.fit.objective import Objective
    from scalelab.forecast.allocate import Request

    Asked = str | Mapping[str, Any] | pd.DataFrame | Sequence[Any]

T = TypeVar("T")

LOSS_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("mse", "l2", "least_squares", "least squares", "squared", "ols"), "ls"),
    **dict.fromkeys(("mae", "l1", "absolute", "least_absolute"), "lad"),
    **dict.fromkeys(("mle", "nll", "likelihood_huber"), "likelihood"),
}
"""Other names of the losses, for "Did you mean"."""


def value_of(kind: type[T], given: T | Mapping[str, Any], argument: str) -> T:
    """Return a value of a type from itself or from a dict of its fields.

    Raises
    ------
    UsageError
        If it is neither, or the dict has an unknown key.
    """
    if isinstance(given, kind):
        return given
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    example = f"{argument}={kind.__name__}({names[0]}=..)"
    if not isinstance(given, Mapping):
        raise UsageError(
            f"{argument}={given!r}",
            f"{kind.__name__}(..) or a dict of its fields",
            f"Write {example}.",
        )
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            raise UsageError(
                f"{argument} with the key {name!r}",
                f"the keys {', '.join(names)}",
                f"Did you mean {near[0]!r}?" if near else f"Write {example}.",
            )
    return kind(**given)


def as_bootstrap(given: BootstrapSpec | int | Mapping[str, Any] | None) -> BootstrapSpec:
    """Return the bootstrap that a number of replicates, a spec or a dict of its fields names."""
    from scalelab.fit.bootstrap import BootstrapSpec

    if given is None:
        return BootstrapSpec()
    if isinstance(given, (BootstrapSpec, Mapping)):
        return value_of(BootstrapSpec, given, "bootstrap")
    try:
        count = float("nan") if isinstance(given, (bool, str)) else float(given)
    except (TypeError, ValueError):
        count = float("nan")
    if not count.is_integer():
        raise UsageError(
            f"bootstrap={given!r}",
            "a number of replicates, or a BootstrapSpec",
            "Write bootstrap=200, or bootstrap=0 for no intervals.",
        )
    return BootstrapSpec(k=int(count))


def as_objective(given: Objective | str | Mapping[str, Any]) -> Objective:
    """Return the objective that a loss name, an Objective or a dict of its fields names."""
    from scalelab.fit.objective import LOSSES, Objective

    if not isinstance(given, str):
        return value_of(Objective, given, "objective")
    for loss in LOSSES:
        if given == loss:
            return Objective(loss=loss)
    name = given.strip().lower()
    near = LOSS_NAMES.get(name) or next(iter(difflib.get_close_matches(name, LOSSES, n=1)), None)
    raise UsageError(
        f"objective={given!r}",
        f"one of {', '.join(LOSSES)}, or an Objective",
        f"Did you mean objective={near!r}?" if near else "Write objective='huber'.",
    )


def as_names(given: str | Sequence[str], argument: str, example: str) -> tuple[str, ...]:
    """Return one or several names as a tuple."""
    if isinstance(given, str):
        return (given,)
    if isinstance(given, (list, tuple)) and all(isinstance(name, str) for name in given):
        return tuple(given)
    raise UsageError(
        f"{argument}={given!r}", "text, or a list of texts", f"Write {argument}={example!r}."
    )


def as_requests(asked: Asked) -> list[Request]:
    """Return what to predict.

    Parameters
    ----------
    asked : str, Mapping, DataFrame, or a sequence of them
        ``"C=1e24"``, ``"N=7e9,D=2e12"``, ``{"N": 7e9}``, ``{"flops": 1e24}``, or a DataFrame with
        columns of these names, one request per row.

    Raises
    ------
    UsageError
        If it cannot be read as a request.
    """
    from scalelab.forecast.allocate import COLUMN_OF_LETTER, parse_request

    if isinstance(asked, str):
        return [parse_request(asked)]
    if isinstance(asked, Mapping):
        letters = {column: letter for letter, column in COLUMN_OF_LETTER.items()}
        items = (
            f"{letters.get(name, name)}={_number(value)}"
            for name, value in asked.items()
            if value is not None and value == value  # NaN: not given
        )
        return [parse_request(",".join(items))]
    if hasattr(asked, "columns") and hasattr(asked, "to_dict"):
        known = [
            name
            for name in asked.columns
            if name in (*COLUMN_OF_LETTER, *COLUMN_OF_LETTER.values())
        ]
        rows: Any = asked
        return [r for row in rows[known].to_dict("records") for r in as_requests(row)]
    if isinstance(asked, (list, tuple)):
        return [request for each in asked for request in as_requests(each)]
    is_number = isinstance(asked, (int, float))
    raise UsageError(
        f"{asked!r} to predict, without a name"
        if is_number
        else f"a {type(asked).__name__} to predict",
        "text or a dict that names N (parameters), D (tokens) or C (training FLOPs)",
        (f'Did you mean "C={asked:g}"? ' if is_number else "")
        + 'Write for example "C=1e24", "N=7e9" or "N=7e9,D=2e12".',
    )


def _number(value: Any) -> str:
    """Return a number as text that reads back to the same value."""
    try:
        short = value if isinstance(value, str) else f"{value:g}"
        return short if short == value or float(short) == value else repr(float(value))
    except (TypeError, ValueError):
        return str(value)
