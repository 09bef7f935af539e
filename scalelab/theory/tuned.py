"""Learning-rate and batch rules whose constants were measured: ``tuned:NAME``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scalelab.errors import SpecError
from scalelab.theory.schedule import Rule, RuleInputs

PREFIX = "tuned:"


@dataclass(frozen=True, slots=True)
class TunedConstants:
    """Constants that a tuning found: lr* = k N^p D^q, likewise for the batch.

    Attributes
    ----------
    name : str
        Name of the tuning.
    lr : tuple of float
        k, p, q of the learning rate.
    batch_tokens : tuple of float or None
        k, p, q of the batch in tokens; None if it was not varied.
    ridge : float
        Change of the log of the best rate with the log of the batch, at one N and D.
    param_convention : str
        How N is counted.
    """

    name: str
    lr: tuple[float, float, float]
    batch_tokens: tuple[float, float, float] | None
    ridge: float
    param_convention: str

    def lr_rule(self) -> Rule:
        """Return the rule of the learning rate, at the best batch and on the ridge at others."""
        k, p, q = self.lr
        words = f"{k:.4g} N^{p:.4g} D^{q:.4g}"
        if self.batch_tokens is not None:
            words += f" (batch / best)^{self.ridge:.3g}"
        return self._rule(words, self._best_lr)

    def batch_rule(self) -> Rule | None:
        """Return the rule of the batch, None if it was not tuned."""
        if self.batch_tokens is None:
            return None
        k, p, q = self.batch_tokens
        return self._rule(f"{k:.4g} N^{p:.4g} D^{q:.4g} tokens", self._best_batch)

    def _rule(self, words: str, value: Callable[[RuleInputs], float]) -> Rule:
        return Rule(
            name=PREFIX + self.name,
            formula=f"{words}, N {self.param_convention}",
            source=f"the runs of the tuning {self.name!r}",
            param_convention=self.param_convention,
            value=value,
        )

    def _best_lr(self, run: RuleInputs) -> float:
        best = self._at(self.lr, run)
        if self.batch_tokens is None or not run.batch_tokens:
            return best
        return float(best * (run.batch_tokens / self._best_batch(run)) ** self.ridge)

    def _best_batch(self, run: RuleInputs) -> float:
        assert self.batch_tokens is not None
        return self._at(self.batch_tokens, run)

    def _at(self, law: tuple[float, float, float], run: RuleInputs) -> float:
        k, p, q = law
        return float(k * run.n_params[self.param_convention] ** p * run.n_tokens**q)


def constants_from_law(name: str, law: Mapping[str, Any]) -> TunedConstants:
    """Return the constants in the ``law`` of ``scalelab tune --json``.

    Raises
    ------
    SpecError
        If it has no such law.
    """
    try:
        parts = {
            key: None
            if law[key] is None
            else tuple(float(law[key][part]["value"]) for part in ("k", "p", "q"))
            for key in ("lr", "batch_tokens")
        }
        return TunedConstants(
            name=name,
            ridge=float(law["valley"]["ridge"] or 0.0),
            param_convention=str(law["param_convention"]),
            **parts,  # type: ignore[arg-type]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(
            f"the law of the tuning {name!r}, without {error}",
            "the file that `scalelab tune` wrote",
            "Run the command of the tuning again; it fits the law again.",
        ) from None
