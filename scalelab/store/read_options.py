"""What a user says about a table: the mapping of its columns, conditions, conventions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from scalelab.errors import UsageError, did_you_mean
from scalelab.store.columns import MAPPED, SIZES, likely_columns
from scalelab.store.reading import Reading

_OPENING = {"(": ")", "[": "]", "{": "}"}


def parse_map(texts: Sequence[str]) -> dict[str, str]:
    """Return ``{our column: their column or SQL expression}`` from ``n_params=params,flops=c``.

    Commas and ``=`` inside brackets and quotes are part of an expression:
    ``n_params=coalesce(a, try_cast(b AS DOUBLE)),loss_nats="loss, final"``.

    Raises
    ------
    UsageError
        If an item is not of the form OURS=THEIRS or maps a column twice.
    """
    mapping: dict[str, str] = {}
    for text in texts:
        for item in _items(text):
            ours, equals, theirs = (part.strip() for part in item.partition("="))
            if not (equals and ours.isidentifier() and theirs) or ours in mapping:
                raise UsageError(
                    f"--map {item.strip()!r}",
                    "OURS=THEIRS pairs, each of our columns once",
                    "For example: --map n_params=params,loss_nats=val_loss",
                )
            mapping[ours] = _unquoted(theirs)
    return mapping


def _items(text: str) -> Iterator[str]:
    """Yield the parts between commas that are outside brackets and quotes.

    Raises
    ------
    UsageError
        If a bracket or quote is not closed.
    """
    open_until: list[str] = []
    start = 0
    for i, sign in enumerate(text):
        if open_until and open_until[-1] in "\"'":
            if sign == open_until[-1]:
                open_until.pop()
        elif sign in "\"'":
            open_until.append(sign)
        elif sign in _OPENING:
            open_until.append(_OPENING[sign])
        elif open_until and sign == open_until[-1]:
            open_until.pop()
        elif sign == "," and not open_until:
            yield text[start:i]
            start = i + 1
    if open_until:
        raise UsageError(
            f"--map {text!r}, in which {open_until[-1]} is missing",
            "closed brackets and quotes",
            'For example: --map "n_params=coalesce(params, size)"',
        )
    yield text[start:]


def _unquoted(theirs: str) -> str:
    """Return the name of a quoted column, or the text as it is."""
    inner = theirs[1:-1]
    is_name = len(theirs) > 2 and theirs[0] == theirs[-1] == '"' and '"' not in inner
    return inner if is_name else theirs


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """How to read a table.

    Attributes
    ----------
    mapping : Mapping[str, str]
        Our column name to the table's column name, or to a DuckDB expression over its columns
        (``n_tokens = steps * 524288``). Our name is one of `scalelab.store.columns.MAPPED`.
    where : str or None
        DuckDB condition on the table's columns; only rows for which it is true are read.
    marks : Mapping[str, str]
        Named conditions to evaluate on these rows.
    text_columns : sequence of str
        Text columns to keep in ``extra``, which contains all numeric columns anyway.
    needs : sequence of str
        Columns of N, D and C that the table must have or give by C = 6 N D.
    is_signed : bool
        Whether to accept losses of 0 and below.
    law_columns : sequence of str
        Columns of the law that reads the rows; a difference in these is not a mixture of runs.
    param_convention, flop_convention : str
        How the table counts N and C; ``unstated`` if unknown.
    reading : Reading
        Format and unit of the file, and which of its rows are kept.
    """

    mapping: Mapping[str, str] = field(default_factory=dict)
    where: str | None = None
    marks: Mapping[str, str] = field(default_factory=dict)
    text_columns: Sequence[str] = ()
    needs: Sequence[str] = SIZES
    is_signed: bool = False
    law_columns: Sequence[str] = ()
    param_convention: str = "unstated"
    flop_convention: str = "unstated"
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        if self.where is not None and not self.where.strip():
            raise UsageError(
                "an empty condition (--where)",
                'a condition on the table\'s columns, such as "n_params > 1e6"',
                "Remove --where to read all rows. A shell variable in it may be unset.",
            )
        for name in self.mapping:
            if name not in MAPPED:
                theirs = self.mapping[name]
                is_reversed = theirs in MAPPED and likely_columns(theirs, [name])
                raise UsageError(
                    f"--map {name}={theirs}, where {name} is not one of our columns",
                    f"OURS=THEIRS with OURS one of {', '.join(MAPPED)}",
                    f"Did you mean --map {theirs}={name}?"
                    if is_reversed
                    else did_you_mean(name, MAPPED) + "Write for example --map loss_nats=val_loss.",
                )
