"""One case of the GPU programs and one goal, as plain data: the parent process imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CHECK, COMPILE, TIME = "check", "compile", "time"


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A function that a child process calls, and how long it may take.

    Attributes
    ----------
    name : str
        Name in the table and in the JSON file.
    call : str
        ``module:function``. The function takes ``is_tiny`` and the arguments, and returns figures
        that JSON can hold. ``says`` among them is the text for the table.
    arguments : Mapping
        Keyword arguments of the function.
    limit_s : float
        The child is killed after this many seconds.
    kind : str
        ``check``: a failure makes the program fail. ``compile``: its figures are not kept. Both
        run several at a time. ``time``: runs alone.
    """

    name: str
    call: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    limit_s: float = 60.0
    kind: str = TIME


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """A figure to reach, on the device for which it was set; shown as met or missed.

    Attributes
    ----------
    case, figure : str
        Case and key of its figure.
    wanted : float
        Smallest value.
    """

    case: str
    figure: str
    wanted: float
