"""How a file of runs is read, apart from the mapping of its columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scalelab.errors import UsageError
from scalelab.logs.losses import checked_unit
from scalelab.records.metric import parse_metric
from scalelab.records.names import names_of_text, text_of_names


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How a file of runs is read.

    Attributes
    ----------
    format : str or None
        Format of the log, such as ``nanogpt``, or ``table``; None recognises it.
    loss_unit : str or None
        Unit of the losses: nats, bits, bits-per-byte or perplexity; None takes it from the name of
        the column.
    includes_unfinished : bool
        Whether to keep runs that did not reach their planned end.
    best_of : tuple of str
        Columns, such as ``lr``; of rows that differ only in these, the lowest loss is kept.
    mean_of : tuple of str
        Columns, such as ``seed``; rows that differ only in these become one row of mean loss.
    last_of : str or None
        Column that names the run; of the checkpoints of a run, the one of most tokens is kept.
    metric : str or None
        Which loss is read, see `scalelab.records.metric.parse_metric`; None reads the held-out
        loss.
    exclude : tuple of str
        Runs to leave out: run_ids, or lines of a table.

    Raises
    ------
    UsageError
        If the format, the unit or the metric is not known.
    """

    format: str | None = None
    loss_unit: str | None = None
    includes_unfinished: bool = False
    best_of: tuple[str, ...] = ()
    mean_of: tuple[str, ...] = ()
    last_of: str | None = None
    metric: str | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.format is not None:
            from scalelab.logs.registry import checked_format  # all formats: 20 ms

            checked_format(self.format)
        if self.loss_unit is not None:
            object.__setattr__(self, "loss_unit", checked_unit(self.loss_unit))
        if self.metric is not None:
            metric = parse_metric(self.metric)
            object.__setattr__(self, "metric", None if metric.is_default else metric.text)
        for name in ("best_of", "mean_of"):
            given: Sequence[str] = getattr(self, name)
            if isinstance(given, str):
                object.__setattr__(self, name, split_names(given, name))
        if isinstance(self.exclude, str):
            object.__setattr__(self, "exclude", names_of_text(self.exclude))

    def as_dict(self) -> dict[str, object]:
        """Return the settings that are not at their default."""
        default = Reading()
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name in self.__slots__
            if (value := getattr(self, name)) != getattr(default, name)
        }

    def words(self) -> list[str]:
        """Return the options of the command line that read a file this way."""
        words = []
        for name, value in self.as_dict().items():
            flag = f"--{'include_unfinished' if value is True else name}".replace("_", "-")
            text = text_of_names(map(str, value)) if isinstance(value, list) else value
            words += [flag] if value is True else [flag, str(text)]
        return words


def split_names(text: str, option: str) -> tuple[str, ...]:
    """Return the columns of ``lr,batch``.

    Raises
    ------
    UsageError
        If a name is empty.
    """
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        flag = option.replace("_", "-")
        raise UsageError(
            f"--{flag} {text!r}", "names of columns with commas", f"Write for example --{flag} lr."
        )
    return names


def reading_of_texts(
    *,
    format: str | None = None,
    loss_unit: str | None = None,
    includes_unfinished: bool = False,
    best_of: str | None = None,
    mean_of: str | None = None,
    last_of: str | None = None,
    metric: str | None = None,
    exclude: str | None = None,
) -> Reading:
    """Return the reading of options as a user types them, columns as ``lr,batch``.

    Raises
    ------
    UsageError
        If an option is not valid.
    """
    return Reading(
        format=format,
        loss_unit=loss_unit,
        includes_unfinished=includes_unfinished,
        best_of=() if best_of is None else split_names(best_of, "best_of"),
        mean_of=() if mean_of is None else split_names(mean_of, "mean_of"),
        last_of=last_of,
        metric=metric,
        exclude=() if exclude is None else names_of_text(exclude),
    )
