"""Errors of the option parser, in the three parts of every other error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from typer.exceptions import TyperException

from scalelab.cli.output import find_command
from scalelab.errors import UsageError, did_you_mean

_KINDS = {"a valid integer": "a whole number", "a valid number": "a number"}


def as_usage_error(error: TyperException, words: Sequence[str], group: Any) -> UsageError:
    """Return an error of the parser as a `UsageError`.

    Parameters
    ----------
    error : TyperException
    words : Sequence of str
        The command line after ``scalelab``.
    group : TyperGroup
        The command ``scalelab``.
    """
    path, command = find_command(words, group)
    options = [name for item in command.params for name in item.opts if name.startswith("-")]
    help_text = f"Run `{path} --help` to see what it accepts."
    message = error.format_message().rstrip(".")
    name = str(getattr(error, "option_name", "")).partition("=")[0]
    parameter = getattr(error, "param", None)
    kind = type(error).__name__
    if kind == "NoSuchOption":
        return UsageError(
            f"unknown option {name} for {path}",
            f"an option that `{path} --help` lists",
            _near(name, options) or f"Run `{path} --help`.",
        )
    if kind == "BadOptionUsage":
        if "does not take" in message:
            return UsageError(f"{name} with a value", f"{name} alone", f"Write {name}.")
        helps = (str(getattr(p, "help", "")) for p in command.params if name in p.opts)
        example = re.search(r"example: ([^];]+)", next(helps, ""))
        return UsageError(
            f"{name} without a value in {path}",
            f"a value after {name}",
            f"Write for example {name} {example[1]}." if example else help_text,
        )
    if kind == "MissingParameter" and parameter is not None:
        argument = str(parameter.name).upper()
        return UsageError(
            f"{path} without {argument}",
            f"{path} {argument}",
            f"{argument}: {getattr(parameter, 'help', '')} {help_text}",
        )
    if kind == "BadParameter" and parameter is not None:
        return _bad_value(str(getattr(error, "message", message)), parameter, words, help_text)
    if found := re.fullmatch(r"No such command '(.+?)'.*", message):
        known = sorted(command.commands)
        near = _near(found[1], known, f"{path} ")
        return UsageError(
            f"unknown command {found[1]!r} of {path}",
            f"one of {', '.join(known)}",
            near or help_text,
        )
    if found := re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \((.+)\)", message):
        arguments = [str(item.name).upper() for item in command.params if not _is_option(item)]
        is_table = "--from" in options and found[1].endswith((".csv", ".parquet"))
        return UsageError(
            f"unexpected argument {found[1]!r} for {path}",
            f"only {' '.join(arguments)} and options" if arguments else "only options",
            f"Did you mean --from {found[1]}?" if is_table else help_text,
        )
    return UsageError(message, f"the options and arguments of {path}", help_text)


def _bad_value(message: str, parameter: Any, words: Sequence[str], help_text: str) -> UsageError:
    name = max(parameter.opts, key=len) if _is_option(parameter) else str(parameter.name).upper()
    value = _value_of(parameter.opts, words)
    allowed = message.removeprefix("Input should be ").partition(", unable")[0]
    allowed = allowed.replace("greater than or equal to", "a number of at least")
    default = parameter.default
    is_number = isinstance(default, (int, float)) and not isinstance(default, bool)
    return UsageError(
        f"{name} {value}" if value else f"invalid value for {name}",
        _KINDS.get(allowed, allowed),
        f"Write for example {name} {default}." if is_number else help_text,
    )


def _value_of(names: Iterable[str], words: Sequence[str]) -> str:
    """Return what follows an option on the command line, empty if it is not there."""
    for here, after in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = here.partition("=")
        if name in names:
            return value if equals else after
    return ""


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def _near(word: str, known: Iterable[str], before: str = "") -> str:
    return did_you_mean(word, known, prefix=before).rstrip()
