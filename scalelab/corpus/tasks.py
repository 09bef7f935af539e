"""Tasks: items with choices, or texts, from a JSONL file.

Each line of the file is one item: ``{"context": "The sky is", "choices": ["blue", "green"],
"answer": 0}``, where ``answer`` is the place of the right choice or its text, or ``{"text": ".."}``
for a perplexity task. Other fields are ignored.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalelab.errors import DataError, UsageError, did_you_mean, near_file
from scalelab.units import plural

CHOICES, TEXT = "task", "text"
"""Kinds of tasks: items with choices; texts whose perplexity counts."""
TASK_NAME = re.compile(r"[a-z][a-z0-9_]*")
SCORING_REVISION = 1
"""Incremented by hand when scores change, so that saved ones are computed again."""
EXAMPLE = '{"context": "The sky is", "choices": ["blue", "green"], "answer": 0}'
FIELDS = ("context", "choices", "answer", "text")


@dataclass(frozen=True, slots=True)
class Item:
    """One item.

    Attributes
    ----------
    context : str
        What stands before the choices; empty for a text.
    choices : tuple of str
        At least two, or one text.
    answer : int
        Place of the right choice.
    """

    context: str
    choices: tuple[str, ...]
    answer: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """The items of one file.

    Attributes
    ----------
    name : str
        Name of the evaluation, such as ``arc_easy``.
    kind : str
        `CHOICES` or `TEXT`.
    items : tuple of Item
        In the order of the file.
    """

    name: str
    kind: str
    items: tuple[Item, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of the items and of the way in which they are scored."""
        content = [
            SCORING_REVISION,
            self.kind,
            [[i.context, i.choices, i.answer] for i in self.items],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def require_name(name: str, given: str) -> str:
    """Return the name of an evaluation if it is valid; ``given`` is what the user wrote.

    Raises
    ------
    UsageError
    """
    if not TASK_NAME.fullmatch(name) or name == "heldout":
        raise UsageError(
            f"{given}, whose name would be {name!r}",
            "a name of lower-case letters, digits and _, which begins with a letter and is not "
            "heldout",
            f"Write a name before it, for example facts={given.split(' ')[-1].split('=')[-1]}.",
        )
    return name


def read_task(file: Path, name: str) -> Task:
    """Return the items of a task file.

    Raises
    ------
    DataError
        If the file is missing, has no item, or a line is not an item.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise DataError(
            f"task file {file}, which cannot be read ({reason})",
            "a JSONL file with one item a line",
            f"{near_file(file)}Write lines such as {EXAMPLE}",
        ) from error
    items: list[tuple[str, Item]] = []
    problems: list[tuple[int, str]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            items.append(_item(json.loads(line)))
        except (ValueError, RecursionError) as error:
            what = "no JSON" if isinstance(error, json.JSONDecodeError | RecursionError) else error
            problems.append((number, str(what)))
    if problems:
        first, what = problems[0]
        more = f" ({plural(len(problems), 'line')} cannot be used)" if len(problems) > 1 else ""
        raise DataError(
            f"line {first} of {file}: {what}{more}",
            "an object with context, at least two choices and the answer, or with text",
            f"Write lines such as {EXAMPLE}",
        )
    kinds = {kind for kind, _ in items}
    if len(kinds) != 1:
        raise DataError(
            f"{file} with {'items of both kinds' if kinds else 'no item'}",
            "items with choices, or texts",
            "Put each kind in a file." if kinds else f"Write lines such as {EXAMPLE}",
        )
    return Task(name=name, kind=kinds.pop(), items=tuple(item for _, item in items))


def _item(content: Any) -> tuple[str, Item]:
    """Return kind and item of a line; ValueError with what is wrong."""
    if not isinstance(content, Mapping):
        raise ValueError("no JSON object")
    text = content.get("text")
    if "choices" not in content and text is not None:
        if not isinstance(text, str) or not text:
            raise ValueError("text that is empty or no string")
        return TEXT, Item("", (_plain(text),))
    choices = content.get("choices")
    if choices is None:
        unknown = [key for key in content if key not in FIELDS]
        near = next((hint for key in unknown if (hint := did_you_mean(key, FIELDS))), "")
        raise ValueError(f"an item without choices. {near}".strip())
    if not isinstance(choices, list) or not all(isinstance(c, str) and c for c in choices):
        raise ValueError("choices that are no list of texts")
    if len(choices) < 2:
        raise ValueError(f"an item with {plural(len(choices), 'choice')}")
    context = content.get("context", "")
    if not isinstance(context, str):
        raise ValueError(f"context {context!r}, which is no text")
    found = Item(_plain(context), tuple(map(_plain, choices)), _answer(content, choices))
    return CHOICES, found


def _answer(content: Mapping[str, Any], choices: list[str]) -> int:
    if "answer" not in content:
        raise ValueError("an item without answer")
    answer = content["answer"]
    if isinstance(answer, str):
        if choices.count(answer) != 1:
            raise ValueError(f"answer {answer!r}, which is not exactly one of the choices")
        return choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise ValueError(f"answer {answer!r}, which is no place and no text of a choice")
    if not 0 <= answer < len(choices):
        raise ValueError(
            f"answer {answer}, with choices from 0 to {len(choices) - 1} (the first one is 0)"
        )
    return answer


def _plain(text: str) -> str:
    if "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("a text with NUL or half a character")
    return text
