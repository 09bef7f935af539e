"""Published laws: constants with their source, without intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scalelab.forecast.extrapolation import fitted_range
from scalelab.forecast.law_file import SavedLaw
from scalelab.theory.laws.chinchilla import Chinchilla

if TYPE_CHECKING:
    from scalelab.forecast.fit_report import FitReport


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedLaw:
    """A law and the source of its constants."""

    law: Chinchilla
    source: str


PUBLISHED_LAWS = {
    "hoffmann": PublishedLaw(
        law=Chinchilla(A=406.4, B=410.7, E=1.69, alpha=0.34, beta=0.28),
        source="Hoffmann et al. 2022, arXiv:2203.15556, equation 10 (rounded)",
    ),
    "hoffmann-tex": PublishedLaw(
        law=Chinchilla(
            A=math.exp(6.0073404),
            B=math.exp(6.0179186),
            E=math.exp(0.5267228),
            alpha=0.33917084,
            beta=0.2849083,
        ),
        source="Hoffmann et al. 2022, digits left in the TeX source, by Besiroglu et al. 2024",
    ),
    "besiroglu": PublishedLaw(
        law=Chinchilla(A=482.006, B=2085.436, E=1.816864, alpha=0.3478131, beta=0.3658542),
        source="Besiroglu et al. 2024, arXiv:2404.10102, headline, at full precision",
    ),
    "besiroglu-huber": PublishedLaw(
        law=Chinchilla(A=477.826, B=2143.417, E=1.817218, alpha=0.3473105, beta=0.3671724),
        source="Besiroglu et al. 2024, notebook, plain sum of Huber 1e-3, true minimum",
    ),
}


def nearest_law(report: FitReport) -> str:
    """Return the published law whose D/N at the largest compute of the runs is nearest to theirs.

    That of the averaged frontier, else of the run of the lowest loss.
    """
    rows = report.observations
    flops = fitted_range(rows).flops
    best = int(np.argmin(rows.loss_nats))
    ratio = rows.n_tokens[best] / rows.n_params[best]
    if report.frontier:
        flops = report.frontier[0].flops
        ratio = report.frontier[0].n_tokens.value / report.frontier[0].n_params.value

    def distance(name: str) -> float:
        size, tokens = PUBLISHED_LAWS[name].law.optimal(flops)
        return abs(math.log(tokens / size / ratio))

    return min(PUBLISHED_LAWS, key=distance)


def as_saved(name: str) -> SavedLaw:
    """Return the published law of this name, without intervals; N counts all parameters."""
    published = PUBLISHED_LAWS[name]
    return SavedLaw(
        name=name,
        law=published.law,
        draws=np.empty((0, len(published.law.names()))),
        param_convention="chinchilla",
        flop_convention="6nd",
        provenance={"source": published.source},
    )
