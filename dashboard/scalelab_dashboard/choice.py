"""The choice in the sidebar, which all views show: a value, and the forms and levels there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scalelab_dashboard import queries
from scalelab_dashboard.fits import FitKey
from scalelab_dashboard.tables_of import Table

if TYPE_CHECKING:
    from scalelab_dashboard.data import Source

FORMS = ("chinchilla", "tied", "gamma", "kaplan")
EXPERT_FORMS = ("granularity", "routed", "experts", "sparsity")
"""Further forms where runs have experts."""
LEVELS = (80, 90, 95)
"""In per cent, as in the URL."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The choice in the sidebar, which all views show.

    Attributes
    ----------
    results : str
        The results folder.
    stamp : str
        State of the snapshot or table; empty if there is none.
    source : Source or None
        The sweep or import, if one is chosen.
    table : Table or None
        The table, if one is chosen.
    param_convention, flop_convention : str or None
        Counting conventions of N and C; None: those of the store or table.
    form : str
    level : float
    key : FitKey or None
        The fit of this choice; None if there is nothing to fit.
    metrics : tuple of str
        Every metric of these runs.
    whole : FitKey or None
        The same fit without excluded runs.
    excluded : tuple of str
        Runs, or lines of a table, that are left out.
    """

    results: str
    stamp: str
    source: Source | None = None
    table: Table | None = None
    param_convention: str | None = None
    flop_convention: str | None = None
    form: str = "chinchilla"
    level: float = 0.9
    key: FitKey | None = None
    metrics: tuple[str, ...] = ()
    whole: FitKey | None = None
    excluded: tuple[str, ...] = ()
    labels: tuple[str, ...] = field(default=())
    keys: Mapping[str, FitKey] = field(default_factory=dict, hash=False, compare=False)

    @property
    def shown(self) -> str:
        """Name of what is shown."""
        if self.table is not None:
            return self.table.label
        return "" if self.source is None else self.source.name

    @property
    def has_mixture(self) -> bool:
        """Whether the runs mix sources of text in different proportions."""
        if self.table is not None:
            return queries.has_weights(self.table.path, self.stamp, self.table.reading)
        return self.source is not None and self.source.has_mixture

    def words(self, *more: str) -> list[str]:
        """Return the ``scalelab fit`` command that gives the same answer."""
        words = ["scalelab", "fit"]
        if self.table is not None:
            words += ["--from", self.table.path]
        elif self.source is not None:
            words += ["--results", self.results, "--sweep", self.source.name]
        mapping = dict(self.key.mapping) if self.key is not None else {}
        if mapping:
            words += ["--map", ",".join(f"{ours}={theirs}" for ours, theirs in mapping.items())]
        if self.key is not None:
            words += self.key.reading.words()
        if self.form != FORMS[0]:
            words += ["--form", self.form]
        if self.level != 0.9:
            words += ["--level", f"{self.level:g}"]
        if self.key is not None and self.key.holdout:
            words += ["--holdout", self.key.holdout]
        return [*words, *more]
