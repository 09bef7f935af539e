"""How often runs repeat their text, and the warnings (`scalelab.theory.epochs`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scalelab.errors import UsageError
from scalelab.sweep.mixture import drawn_tokens
from scalelab.sweep.planned_run import DataFacts, PlannedRun
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.epochs import MAX_EPOCHS
from scalelab.units import format_quantity, plural


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeat:
    """How often runs repeat a text.

    Attributes
    ----------
    source : str
        Name of the source; empty for the only text.
    n_runs : int
        Runs that repeat it.
    epochs : float
        Largest number of epochs.
    unique_tokens : int
        Its training tokens.
    spec : RunSpec
        The run with the most epochs.
    """

    source: str
    n_runs: int
    epochs: float
    unique_tokens: int
    spec: RunSpec

    def warning(self, n_rows: int) -> str:
        """Return what to know of it before a launch."""
        verb = "repeats" if self.n_runs == 1 else "repeat"
        text = f"text of source {self.source}" if self.source else "text"
        found = (
            f"{self.n_runs} of {plural(n_rows, 'run')} {verb} {text}, up to {self.epochs:,.1f} "
            f"epochs of {format_quantity(self.unique_tokens)} unique tokens."
        )
        if self.epochs > MAX_EPOCHS:
            found += f" A launch refuses more than {MAX_EPOCHS:g} without --allow-repeats."
        return found

    def error(self) -> UsageError:
        """Return the error of too many epochs."""
        unique = format_quantity(self.unique_tokens)
        allowed = f"at most {MAX_EPOCHS:g} epochs, because further repeats improve the loss little"
        if not self.source:
            return UsageError(
                f"a run of {self.epochs:.1f} epochs over {unique} unique tokens",
                allowed,
                "Add text with --data corpus/, use smaller budgets, or add --allow-repeats.",
            )
        (weight,) = (s.weight for s in self.spec.mixture if s.name == self.source)
        most = weight * MAX_EPOCHS / self.epochs
        return UsageError(
            f"a run of {self.epochs:.1f} epochs over source {self.source}: {weight:g} of its "
            f"{format_quantity(self.spec.n_tokens)} tokens, from {unique} unique tokens",
            allowed,
            f"Add text with --mix-source {self.source}=PATH, give {self.source} at most "
            f"{most:.2g} of the tokens, train on fewer tokens, or add --allow-repeats.",
        )


def epochs_by_source(spec: RunSpec, data: DataFacts) -> dict[str, float]:
    """Return the epochs of a run over each source, ``""`` for its only text.

    Empty if the unique tokens are not known.
    """
    unique = {source.name: source.n_train_tokens for source in data.sources}
    if spec.mixture:
        return {name: n / unique[name] for name, n in drawn_tokens(spec).items()}
    return {} if data.n_train_tokens is None else {"": spec.n_tokens / data.n_train_tokens}


def find_repeats(rows: Sequence[PlannedRun], data: DataFacts) -> list[Repeat]:
    """Return each text that runs repeat, the most repeated one first."""
    unique = {source.name: source.n_train_tokens for source in data.sources}
    found: dict[str, list[tuple[float, RunSpec]]] = {}
    for row in rows:
        for name, epochs in epochs_by_source(row.spec, data).items():
            if epochs > 1:
                found.setdefault(name, []).append((epochs, row.spec))
    repeats = []
    for name, runs in found.items():
        epochs, spec = max(runs, key=lambda run: run[0])
        repeats.append(
            Repeat(
                source=name,
                n_runs=len(runs),
                epochs=epochs,
                unique_tokens=unique.get(name, data.n_train_tokens or 0),
                spec=spec,
            )
        )
    return sorted(repeats, key=lambda repeat: -repeat.epochs)
