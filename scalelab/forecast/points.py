"""Runs as the forecaster sees them: columns, the coordinates of the misfit, the growth of noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.theory.accounting import train_flops_6nd

NOISE_GROWTH = 0.15
"""Exponent g: the noise is 1.4 times larger for a tenth of the compute."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Points:
    """Finished runs, run pool and targets, as columns.

    Attributes
    ----------
    columns : Mapping[str, ndarray of shape (n,)]
        ``n_params``, ``n_tokens`` and, where data repeat, ``unique_tokens``.
    reference_flops : float
        C_ref, the compute at which the noise is sigma.
    """

    columns: Mapping[str, FloatArray]
    reference_flops: float

    def __len__(self) -> int:
        return len(self.columns["n_params"])

    def at(self, where: Any) -> Points:
        """Return the points at these positions."""
        return Points(
            columns={name: values[where] for name, values in self.columns.items()},
            reference_flops=self.reference_flops,
        )

    @property
    def features(self) -> FloatArray:
        """Coordinates of the misfit, shape (n, q): log N, log D and the log of the repeats."""
        N, D = self.columns["n_params"], self.columns["n_tokens"]
        axes = [np.log(N), np.log(D)]
        if "unique_tokens" in self.columns:
            axes.append(np.log(np.maximum(D / self.columns["unique_tokens"], 1.0)))
        return np.stack(axes, axis=1)

    @property
    def noise_growth(self) -> FloatArray:
        """Noise relative to that at the reference compute, shape (n,); at least 1."""
        flops = train_flops_6nd(self.columns["n_params"], self.columns["n_tokens"])
        return np.asarray(np.minimum(flops / self.reference_flops, 1.0) ** -NOISE_GROWTH)
