"""Output of commands: one JSON object or tables on stdout, progress and logs on stderr."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.errors import DataError, ScalelabError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

PIPED_WIDTH = 200
WARNING_STYLE = "yellow"
_COMMAND = re.compile(r"`(scalelab [^`]+)`|(?<=Next: )(scalelab .+)")
_given_results: Path | None = None
_root: Any = None


class OutputError(DataError):
    """Standard output cannot be written, for example because the disk is full."""


class _Stream(io.FileIO):
    """A standard stream that discards everything after its first failed write.

    Without this, the interpreter would write the rest once more at its exit, and fail.
    """

    def write(self, content: Any) -> int:
        try:
            return super().write(content) or 0
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if self.fileno() == 2:
                return len(content)
            if isinstance(error, BrokenPipeError):
                raise
            raise OutputError(
                f"standard output that cannot be written ({error.strerror})",
                "a terminal, pipe or file on a disk with free space",
                "Free disk space, or redirect the output to another file.",
            ) from error


def open_streams() -> None:
    """Replace closed standard streams, and report failed writes to stdout as `OutputError`."""
    if sys.stdin is None:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            # A pipe without a reader: the first write fails as after `| head`.
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, number)
        elif not isinstance(stream, io.TextIOWrapper) or stream.fileno() != number:
            continue
        raw = _Stream(number, "w", closefd=False)
        new = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=getattr(stream, "encoding", "utf-8"),
            errors=getattr(stream, "errors", "strict"),
            line_buffering=raw.isatty() or number == 2,
        )
        setattr(sys, name, new)


def set_results(results: Path | None, root: Any = None) -> None:
    """Note the ``--results`` of this command line, or None where other commands find it without.

    ``root`` is the command ``scalelab``, whose subcommands have the option or not.
    """
    global _given_results, _root
    _given_results, _root = results, root


def results_words() -> tuple[str, ...]:
    """Return the words of ``--results`` of this command line, or none where it was not given."""
    return () if _given_results is None else ("--results", str(_given_results))


def runnable(text: str) -> str:
    """Return a text whose `scalelab ..` commands name the results folder, so they can be pasted."""

    def replace(found: re.Match[str]) -> str:
        quote = "`" if found[1] else ""
        return f"{quote}{_with_results(found[1] or found[2])}{quote}"

    return _COMMAND.sub(replace, text)


def _with_results(command: str) -> str:
    words = command.split()
    if _given_results is None or "--results" in words:
        return command
    _, found = find_command(words[1:], _root)
    if all(parameter.name != "results" for parameter in found.params):
        return command
    start, dots, _ = command.partition(" ..")
    return f"{start} --results {shlex.quote(str(_given_results))}{dots}"


def find_command(words: Sequence[str], group: Any) -> tuple[str, Any]:
    """Return the command of ``group`` that the first words name, as text and as an object."""
    path, command = ["scalelab"], group
    for word in words:
        if word not in getattr(command, "commands", ()):
            break
        path.append(word)
        command = command.commands[word]
    return " ".join(path), command


def console(*, stderr: bool = False) -> Console:
    """Return a console; piped output is plain and wide, so that nothing is cut."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    found: Console = _page_console()(file=stream, width=width, highlight=False, markup=False)
    return found


@cache
def _page_console() -> Any:
    """Return the class of consoles; a function, because Rich is imported when it is needed."""
    from rich.console import Console

    class PageConsole(Console):
        """A console that wraps at words on a terminal, and prints one line each in a pipe."""

        def print(self, *objects: Any, soft_wrap: bool | None = None, **more: Any) -> None:
            super().print(*objects, soft_wrap=bool(soft_wrap) and not self.is_terminal, **more)

    return PageConsole


def verbatim(text: str, out: Console, *, style: str = "") -> None:
    """Print commands or a script unchanged, so that they can be copied from a terminal."""
    out.print(text, style=style, no_wrap=True, overflow="ignore", crop=False)


def say(text: str | Text, out: Console, *, style: str = "", indent: int = 0) -> None:
    """Print a paragraph: wrapped at words on a terminal, on one line in a pipe.

    Parameters
    ----------
    text : str or Text
    out : Console
    style : str
    indent : int
        Spaces before the first line; the next lines have two more, if it is not 0.
    """
    from rich.text import Text

    words = Text(text) if isinstance(text, str) else text
    words.style = style or words.style
    if not out.is_terminal:
        out.print(Text(" " * indent) + words, soft_wrap=True)
        return
    hanging = indent + 2 if indent else 0
    for i, line in enumerate(words.wrap(out, max(20, out.width - hanging))):
        line.rstrip()
        out.print(Text(" " * (hanging if i else indent)) + line)


def emit_json(value: Any) -> None:
    """Print one JSON object at full precision; nan and infinity become null."""
    sys.stdout.write(json.dumps(as_plain(value), allow_nan=False) + "\n")


def as_plain(value: Any) -> Any:
    """Return ``value`` with dataclasses, arrays, mappings and paths as JSON types."""
    if is_dataclass(value) and not isinstance(value, type):
        return as_plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [as_plain(item) for item in value]
    if isinstance(value, (bool, str)) or value is None:
        return value
    if hasattr(value, "tolist"):
        return as_plain(value.tolist())
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def write_text(path: Path, text: str, flag: str) -> None:
    """Write a file and its folder; raise DataError, which names the flag, if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{path}, which cannot be written ({error.strerror})",
            "a path in a folder that you may write to",
            f"Write to another folder, for example {flag} ~/{path.name}.",
        ) from None


def warn(text: str) -> None:
    """Print a warning on stderr."""
    warn_here(text, console(stderr=True))


def warn_here(text: str, out: Console) -> None:
    """Print a warning of a page, below its answer."""
    say(f"warning: {runnable(text)}", out, style=WARNING_STYLE)


def report_error(error: ScalelabError, *, as_json: bool) -> int:
    """Print the error, as text on stderr or as JSON on stdout, and return its exit code."""
    if as_json:
        emit_json({"error": {**error.as_dict(), "do": runnable(error.do)}})
    else:
        out = console(stderr=True)
        say(f"error: {error.given}", out, style="bold red")
        say(f"expected {error.allowed}", out)
        say(runnable(error.do), out)
    return error.exit_code
