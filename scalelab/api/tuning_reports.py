"""The reports of `tune` and `tune_law`: their sentence, their JSON, and views in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from scalelab.api.notebook_view import NotebookView
from scalelab.errors import EXIT_OK, NotIdentifiedError
from scalelab.units import plural

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from scalelab.fit.outcome import FitWarning
    from scalelab.tune.law import Estimate, TuningLaw
    from scalelab.tune.search import SearchReport

UNKNOWN = {"value": None, "low": None, "high": None}


def short_estimate(found: Estimate) -> str:
    """Return a value with its limits in brackets."""
    from scalelab.units import format_quantity

    if found.low is None or found.high is None:
        return format_quantity(found.value)
    low, high = format_quantity(found.low), format_quantity(found.high)
    return f"{format_quantity(found.value)} [{low}, {high}]"


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class TuningAnswer(NotebookView):
    """The answer of `tune_law`.

    Attributes
    ----------
    n_params, n_tokens : float or None
        The requested model.
    lr, batch_tokens : Estimate or None
        Best values for it; None if no model was requested or they are not identified.
    law : TuningLaw or None
        None if it is not identified.
    warnings : tuple of FitWarning
    """

    n_params: float | None
    n_tokens: float | None
    lr: Estimate | None
    batch_tokens: Estimate | None
    law: TuningLaw | None
    warnings: tuple[FitWarning, ...]

    @property
    def exit_code(self) -> int:
        """0, or 4 when the law or the prediction is not identified."""
        is_lost = any(warning.code == "not_identified" for warning in self.warnings)
        return NotIdentifiedError.exit_code if is_lost else EXIT_OK

    def sentence(self) -> str:
        """Return the answer: the best values of the requested model, else of the largest cell."""
        from scalelab.units import format_quantity

        law, lr, batch = self.law, self.lr, self.batch_tokens
        n_params, n_tokens, whose = self.n_params, self.n_tokens, ""
        if law is not None and lr is None and n_params is None:
            (n_params, n_tokens), whose = law.largest_cell(), ", your largest cell"
            try:
                lr, batch = law.best(n_params, n_tokens)
            except NotIdentifiedError:
                lr = None
        if lr is None or n_params is None or n_tokens is None:
            return "No answer: these runs do not determine the best learning rate."
        size = f"N {format_quantity(n_params)} on D {format_quantity(n_tokens)} tokens{whose}"
        words = f"For {size}: learning rate {short_estimate(lr)}"
        if batch is not None:
            words += f", batch {short_estimate(batch)} tokens"
        if law is not None:
            one = law.lr()
            words += f". The rate grows as N^{one.p.value:.2f} D^{one.q.value:.2f}"
        return f"{words}."

    def _lines(self) -> Iterator[str]:
        if self.law is None:
            yield "TuningAnswer: the law of the best learning rate is not identified"
        else:
            runs, cells = plural(self.law.n_rows, "run"), plural(self.law.n_cells, "cell")
            yield f"TuningAnswer: lr = k N^p D^q from {runs} in {cells}"
            for name, one, low, high in self._exponents():
                limits = "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
                yield f"{name} = {one:.3g}{limits}"
        for name, found in (("lr", self.lr), ("batch_tokens", self.batch_tokens)):
            if found is not None:
                yield f"best {name}: {found.value:.4g}"
        yield from (f"warning: {warning.message}" for warning in self.warnings[:3])

    def _exponents(self) -> list[tuple[str, float, float | None, float | None]]:
        laws = {} if self.law is None else {"lr": self.law.lr(), "batch": self.law.batch_tokens()}
        return [
            (f"{name} {letter}", one.value, one.low, one.high)
            for name, law in laws.items()
            if law is not None
            for letter, one in (("p", law.p), ("q", law.q))
        ]

    def to_frame(self) -> pd.DataFrame:
        """Return the exponents of N (p) and D (q) with their intervals."""
        import pandas as pd

        return pd.DataFrame(self._exponents(), columns=["name", "value", "low", "high"])

    def plot(self) -> Figure | None:
        """Return the exponents with their intervals; None if the law is not identified."""
        from scalelab.report.plots import interval_figure

        rows = self._exponents()
        return interval_figure(rows, "exponent of N (p) or D (q)") if rows else None

    def to_dict(self) -> dict[str, Any]:
        """Return the answer of ``scalelab tune --json``."""
        return {
            "lr": UNKNOWN if self.lr is None else asdict(self.lr),
            "batch_tokens": UNKNOWN if self.batch_tokens is None else asdict(self.batch_tokens),
            "law": None if self.law is None else law_as_dict(self.law),
            "warnings": [{"code": w.code, "message": w.message} for w in self.warnings],
        }


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Tuning(NotebookView):
    """The answer of `tune`: how the search ended, and the law of its runs.

    Attributes
    ----------
    name : str
        Name of the tuning; ``tuned:NAME`` is its learning-rate rule.
    search : SearchReport
    answer : TuningAnswer or None
        None if the search was interrupted.
    others : Mapping[str, tuple of float]
        Median, minimum and maximum of each other hyperparameter over the best quarter of the runs
        of each cell.
    """

    name: str
    search: SearchReport
    answer: TuningAnswer | None
    others: Mapping[str, tuple[float, float, float]]

    def _lines(self) -> Iterator[str]:
        counts = ", ".join(f"{n} {status}" for status, n in self.search.counts.items())
        end = "interrupted" if self.answer is None else f"its rule is tuned:{self.name}"
        yield f"Tuning {self.name}: {counts}; {end}"
        if self.answer is not None:
            yield repr(self.answer)

    def to_frame(self) -> pd.DataFrame:
        """Return the exponents of the laws, as `TuningAnswer.to_frame`."""
        import pandas as pd

        return pd.DataFrame() if self.answer is None else self.answer.to_frame()

    def plot(self) -> Figure | None:
        """Return the exponents with their intervals, if the search is complete."""
        return None if self.answer is None else self.answer.plot()

    def to_dict(self) -> dict[str, Any]:
        """Return the answer of ``scalelab tune --json``, which ``tuned.json`` also has."""
        search = self.search
        return {
            **({} if self.answer is None else self.answer.to_dict()),
            "name": self.name,
            "status": "interrupted" if search.is_interrupted else "ok",
            "trials": search.counts,
            "wall_s": search.wall_s,
            "others": {
                name: dict(zip(("value", "low", "high"), values, strict=True))
                for name, values in self.others.items()
            },
        }


def law_as_dict(law: TuningLaw) -> dict[str, Any]:
    """Return a law as ``--json`` and ``law.json`` have it."""
    from scalelab.tune.excess_loss import SHAPE

    batch = law.batch_tokens()
    shape = dict.fromkeys(SHAPE) | dict(
        zip(law.axes.shape_names, law.theta[-len(law.axes.shape_names) :].tolist(), strict=True)
    )
    return {
        "form": "k N^p D^q",
        "param_convention": law.param_convention,
        "lr": asdict(law.lr()),
        "batch_tokens": None if batch is None else asdict(batch),
        "valley": shape,
        "noise": law.scale.noise,
        "misfit": law.scale.misfit,
        "n_rows": law.n_rows,
        "n_cells": law.n_cells,
        "level": law.level,
        "bootstrap": {"of": law.bootstrap, "k": len(law.replicates)},
    }
