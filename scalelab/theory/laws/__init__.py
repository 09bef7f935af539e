"""The law forms, one family per file; `LAWS` lists them and `law_named` finds one."""

from __future__ import annotations

from scalelab.errors import UsageError, did_you_mean
from scalelab.theory.laws.accuracy import Accuracy
from scalelab.theory.laws.base import Coordinate, Law
from scalelab.theory.laws.broken import Broken
from scalelab.theory.laws.chinchilla import Chinchilla, TiedExponents
from scalelab.theory.laws.data_constrained import DataConstrained
from scalelab.theory.laws.experts import Experts
from scalelab.theory.laws.farseer import Farseer
from scalelab.theory.laws.gamma import Gamma
from scalelab.theory.laws.kaplan import (
    ComputeFrontier,
    Kaplan,
    KaplanCompute,
    KaplanParams,
    KaplanTokens,
)
from scalelab.theory.laws.overtraining import Overtraining
from scalelab.theory.laws.parallel import Parallel
from scalelab.theory.laws.precision import (
    Precision,
    PrecisionTied,
    PrecisionWeights,
    PrecisionWeightsActivations,
)
from scalelab.theory.laws.rates import (
    BatchByCompute,
    BatchSize,
    CriticalBatch,
    LearningRate,
    LearningRateByCompute,
)
from scalelab.theory.laws.routed import Granularity, Routed
from scalelab.theory.laws.sparsity import Sparsity
from scalelab.theory.laws.vocabulary import Vocabulary

LAWS: tuple[type[Law], ...] = (
    Chinchilla,
    TiedExponents,
    Gamma,
    DataConstrained,
    Overtraining,
    Kaplan,
    KaplanParams,
    KaplanTokens,
    KaplanCompute,
    ComputeFrontier,
    Farseer,
    Routed,
    Granularity,
    Experts,
    Sparsity,
    Parallel,
    Vocabulary,
    Precision,
    PrecisionWeights,
    PrecisionWeightsActivations,
    PrecisionTied,
    Broken,
    LearningRate,
    BatchSize,
    LearningRateByCompute,
    BatchByCompute,
    CriticalBatch,
    Accuracy,
)


def law_named(name: str) -> type[Law]:
    """Return the form of this name; UsageError if there is none."""
    for law in LAWS:
        if law.name == name:
            return law
    known = [law.name for law in LAWS]
    raise UsageError(
        f"form {name!r}",
        f"one of {', '.join(known)}",
        f"{did_you_mean(name, known)}Use --form chinchilla.",
    )


__all__ = [
    "LAWS",
    "Accuracy",
    "BatchByCompute",
    "BatchSize",
    "Broken",
    "Chinchilla",
    "ComputeFrontier",
    "Coordinate",
    "CriticalBatch",
    "DataConstrained",
    "Experts",
    "Farseer",
    "Gamma",
    "Granularity",
    "Kaplan",
    "KaplanCompute",
    "KaplanParams",
    "KaplanTokens",
    "Law",
    "LearningRate",
    "LearningRateByCompute",
    "Overtraining",
    "Parallel",
    "Precision",
    "PrecisionTied",
    "PrecisionWeights",
    "PrecisionWeightsActivations",
    "Routed",
    "Sparsity",
    "TiedExponents",
    "Vocabulary",
    "law_named",
]
