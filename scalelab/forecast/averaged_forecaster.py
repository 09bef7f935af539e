"""The averaged forecaster: the average of several forms answers, with its ranges and level.

`scalelab.forecast.forecaster` says when it does, and what it has in common with one law.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import NotIdentifiedError
from scalelab.fit.intervals import Prediction
from scalelab.forecast.allocate import AVERAGED, Forecast, Request
from scalelab.forecast.averaged import AveragedFit
from scalelab.forecast.averaged_forecast import UNIQUE, average_forecast
from scalelab.forecast.averaged_optimum import flops_where
from scalelab.forecast.bands import Bands, averaged_bands
from scalelab.forecast.extrapolation import FittedRange
from scalelab.forecast.line import line_of
from scalelab.forecast.paths import paths_of
from scalelab.forecast.valley import valley_of
from scalelab.theory.accounting import tokens_at_6nd
from scalelab.theory.laws.data_constrained import R_D, R_N, log_worth

LOSS = "loss_nats"
SHOWN_WEIGHT = 0.005
"""Weight from which a form of the average is named."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AveragedForecaster:
    """The average of several forms, with its ranges and the level of its intervals."""

    found: AveragedFit
    fitted: FittedRange
    level: float = 0.9
    name = AVERAGED
    target = LOSS

    @property
    def label(self) -> str:
        """The forecaster in plain words."""
        forms = [name for name, weight in self.found.weights.items() if weight >= SHOWN_WEIGHT]
        return (
            f"average of {len(forms)} laws"
            if len(forms) > 1
            else f"{forms[0]} law with a misfit term"
        )

    def predict(self, columns: Mapping[str, FloatArray], level: float) -> Prediction:
        """Return predictions at m points."""
        return self.found.predict(columns, level)

    def forecast(self, request: Request) -> Forecast:
        """Return the answer to one request."""
        return average_forecast(self.found, request, fitted=self.fitted, level=self.level)

    def bands(self, flops: FloatArray) -> Bands | None:
        """Return the compute-optimal frontier with bands of joint draws."""
        return averaged_bands(self.found, flops, self.level)

    def losses(self, n: FloatArray, d: FloatArray, unique: float | None) -> FloatArray:
        """Return the expected losses of k models; quick, for a search.

        Beyond the valley of a compute they do not fall again (`Valley.rising`).
        """
        line = line_of(self.found.rows)
        if line is not None:
            raise NotIdentifiedError(
                f"a search over N and D from runs that lie on {line.describe()}",
                "runs that spread over N and D",
                f"Name runs there, for example {line.candidate()}, or add runs off it, for example "
                f"{line.added()}.",
            )
        columns = self._columns(n, d, unique)
        if UNIQUE in columns:
            logs = paths_of(self.found).mean(columns)
        else:
            logs = valley_of(self.found).rising(columns)
        with np.errstate(over="ignore"):  # losses too large for a float are infinite
            return np.exp(logs)

    def in_valley(self, n_params: float, n_tokens: float, unique: float | None) -> bool:
        """Return whether the loss has not fallen away from the valley of the runs.

        Without a split of N and D, or where the rows show what repeats are worth, it is True: there
        is no valley to leave.
        """
        columns = self._columns(np.array([n_params]), np.array([n_tokens]), unique)
        if UNIQUE in columns or line_of(self.found.rows) is not None:
            return True
        return bool(valley_of(self.found).contains(columns)[0])

    def run(
        self, n_params: float, n_tokens: float, unique: float | None, target: float | None
    ) -> tuple[Prediction, float | None]:
        """Return the loss of one run with its intervals, and the probability to miss a target."""
        line = line_of(self.found.rows)
        if line is not None and not line.has(n_params, n_tokens):
            raise NotIdentifiedError(
                f"a candidate off the runs, which lie on {line.describe()}",
                "a candidate among those runs",
                f"Name one, for example {line.candidate()}, or add runs off the line, for example "
                f"{line.added()}.",
            )
        at = self._columns(np.array([n_params]), np.array([n_tokens]), unique)
        found = self.found.predict(at, self.level)
        if target is None:
            return found, None
        below = self.found.at(at).probability_below(np.log([target]), is_new_run=True)
        return found, 1 - float(below[0])

    def _columns(self, n: FloatArray, d: FloatArray, unique: float | None) -> dict[str, FloatArray]:
        """Return N and D, discounted for repeats unless the rows show what repeats are worth."""
        if unique is None:
            return {"n_params": n, "n_tokens": d}
        distinct = np.minimum(unique, d)
        if UNIQUE in self.found.rows.columns:
            return {"n_params": n, "n_tokens": d, UNIQUE: distinct}
        # Muennighoff et al. 2023, section 3: the parameters that the distinct tokens call for.
        called_for = np.minimum(n, _optimal_params(self.found, unique, self.fitted.flops))
        return {
            "n_params": called_for * np.exp(log_worth(np.log(n / called_for), np.log(R_N))),
            "n_tokens": distinct * np.exp(log_worth(np.log(d / distinct), np.log(R_D))),
        }


@lru_cache(maxsize=64)
def _optimal_params(found: AveragedFit, n_tokens: float, start: float) -> float:
    """Return the N for which these tokens are compute-optimal."""
    return float(tokens_at_6nd(flops_where(found, "n_tokens", n_tokens, start), n_tokens))
