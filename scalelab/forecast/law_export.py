"""A law as a Python function without dependencies, and as LaTeX.

The Python text comes from the formula of the form itself: `Law.evaluate` is called with symbols,
which record its operations, as `scalelab.theory.laws.jet` does for derivatives.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from scalelab.errors import UsageError
from scalelab.fit.intervals import Interval
from scalelab.forecast.fit_formats import tex_number
from scalelab.forecast.law_file import SavedLaw
from scalelab.theory.laws.base import Law

_INFIX = {
    np.add: (" + ", 1),
    np.subtract: (" - ", 1),
    np.multiply: (" * ", 2),
    np.true_divide: (" / ", 2),
}
_CALLS = {
    **{getattr(np, name): f"math.{name}" for name in ("exp", "expm1", "log", "log1p")},
    np.minimum: "min",
    np.maximum: "max",
    np.logaddexp: "_logaddexp",
}
_ATOM = 9
_HELPERS = {
    "_logaddexp": (
        "def _logaddexp(x, y):\n    return max(x, y) + math.log1p(math.exp(-abs(x - y)))\n"
    ),
    "_growth": "def _growth(x):\n    return math.expm1(x) / x if x else 1.0\n",
}
_GREEK = ("alpha", "beta", "gamma", "eta")


class _Symbol(np.lib.mixins.NDArrayOperatorsMixin):
    """One operation on symbols and numbers; ``op`` is a ufunc, a helper, or None for a name."""

    def __init__(self, op: Any, args: tuple[Any, ...]) -> None:
        self.op, self.args = op, args
        self.key: tuple[Any, ...] = (op, *(a.key if isinstance(a, _Symbol) else a for a in args))

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        is_known = ufunc in _INFIX or ufunc in _CALLS or ufunc is np.negative
        if method != "__call__" or kwargs or not is_known:
            return NotImplemented
        return _Symbol(ufunc, tuple(x if isinstance(x, _Symbol) else float(x) for x in inputs))

    def growth(self) -> _Symbol:
        """Return (exp(x) - 1) / x of this symbol; see `scalelab.theory.laws.jet.growth`."""
        return _Symbol("_growth", (self,))


class _Printer:
    """Writes symbols as Python text; what is used more than once becomes a local variable."""

    def __init__(self, root: _Symbol) -> None:
        self.uses: Counter[tuple[Any, ...]] = Counter()
        self.names: dict[tuple[Any, ...], str] = {}
        self.lines: list[str] = []
        self._count(root)
        self.result = self.write(root)[0]

    def _count(self, node: Any) -> None:
        if isinstance(node, _Symbol):
            self.uses[node.key] += 1
            if self.uses[node.key] == 1:
                for arg in node.args:
                    self._count(arg)

    def write(self, node: Any) -> tuple[str, int]:
        """Return the text of a node and how strongly it binds."""
        if not isinstance(node, _Symbol):
            return (repr(node), _ATOM if node >= 0 else 1) if isinstance(node, float) else node
        if node.op is None:
            return node.args[0], _ATOM
        if node.key in self.names:
            return self.names[node.key], _ATOM
        text, rank = self._operation(node)
        if self.uses[node.key] > 1:
            name = f"t{len(self.names) + 1}"
            self.lines.append(f"{name} = {text}")
            self.names[node.key] = name
            return name, _ATOM
        return text, rank

    def _operation(self, node: _Symbol) -> tuple[str, int]:
        parts = [self.write(arg) for arg in node.args]
        if node.op is np.negative:
            return f"-{_inside(*parts[0], 3)}", 1
        if node.op in _INFIX:
            sign, rank = _INFIX[node.op]
            # the right operand of - and / keeps its brackets at equal rank
            right = rank + (node.op in (np.subtract, np.true_divide))
            return f"{_inside(*parts[0], rank)}{sign}{_inside(*parts[1], right)}", rank
        name = node.op if isinstance(node.op, str) else _CALLS[node.op]
        return f"{name}({', '.join(text for text, _ in parts)})", _ATOM


def _inside(text: str, rank: int, least: int) -> str:
    return text if rank >= least else f"({text})"


def to_python(saved: SavedLaw) -> str:
    """Return a module with one function, which needs only ``math``.

    Raises
    ------
    UsageError
        If the formula of the form has an operation that has no Python text.
    """
    law, lines = saved.law, []
    form = type(law)
    symbols = []
    has_plain_coordinates = form.encode.__func__ is Law.encode.__func__  # type: ignore[attr-defined]
    for coordinate, value in zip(form.coordinates, law.to_coordinates(), strict=True):
        name = coordinate.name
        if not has_plain_coordinates:
            name = f"{name}_at_reference"
            lines.append(f"{name} = {float(value)!r}")
        else:
            lines.append(f"{name} = {law.params[name]!r}")
            if coordinate.is_log:
                lines.append(f"log_{name} = math.log({name})")
                name = f"log_{name}"
        symbols.append(_Symbol(None, (name,)))
    columns: dict[str, Any] = {name: _Symbol(None, (name,)) for name in law.columns}
    try:
        written = _Printer(form.evaluate(symbols, columns))
    except TypeError:
        raise UsageError(
            f"the form {law.name} as a Python function",
            "a form whose formula uses only exp, log and arithmetic",
            "Use --json, which has the constants.",
        ) from None
    body = [*lines, *written.lines, f"return {written.result}"]
    text = "\n".join(body)
    helpers = [text_of for name, text_of in _HELPERS.items() if f"{name}(" in text]
    name = re.sub(r"\W", "_", law.target)
    note = [
        f"Return {_target(saved)} by the law {saved.name}, form {law.name}.",
        "",
        f"Source: {saved.source}.",
        f"Conventions: N {saved.param_convention}, C {saved.flop_convention}.",
    ]
    note += [f"Fitted for {c} from {low:.4g} to {high:.4g}." for c, (low, high) in _spans(saved)]
    quoted = [line.replace("\\", "/").replace('"', "'") for line in note]
    doc = "\n".join(f"    {line}".rstrip() for line in quoted).strip()
    return (
        "\n\n".join(
            [
                "import math\n",
                *(f"{each}" for each in helpers),
                f'def {name}({", ".join(law.columns)}):\n    """{doc}\n    """\n'
                + "\n".join(f"    {line}" for line in body),
            ]
        )
        + "\n"
    )


def to_tex(saved: SavedLaw, intervals: Mapping[str, Interval], level: float) -> str:
    """Return the formula of the form and a table of the constants as LaTeX."""
    percent = f"{100 * level:g}\\,\\%"
    has_limits = any(math.isfinite(each.low) for each in intervals.values())
    rows = []
    for name, each in intervals.items():
        limits = f" & [{tex_number(each.low)}, {tex_number(each.high)}]" if has_limits else ""
        rows.append(f"${_tex_name(name)}$ & {tex_number(each.value)}{limits} \\\\")
    heads = f"constant & value{f' & {percent} interval' if has_limits else ''} \\\\"
    notes = [f"law {saved.name}, form {saved.law.name}", f"source: {saved.source}"]
    notes.append(f"N {saved.param_convention}, C {saved.flop_convention}, in {saved.unit}")
    notes += [f"fitted for {c} from {low:.4g} to {high:.4g}" for c, (low, high) in _spans(saved)]
    return "\n".join(
        [
            *(f"% {' '.join(note.split())}" for note in notes),
            "\\begin{equation}",
            f"  {formula(type(saved.law))}",
            "\\end{equation}",
            f"\\begin{{tabular}}{{lr{'r' if has_limits else ''}}}",
            "\\hline",
            heads,
            "\\hline",
            *rows,
            "\\hline",
            "\\end{tabular}",
            "",
        ]
    )


def formula(form: type[Law]) -> str:
    """Return the formula of a form as LaTeX: the mathematics of its docstring, joined."""
    text = (form.__doc__ or "").partition("Attributes\n")[0]
    found = re.findall(r":math:`([^`]+)`|\.\. math:: (.+?)\n\s*\n", text, re.DOTALL)
    parts = [" ".join((inline or block).split()) for inline, block in found]
    if parts and "=" not in parts[0]:
        parts[0] = f"\\mathrm{{{form.target}}} = ".replace("_", "\\_") + parts[0]
    return ", \\quad ".join(parts)


def _target(saved: SavedLaw) -> str:
    if saved.law.target == "loss_nats":
        return f"the loss ({saved.unit})"
    return f"the {saved.law.target}"


def _spans(saved: SavedLaw) -> list[tuple[str, tuple[float, float]]]:
    return [(name, saved.domain[name]) for name in saved.law.columns if name in saved.domain]


def _tex_name(name: str) -> str:
    head, _, index = name.partition("_")
    return (f"\\{head}" if head in _GREEK else head) + (f"_{{{index}}}" if index else "")
