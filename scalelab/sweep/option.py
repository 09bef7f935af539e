"""Declaration of specification fields, and the list of options that a specification has.

`option` declares a field of a pydantic model with its help, example, panel and flag; `options`
lists the declared fields. The command line, error messages, the JSON schema and the reference
pages are generated from that list, so adding an option takes one field.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from scalelab.errors import UsageError

RUNS, SEARCH, DATA, MODEL, TRAINING = "What to run", "Search", "Data", "Model", "Training"
EXECUTION, LAUNCHER, SLURM = "Execution", "Launcher", "SLURM"
PROGRAM = "Training program"

KINDS = ("isoflop", "grid", "ladder")
NOT_TUNE = (*KINDS, "adaptive", "mixture")
"""Commands with a fixed value of a hyperparameter that `tune` searches."""

_Spec = TypeVar("_Spec", bound="Table")


@dataclass(frozen=True, slots=True)
class Metavar:
    """Placeholder of a value in ``--help``, such as ``<range>``."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """A field of a specification as users see it.

    Attributes
    ----------
    path : tuple of str
        Keys that lead to the field, such as ``("train", "seq_len")``.
    flag : str or None
        ``--seq-len``; None when only files have the key.
    help, panel, default, example, envvar : str or None
        As in `option`; default and example as a user would write them, without default empty.
    metavar : str
        Placeholder of the value: ``<int>``, ``cosine|wsd``; empty for a switch.
    accepted : str
        Accepted values, for error messages and the reference.
    commands : tuple of str
        Commands that have the option (``sweep run`` has all); empty means all sweep commands.
    is_list, is_mapping, is_in_files : bool
        Whether the flag can be repeated, whether it sets one key of a table each time, and whether
        sweep files have the key.
    """

    path: tuple[str, ...]
    flag: str | None
    help: str
    metavar: str
    accepted: str
    default: str
    example: str
    panel: str
    commands: tuple[str, ...]
    envvar: str | None
    is_list: bool
    is_mapping: bool
    is_in_files: bool

    @property
    def key(self) -> str:
        """Key in a sweep file: ``train.seq_len``."""
        return ".".join(self.path).removeprefix("sweep.")

    @property
    def suggestion(self) -> str:
        """How to set the option, with an example that can be pasted."""
        value = self.example or self.default
        in_file = f"{self.key} = {_as_toml(value)}"
        if self.flag is None:
            return f"Try {in_file}."
        flag = f"{self.flag} {shlex.quote(value)}" if self.metavar else self.flag
        return f"Try {flag}{f', or {in_file} in a sweep file' if self.is_in_files else ''}."


class Table(BaseModel):
    """Base of every table of a specification: frozen, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)
    panel: ClassVar[str] = RUNS
    is_in_files: ClassVar[bool] = True
    """Whether sweep files have the keys of the table."""

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_not_booleans(cls, content: Any) -> Any:
        for name, field in cls.model_fields.items():
            value = content.get(name) if isinstance(content, Mapping) else None
            values = value if isinstance(value, (list, tuple)) else (value,)
            if bool not in _parts(field.annotation) and any(
                isinstance(item, bool) for item in values
            ):
                raise UsageError(
                    f"{name} = {value!r}",
                    "a number or text",
                    f"Remove {name} to use its default, or give it a number or text.",
                )
        return content


def option(
    default: Any,
    text: str,
    *,
    example: str = "",
    flag: str = "",
    panel: str = "",
    commands: tuple[str, ...] = (),
    envvar: str | None = None,
    **bounds: Any,
) -> Any:
    """Declare a field that has a command-line option.

    Parameters
    ----------
    default : object
        Value if the user gives none.
    text : str
        Effect of the option, without the final period.
    example : str
        A value that can be pasted.
    flag, panel : str
        Flag and section of the help; default the field's name and the ``panel`` of the table.
    commands, envvar
        Commands that have the option, as in `Option`; environment variable that sets it.
    **bounds
        ``ge``, ``le``, ``gt``, ``lt``, ``min_length``, ``pattern`` of `pydantic.Field`.
    """
    shown: dict[str, Any] = {"x-panel": panel, "x-commands": list(commands), "x-envvar": envvar}
    return Field(
        default=default,
        description=text,
        examples=[example] if example else None,
        json_schema_extra={"x-flag": flag, **{key: item for key, item in shown.items() if item}},
        **bounds,
    )


@functools.cache
def options(model: type[Table]) -> tuple[Option, ...]:
    """Return the options of a specification, in the order of its fields."""
    return tuple(_options(model, ()))


def find_option(model: type[Table], path: tuple[str, ...]) -> Option | None:
    """Return the option at a path of keys, None when there is none."""
    return next((found for found in options(model) if found.path == path), None)


def field_table(field: FieldInfo) -> type[Table] | None:
    """Return the table that a field holds, or several of; None when it holds a value."""
    kinds = (part for part in _parts(field.annotation) if isinstance(part, type))
    return next((kind for kind in kinds if issubclass(kind, Table)), None)


def validated(model: type[_Spec], content: Mapping[str, Any], *, source: str) -> _Spec:
    """Return the specification that a nested mapping describes; values may be text.

    Raises
    ------
    UsageError
        When a key is unknown or missing, or a value is out of range. It names ``source``.
    """
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        raise _as_usage_error(error, model, source) from None


def _as_usage_error(error: ValidationError, model: type[Table], source: str) -> UsageError:
    """Return the first problem of a validation, with the flag, the key and an example."""
    found_errors = error.errors(include_url=False)
    # A misspelt key may be the one that is missing.
    misspelt = (each for each in found_errors if each["type"] == "extra_forbidden")
    first = next(misspelt, found_errors[0])
    path = tuple(str(part) for part in first["loc"])
    where = ".".join(path)
    # Entries of a list of tables have the same keys.
    path = tuple(part for part in path if not part.isdigit())
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        near = get_close_matches(path[-1], known, n=1)
        return UsageError(
            f"unknown key {where} in {source}",
            f"one of {', '.join(known)}",
            f"Did you mean {near[0]}?" if near else f"Remove {where}, or use one of these keys.",
        )
    holders = [o for o in options(model) if o.path == path[: len(o.path)]]
    found = max(holders, key=lambda holder: len(holder.path), default=None)
    flag = f" ({found.flag})" if found is not None and found.flag else ""
    do = f"Give {where} an accepted value." if found is None else found.suggestion
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ValueError) and isinstance(cause.args[0], UsageError):
        inner = cause.args[0]
        return UsageError(f"{inner.given}{flag}", inner.allowed, f"{inner.do} {do}")
    if first["type"] == "missing":
        return UsageError(f"no {where} in {source}", "a value for it", do)
    allowed = first["msg"].removeprefix("Input should be ")
    if found is not None and found.accepted and not first["type"].startswith("string"):
        allowed = found.accepted
    if first["type"] == "literal_error":
        near = get_close_matches(str(first["input"]), allowed.split(" or "), n=1)
        do = f"Did you mean {near[0]}?" if near else do
    return UsageError(f"{where} = {first['input']!r}{flag} in {source}", allowed, do)


def _known_keys(model: type[Table], path: tuple[str, ...]) -> list[str]:
    for key in path:
        model = field_table(model.model_fields[key]) or model
    return sorted(model.model_fields)


def _options(model: type[Table], above: tuple[str, ...]) -> Iterator[Option]:
    for name, field in model.model_fields.items():
        path, table = (*above, name), field_table(field)
        extra: Any = field.json_schema_extra or {}
        if table is not None:
            yield from _options(table, path)
            if "x-flag" not in extra:
                continue
        flag = extra.get("x-flag") or f"--{name.replace('_', '-')}"
        parts = [*field.metadata, *_parts(field.annotation)]
        marker = next((part.text for part in parts if isinstance(part, Metavar)), None)
        metavar = _metavar(parts) if marker is None else marker
        is_tuple = any(get_origin(part) is tuple for part in parts)
        is_mapping = any(get_origin(part) is dict for part in parts)
        yield Option(
            path=path,
            flag=flag if "x-flag" in extra else None,
            help=field.description or "",
            metavar=metavar,
            accepted=_accepted(field, metavar),
            default=_shown_default(field.default),
            example=str(field.examples[0]) if field.examples else "",
            panel=extra.get("x-panel") or model.panel,
            commands=tuple(extra.get("x-commands", ())),
            envvar=extra.get("x-envvar"),
            is_list=is_mapping or (is_tuple and marker is None),
            is_mapping=is_mapping,
            is_in_files=model.is_in_files,
        )


def _parts(kind: Any) -> Iterator[Any]:
    """Yield a type and the types, words and metadata inside it."""
    yield kind
    for part in get_args(kind):
        yield from _parts(part)


def _metavar(parts: list[Any]) -> str:
    words = [part for part in parts if isinstance(part, str)]
    if words or bool in parts:
        return "|".join(words)
    return "<int>" if int in parts else "<float>" if float in parts else "<str>"


_ACCEPTED = {
    "": "true or false",
    "<int>": "a whole number",
    "<int,..>": "whole numbers such as 0,1,2",
    "<float>": "a number",
    "<str>": "text",
    "<range>": "LOW..HIGH, LOW..HIGH:COUNT or a list",
    "<quantity>": "a quantity such as 1e18 or 7B",
    "auto|<int>": "auto or a whole number",
    "<share|steps>": "a share of the steps below 1, or a whole number of steps",
    "<time>": "minutes, H:MM:SS or D-HH:MM:SS",
    "<int>|<rules>": "a whole number from 0, or conditions such as <1e19=1,>=1e19=8",
    "<key=value>": "KEY=VALUE, or KEY for a switch",
    "<name=path>": "NAME=PATH, or a table of names and paths",
    "<name=share>": "NAME=SHARE",
    "<memory>": "GB, or a number with M, G or T",
    "<low..high>": "a range LOW..HIGH",
    "<aspect>": "power, a number from 1, or width:number,..",
    "<file>": "the path of a sweep file, or a table",
    "<shapes>": "labels such as 4L-64d-4h,6L-96d-6h, or a CSV file",
}


def _accepted(field: FieldInfo, metavar: str) -> str:
    base = _ACCEPTED.get(metavar) or metavar.replace("|", " or ")
    words = (("gt", "above"), ("ge", "from"), ("lt", "below"), ("le", "at most"))
    bounds = [
        f"{word} {_number(getattr(item, name))}"
        for item in field.metadata
        for name, word in words
        if hasattr(item, name)
    ]
    separator = " " if base.endswith("number") else ", "
    return separator.join([base, ", ".join(bounds)]) if bounds else base


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _shown_default(value: Any) -> str:
    if value is None or value in ((), {}) or value is PydanticUndefined:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(_shown_default(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _as_toml(value: str) -> str:
    is_plain = re.fullmatch(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?|true|false|\[.*\]|\{.*=.*\}", value)
    return value if is_plain else f'"{value}"'
