"""The part of YAML in which trainers write their settings: nested mappings of scalars.

Lists, anchors and multi-line text are left out: a reader of run logs needs none, and never
constructs objects. YAML 1.2, chapters 6 to 8: https://yaml.org/spec/1.2.2/
"""

from __future__ import annotations

import re

from scalelab.logs.values import MOST_KEYS, Scalar

_LINE = re.compile(
    r"^(?P<indent> *)(?P<key>[^\s#'\"][^:#]*|'[^']*'|\"[^\"]*\"):(?:\s+(?P<value>.*))?$"
)


def parse_settings(text: str) -> dict[str, Scalar]:
    """Return the scalars of nested mappings by path, such as ``train/max_tokens``."""
    flat: dict[str, Scalar] = {}
    groups: list[tuple[int, str]] = []
    for line in text.splitlines():
        found = _LINE.match(line.rstrip())
        if found is None or len(flat) >= MOST_KEYS:
            continue
        indent, key = len(found["indent"]), found["key"].strip().strip("'\"")
        while groups and groups[-1][0] >= indent:
            groups.pop()
        path = "/".join([*(name for _, name in groups), key])
        value = parse_scalar(found["value"] or "")
        if value == "" and not (found["value"] or "").strip():
            groups.append((indent, key))
        else:
            flat[path] = value
    return flat


def parse_scalar(text: str) -> Scalar:
    """Return a number, truth value, None or text."""
    text = re.sub(r"\s+#.*$", "", text).strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.lower() in ("null", "~"):
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
