"""Types of logged runs: what a reader returns, and what is derived from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from scalelab.arrays import FloatArray
from scalelab.logs.history import History
from scalelab.logs.values import Scalar

FINISHED, UNFINISHED = "finished", "unfinished"


@dataclass(frozen=True, kw_only=True, slots=True)
class Derived:
    """A value and the sentence that says where it comes from.

    Attributes
    ----------
    value : float
        The value, in the unit of its column.
    source : str
        For example ``max_iters x batch_size x block_size``.
    is_counted : bool
        For N: whether all parameters are counted (convention ``chinchilla``).
    """

    value: float
    source: str
    is_counted: bool = False


@dataclass(kw_only=True, slots=True)
class RawRun:
    """What a reader found in one log; `scalelab.logs.derive` completes it.

    Attributes
    ----------
    reader : str
        Name of the format.
    path : Path
        File or folder of the log.
    name : str
        Name of the run.
    key : str
        Logs of the same reader and key are parts of one run, and are joined in their order.
    order : tuple
        Sort key of the parts of a run: the part that was written last is the last.
    config : dict
        Settings by path.
    history : History
        Logged values by step.
    summary : dict
        Values that the log states without a step.
    steps_done : int or None
        Optimizer steps taken, if the trainer states them; then the end is exact.
    planned_steps, planned_tokens : float or None
        Planned length, where the format itself states it.
    is_step_from_zero : bool
        Whether step s is logged after s + 1 optimizer steps.
    status : str
        ``finished`` or the trainer's word for another end; empty if not stated.
    unfinished : str
        Why the log shows that the run did not end as planned; empty otherwise.
    n_params, n_params_kaplan, tokens_per_step : Derived or None
        Counts that the format itself states.
    notes : list of str
        What a user should know about this log.
    """

    reader: str
    path: Path
    name: str
    key: str = ""
    order: tuple[float | str, ...] = ()
    config: dict[str, Scalar] = field(default_factory=dict)
    history: History = field(default_factory=History)
    summary: dict[str, float] = field(default_factory=dict)
    steps_done: int | None = None
    planned_steps: float | None = None
    planned_tokens: float | None = None
    is_step_from_zero: bool = False
    status: str = ""
    unfinished: str = ""
    n_params: Derived | None = None
    n_params_kaplan: Derived | None = None
    tokens_per_step: Derived | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedRun:
    """One run that another program trained and logged.

    Attributes
    ----------
    name : str
        Name of the run.
    reader : str
        Format of the log.
    path : str
        Its file or folder.
    config : Mapping[str, Scalar]
        Settings by path, such as ``model/n_layers``.
    curve : Mapping[str, ndarray of shape (m,)]
        ``step``, ``tokens`` and ``loss_nats`` of the training curve, each step once; ``tokens`` is
        NaN where it is unknown.
    final : Mapping[str, float]
        Last value of every logged series and of the summary.
    last_step : int or None
        Highest logged step.
    status : str
        ``finished`` or ``unfinished``.
    incomplete : str
        Why the run counts as unfinished; empty if it is finished.
    derived : Mapping[str, Derived]
        Our columns with their sources: ``n_params``, ``n_tokens``, ``loss_nats``, ``lr``, ..
    loss_unit : str
        Unit of ``loss_nats``: nats or bits per byte.
    is_validation : bool
        Whether ``loss_nats`` is a loss on held-out data.
    notes : tuple of str
        What a user should know about this log.
    """

    name: str
    reader: str
    path: str
    config: Mapping[str, Scalar]
    curve: Mapping[str, FloatArray]
    final: Mapping[str, float]
    last_step: int | None
    status: str
    incomplete: str
    derived: Mapping[str, Derived]
    loss_unit: str = "nats"
    is_validation: bool = False
    notes: tuple[str, ...] = ()


class LogReader(Protocol):
    """A reader of one format.

    Attributes
    ----------
    name : str
        Name for ``--format``.
    title : str
        Program and file, for messages and docs.
    """

    name: str
    title: str

    def sniff(self, path: Path, head: bytes) -> bool:
        """Return whether the file, whose first bytes are ``head``, is of this format."""
        ...

    def read(self, path: Path) -> Iterator[RawRun]:
        """Yield the runs of a file.

        Raises
        ------
        DataError
            If the content cannot be read.
        """
        ...
