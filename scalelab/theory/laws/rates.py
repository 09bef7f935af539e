"""Power laws of the best learning rate and batch size in model size, tokens, compute or loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.theory.laws.base import Law, linear_coordinates, log_coordinates


@dataclass(frozen=True, kw_only=True)
class _Monomial(Law):
    """k x1^p1 x2^p2 ..: one factor, then one exponent a column."""

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the product of powers from (log k, exponents)."""
        total = theta[0]
        for exponent, name in zip(theta[1:], cls.columns, strict=True):
            total = total + exponent * np.log(columns[name])
        return np.exp(total)

    @classmethod
    def terms(cls, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the features of the one exponential."""
        logs = [np.log(columns[name]) for name in cls.columns]
        return np.stack([np.ones_like(logs[0]), *logs], axis=1)[None]

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return the regression of logarithms, which is exact for least squares."""
        design = cls.terms(columns)[0]
        best = np.linalg.lstsq(design, np.log(target), rcond=None)[0]
        return np.asarray(best)[None]


@dataclass(frozen=True, kw_only=True)
class LearningRate(_Monomial):
    r"""Best peak learning rate :math:`k N^p D^q`.

    Attributes
    ----------
    k : float
        Factor, positive.
    p, q : float
        Exponents in parameters (without embeddings in the paper) and tokens.
    """

    name = "lr"
    target = "lr"
    columns = ("n_params", "n_tokens")
    coordinates = (*log_coordinates("k"), *linear_coordinates("p", "q", low=-np.inf))
    source = "Li et al. 2025 (Step Law), arXiv:2503.04715, equation 1"

    k: float
    p: float
    q: float


@dataclass(frozen=True, kw_only=True)
class BatchSize(_Monomial):
    r"""Best batch size in tokens, :math:`k D^q`.

    Attributes
    ----------
    k : float
        Factor, positive.
    q : float
        Exponent in tokens.
    """

    name = "batch"
    target = "batch_tokens"
    columns = ("n_tokens",)
    coordinates = (*log_coordinates("k"), *linear_coordinates("q", low=-np.inf))
    source = "Li et al. 2025 (Step Law), arXiv:2503.04715, equation 1"

    k: float
    q: float


@dataclass(frozen=True, kw_only=True)
class LearningRateByCompute(_Monomial):
    r"""Best peak learning rate :math:`k C^p`.

    Attributes
    ----------
    k : float
        Factor, positive.
    p : float
        Exponent in training FLOPs.
    """

    name = "lr_compute"
    target = "lr"
    columns = ("flops",)
    coordinates = (*log_coordinates("k"), *linear_coordinates("p", low=-np.inf))
    source = "DeepSeek-AI 2024, arXiv:2401.02954, equation 1"

    k: float
    p: float


@dataclass(frozen=True, kw_only=True)
class BatchByCompute(_Monomial):
    r"""Best batch size in tokens, :math:`k C^p`.

    Attributes
    ----------
    k : float
        Factor, positive.
    p : float
        Exponent in training FLOPs.
    """

    name = "batch_compute"
    target = "batch_tokens"
    columns = ("flops",)
    coordinates = (*log_coordinates("k"), *linear_coordinates("p", low=-np.inf))
    source = "DeepSeek-AI 2024, arXiv:2401.02954, equation 1"

    k: float
    p: float


@dataclass(frozen=True, kw_only=True)
class CriticalBatch(_Monomial):
    r"""Critical batch size in tokens by loss, :math:`k L^p`, p negative.

    Attributes
    ----------
    k : float
        Batch at a loss of 1.
    p : float
        Exponent in the loss.
    """

    name = "critical_batch"
    target = "batch_tokens"
    columns = ("loss_nats",)
    coordinates = (*log_coordinates("k"), *linear_coordinates("p", low=-np.inf))
    source = "Kaplan et al. 2020, arXiv:2001.08361, equation 5.3"

    k: float
    p: float
