"""The batch rule ``noise:NAME``: the gradient noise scale measured in the runs of a sweep.

A run with micro-batches measures the noise scale tr(Sigma) / |G|^2 in tokens. At that batch, a run
needs twice the fewest steps and twice the fewest tokens. The scale grows with the tokens seen and
hardly with the size, so the rule is a power law of D.

References
----------
McCandlish et al. 2018, arXiv:1812.06162, sections 2.2 and 2.3 (the noise scale).
Zhang et al. 2024, arXiv:2410.21676 (the critical batch follows D).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from scalelab.theory.schedule import Rule

NOISE_PREFIX = "noise:"


@dataclass(frozen=True, slots=True)
class NoiseConstants:
    """Constants of a measured rule: critical batch in tokens = k D^q.

    Attributes
    ----------
    name : str
        Sweep whose runs measured the noise scale.
    k, q : float
        Scale in tokens, and exponent of the training tokens D.
    n_runs : int
        Runs with a measurement.
    """

    name: str
    k: float
    q: float
    n_runs: int

    def batch_rule(self) -> Rule:
        """Return the rule of the batch."""
        return Rule(
            name=NOISE_PREFIX + self.name,
            formula=f"{self.k:.4g} D^{self.q:.3g} tokens, the noise scale of {self.n_runs} runs",
            source=f"the runs of the sweep {self.name!r}; McCandlish et al. 2018, arXiv:1812.06162",
            param_convention="",
            value=lambda run: float(self.k * run.n_tokens**self.q),
        )


def fit_noise_rule(name: str, measured: Sequence[tuple[float, float]]) -> NoiseConstants | None:
    """Return the power law through measurements, by least squares in logs.

    Parameters
    ----------
    name : str
        Sweep of the measurements.
    measured : sequence of (float, float)
        Training tokens D of a run and its noise scale in tokens, both above 0.

    Returns
    -------
    NoiseConstants or None
        None if the runs do not have at least two different D.
    """
    if len({n_tokens for n_tokens, _ in measured}) < 2:
        return None
    x = [math.log(n_tokens) for n_tokens, _ in measured]
    y = [math.log(scale) for _, scale in measured]
    mean_x, mean_y = fmean(x), fmean(y)
    spread = math.fsum((a - mean_x) ** 2 for a in x)
    q = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    return NoiseConstants(name, math.exp(mean_y - q * mean_x), q, len(measured))
