"""Arithmetic of sweep files: the expressions of ``[program.derive]`` and of ``final_step``.

A parser of its own instead of ``eval``: numbers, names, ``+ - * / // ** %``, parentheses and the
functions ``min max round int``. Whole numbers stay whole except under ``/``, as in Python.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from scalelab.errors import UsageError, did_you_mean

Number = int | float

MAX_LENGTH = 500
MAX_DEPTH = 50
MAX_BITS = 256
"""Largest whole number, in bits: results are counts, and ``**`` must not fill the memory."""
FUNCTIONS = ("int", "max", "min", "round")
ALLOWED = "numbers, names, + - * / // ** %, parentheses, min, max, round and int"

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)?)"
    r"|(?P<sign>\*\*|//|[-+*/%(),]))",
    re.ASCII,
)
_Value = Callable[[Mapping[str, object]], Number]


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression.

    Attributes
    ----------
    text : str
        As written.
    names : frozenset of str
        Names that it uses; ``size.COLUMN`` is one name.
    """

    text: str
    names: frozenset[str]
    _value: _Value = field(repr=False, compare=False)

    def value(self, found: Mapping[str, object]) -> Number:
        """Return the value with these values of the names.

        Raises
        ------
        UsageError
            If a name has no value or one that is not a number, or the arithmetic has no result.
        """
        try:
            return _bounded(self._value(found), self.text)
        except ZeroDivisionError:
            raise _problem(self.text, "a division by zero") from None
        except (OverflowError, ValueError):
            raise _problem(self.text, "no finite value") from None


@functools.lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """Return an expression.

    Raises
    ------
    UsageError
        If the text is not an expression, or has more than 500 characters or 50 levels.
    """
    if len(text) > MAX_LENGTH:
        raise UsageError(
            f"an expression of {len(text):,} characters",
            f"at most {MAX_LENGTH} characters",
            "Divide it into several entries of [program.derive].",
        )
    return _Parser(text).expression()


class _Parser:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        self.names: set[str] = set()
        self.at = 0
        self.depth = 0
        end = 0
        while text[end:].strip():
            match = _TOKEN.match(text, end)
            if match is None:
                raise _problem(text, f"unexpected {text[end:].strip()[0]!r}")
            end = match.end()
            self.tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))

    def expression(self) -> Expression:
        value = self.sum()
        if self.at < len(self.tokens):
            raise _problem(self.text, f"unexpected {self.tokens[self.at][1]!r}")
        return Expression(self.text, frozenset(self.names), value)

    def sum(self) -> _Value:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _problem(self.text, f"more than {MAX_DEPTH} levels of parentheses")
        value = self.product()
        while sign := self.take("+", "-"):
            value = _binary(sign, value, self.product(), self.text)
        self.depth -= 1
        return value

    def product(self) -> _Value:
        value = self.signed()
        while sign := self.take("*", "/", "//", "%"):
            value = _binary(sign, value, self.signed(), self.text)
        return value

    def signed(self) -> _Value:
        signs = 0
        while sign := self.take("-", "+"):
            signs += sign == "-"
        value = self.power()
        if signs % 2 == 0:
            return value
        return lambda found: -value(found)

    def power(self) -> _Value:
        base = self.atom()
        if not self.take("**"):
            return base
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _problem(self.text, f"more than {MAX_DEPTH} levels of powers")
        # The exponent takes its own sign, and 2 ** 3 ** 2 is 2 ** 9, as in Python.
        value = _binary("**", base, self.signed(), self.text)
        self.depth -= 1
        return value

    def atom(self) -> _Value:
        kind, word = self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")
        self.at += 1
        if kind == "number":
            return _constant(word, self.text)
        if kind == "name":
            if self.take("("):
                return self.call(word)
            self.names.add(word)
            return lambda found: _number_of(word, found, self.text)
        if word == "(":
            value = self.sum()
            self.need(")")
            return value
        raise _problem(self.text, f"unexpected {word!r}" if word else "an unfinished expression")

    def call(self, name: str) -> _Value:
        if name not in FUNCTIONS:
            raise UsageError(
                f"the function {name} in {self.text!r}",
                f"one of {', '.join(FUNCTIONS)}",
                f"{did_you_mean(name, FUNCTIONS)}Write for example round(n_steps / 10).",
            )
        arguments = [self.sum()]
        while self.take(","):
            arguments.append(self.sum())
        self.need(")")
        if name in ("int", "round") and len(arguments) > 1:
            raise _problem(self.text, f"{len(arguments)} arguments of {name}, which takes one")
        if name in ("int", "round"):
            rounded: Callable[[Number], int] = int if name == "int" else round
            return lambda found: rounded(arguments[0](found))
        chosen: Callable[[list[Number]], Number] = min if name == "min" else max
        return lambda found: chosen([value(found) for value in arguments])

    def take(self, *signs: str) -> str:
        """Return the next token and pass it if it is one of these signs, else return ``""``."""
        if self.at < len(self.tokens) and self.tokens[self.at] in [("sign", s) for s in signs]:
            self.at += 1
            return self.tokens[self.at - 1][1]
        return ""

    def need(self, sign: str) -> None:
        if not self.take(sign):
            raise _problem(self.text, f"a missing {sign!r}")


def _binary(sign: str, left: _Value, right: _Value, text: str) -> _Value:
    def value(found: Mapping[str, object]) -> Number:
        return _bounded(_apply(sign, left(found), right(found), text), text)

    return value


def _apply(sign: str, a: Number, b: Number, text: str) -> Number:
    if sign == "**":
        if isinstance(a, int) and isinstance(b, int) and b >= 0:
            if b * a.bit_length() > 2 * MAX_BITS:
                raise _problem(text, f"a number of more than {MAX_BITS} bits")
            power: int = a**b
            return power
        result = float(a) ** float(b)
        if isinstance(result, complex):
            raise _problem(text, "a root of a negative number")
        return float(result)
    if sign == "+":
        return a + b
    if sign == "-":
        return a - b
    if sign == "*":
        return a * b
    if sign == "/":
        return a / b
    return a // b if sign == "//" else a % b


def _bounded(value: Number, text: str) -> Number:
    if isinstance(value, float) and not math.isfinite(value):
        raise _problem(text, "no finite value")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise _problem(text, f"a number of more than {MAX_BITS} bits")
    return value


def _constant(word: str, text: str) -> _Value:
    try:
        plain = word.replace("_", "")
        value: Number = int(plain) if plain.isdigit() else float(plain)
    except ValueError:
        raise _problem(text, f"the number {word!r}") from None
    return lambda found: value


def _number_of(name: str, found: Mapping[str, object], text: str) -> Number:
    if name not in found:
        raise UsageError(
            f"the name {name} in {text!r}",
            "a placeholder of a number, or an entry of [program.derive]",
            f"{did_you_mean(name, found)}Correct or remove the name.",
        )
    value = found[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(
            f"the name {name} in {text!r}, whose value is the text {value!r}",
            "names of numbers",
            "Use the name in the command instead, as {" + name + "}.",
        )
    return value


def _problem(text: str, what: str) -> UsageError:
    return UsageError(
        f"the expression {text!r}: {what}",
        ALLOWED,
        "Write for example accum = 'batch_seqs // micro_batch_seqs'.",
    )
