"""Types of specification fields that are read from text: ranges, quantities, time, memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo

from scalelab.corpus.eval_text import EvalText, read_eval_sets
from scalelab.corpus.tokenizer_names import tokenizer_name
from scalelab.errors import UsageError
from scalelab.sweep.gpu_counts import read_gpu_counts
from scalelab.sweep.option import Metavar
from scalelab.sweep.shape_list import ListedShape, parse_shape_list
from scalelab.sweep.site_options import SiteValue, read_site_options
from scalelab.units import parse_quantity, parse_range

LARGEST_ASPECT = 4096
LARGEST_QUANTITY = 1e36
"""Upper bound of FLOPs, parameters and tokens; sums of such values stay finite."""


def _reader(read: Callable[[Any, str], Any], input_type: Any) -> BeforeValidator:
    """Return a validator that reads text with a function of (value, field name)."""

    def validate(value: Any, info: ValidationInfo) -> Any:
        try:
            return read(value, str(info.field_name))
        except UsageError as error:
            raise ValueError(error) from None  # pydantic adds the path of the field

    return BeforeValidator(validate, json_schema_input_type=input_type)


def _read_range(value: Any, name: str) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(sorted(parse_quantity(item, what=name) for item in value))
    return parse_range(str(value), what=name) if isinstance(value, (str, int, float)) else value


def _read_quantity(value: Any, name: str) -> Any:
    return parse_quantity(value, what=name) if isinstance(value, (str, int, float)) else value


def _read_count(value: Any, name: str) -> Any:
    return round(parse_quantity(value, what=name)) if isinstance(value, str) else value


def _read_auto_count(value: Any, name: str) -> Any:
    if value == "auto":
        return 0
    if isinstance(value, str) and not value.strip().isdecimal():
        raise UsageError(
            f"{name} {value!r}", "auto, or a whole number from 1", "auto is the default."
        )
    return value


def _read_integers(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return tuple(value.split(","))
    return (value,) if isinstance(value, int) else value


def _read_texts(value: Any, name: str) -> Any:
    return (value,) if isinstance(value, str) else value


def _read_tokenizer(value: Any, name: str) -> Any:
    return tokenizer_name(value) if isinstance(value, str) else value


def _read_steps(value: Any, name: str) -> Any:
    """Return a share of a run's steps, below 1, or a whole number of steps."""
    is_text = isinstance(value, str) and value.strip() != "0"
    number = parse_quantity(value, what=name) if is_text else value
    if isinstance(number, (int, float)) and number >= 1 and number != round(number):
        raise UsageError(
            f"{name} = {value}",
            "a share of the steps below 1, or a whole number of steps",
            f"Write {round(number)} for steps, or for example 0.1 for a share.",
        )
    return number


def _read_ends(value: Any, name: str) -> Any:
    return value if not isinstance(value, str) else parse_ends(value, name)


def parse_ends(text: str, name: str) -> tuple[float, float]:
    """Return the two ends of ``LOW..HIGH``.

    Raises
    ------
    UsageError
        When the text is not such a range.
    """
    if ".." not in text:
        raise UsageError(f"{name} {text!r}", "a range LOW..HIGH", "Write for example 1e-3..3e-2.")
    ends = parse_range(text, what=name)
    return float(ends[0]), float(ends[-1])


def parse_aspect(value: Any, name: str = "aspect") -> Any:
    """Return widths with their aspects, by increasing width; ``power`` has none.

    Raises
    ------
    UsageError
        When the value is not ``power``, a number from 1, or ``width:number,..``.
    """
    if value == "power":
        return ()
    if isinstance(value, Mapping):
        value = ",".join(f"{width}:{aspect}" for width, aspect in value.items())
    if isinstance(value, (int, float)):
        value = str(value)
    if not isinstance(value, str):
        return value
    found = {}
    for part in value.split(","):
        width, _, aspect = part.rpartition(":")
        try:
            pair = int(width or 1), float(aspect)
        except ValueError:
            pair = 0, 0.0
        is_alone = not width and "," not in value
        if not (pair[0] > 0 and 1 <= pair[1] <= LARGEST_ASPECT and (width or is_alone)):
            raise UsageError(
                f"{name} {part.strip()!r}",
                f"power, a number from 1 to {LARGEST_ASPECT}, or width:number,.. with d_model / "
                "n_layers at these widths",
                "For 64 at every width, write 64; for 16 at 64 and 64 at 1024, 64:16,1024:64.",
            )
        found[pair[0]] = pair[1]
    return tuple(sorted(found.items()))


def parse_minutes(value: Any, name: str = "time") -> Any:
    """Return the minutes of a SLURM time limit, seconds rounded up; numbers are minutes already.

    Raises
    ------
    UsageError
        When the text is not ``MINUTES``, ``H:MM:SS`` or ``D-HH:MM:SS``.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):(\d\d):(\d\d))|(\d+)", value.strip())
    if match is None:
        raise UsageError(
            f"{name} {value!r}", "minutes, H:MM:SS or D-HH:MM:SS", "For 4 hours, write 4:00:00."
        )
    if match[5] is not None:
        return int(match[5])
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()[:4])
    return (days * 24 + hours) * 60 + minutes + (seconds > 0)


def parse_gigabytes(value: Any, name: str = "memory") -> Any:
    """Return the gigabytes of an amount of memory; a bare number is gigabytes.

    Raises
    ------
    UsageError
        When the text is not a number, optionally followed by M, G or T.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT]?)B?", value.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(
            f"{name} {value!r}", "GB, or a number with M, G or T", "For 16 GB, write 16G."
        )
    return float(match[1]) * {"M": 1 / 1024, "": 1.0, "G": 1.0, "T": 1024.0}[match[2].upper()]


def _read_gpu_counts(value: Any, name: str) -> Any:
    return read_gpu_counts(value)


def _read_site_options(value: Any, name: str) -> Any:
    return read_site_options(value)


def _read_eval_sets(value: Any, name: str) -> Any:
    return read_eval_sets(value)


_Bounded = Annotated[float, Field(le=LARGEST_QUANTITY)]
_Text = str | float
Quantities = Annotated[
    tuple[_Bounded, ...], _reader(_read_range, _Text | list[_Text]), Metavar("<range>")
]
Quantity = Annotated[_Bounded, _reader(_read_quantity, _Text), Metavar("<quantity>")]
Count = Annotated[int, _reader(_read_count, _Text), Metavar("<quantity>")]
AutoCount = Annotated[int, _reader(_read_auto_count, str | int), Metavar("auto|<int>")]
"""A number; ``auto`` is 0."""
Integers = Annotated[
    tuple[int, ...], _reader(_read_integers, str | int | list[int]), Metavar("<int,..>")
]
Texts = Annotated[tuple[str, ...], _reader(_read_texts, str | list[str])]
"""Texts; sweep files may have one without a list."""
TokenizerName = Annotated[str, _reader(_read_tokenizer, str)]
StepsOrShare = Annotated[float, _reader(_read_steps, _Text), Metavar("<share|steps>")]
"""Steps of a run: a share below 1, or a whole number."""
Minutes = Annotated[int, _reader(parse_minutes, str | int), Metavar("<time>")]
Gigabytes = Annotated[float, _reader(parse_gigabytes, _Text), Metavar("<memory>")]
GpuCounts = Annotated[
    int | str,
    _reader(_read_gpu_counts, int | str | dict[str, int]),
    Metavar("<int>|<rules>"),
]
"""A number of GPUs, or conditions on the FLOPs of a run as text (`scalelab.sweep.gpu_counts`)."""
SiteOptions = Annotated[
    dict[str, SiteValue],
    _reader(_read_site_options, dict[str, SiteValue] | str | list[str]),
    Metavar("<key=value>"),
]
"""Options of sbatch by long name."""
EvalTexts = Annotated[
    dict[str, EvalText],
    _reader(_read_eval_sets, dict[str, str | list[str] | EvalText] | list[str]),
    Metavar("<name=path>"),
]
"""Evaluation texts by name (`scalelab.corpus.eval_text`)."""
Ends = Annotated[
    tuple[float, float], _reader(_read_ends, str | list[float]), Metavar("<low..high>")
]
Aspect = Annotated[
    tuple[tuple[int, float], ...],
    _reader(parse_aspect, str | float | dict[int, float]),
    Metavar("<aspect>"),
]
"""Widths with their ``d_model / n_layers``; empty for the power law."""
ShapeList = Annotated[
    tuple[ListedShape, ...],
    _reader(parse_shape_list, str | list[str | ListedShape]),
    Metavar("<shapes>"),
]
