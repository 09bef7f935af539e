"""Vocabulary size: a loss with a term of the vocabulary, which may have any sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.theory.laws.base import Coordinate, Law, linear_coordinates, log_coordinates
from scalelab.theory.laws.projection import project, ranked

EXPONENTS = np.geomspace(0.06, 1.2, 6)
SMALLEST_EXPONENT = 0.04
"""Lower bound of the exponents. Nothing else bounds E, so a term could go to a logarithm."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary(Law):
    r"""Loss :math:`L = E + A N^{-\alpha} + B V^{-\beta} + F V^\delta D^{-\gamma}` of vocabulary V.

    Losses of different vocabularies are comparable only after normalisation, for example by
    subtracting the loss of a unigram model. Such losses are negative, so the residual is linear.
    The paper has delta = 0. With D in characters, delta measures that a larger vocabulary makes
    fewer tokens of them, and needs more of them to be learned.

    Attributes
    ----------
    A, B, F : float
        Scales of the model, vocabulary and data terms, positive.
    E : float
        Limit of the loss, nats per token, of any sign (-E in the paper).
    alpha, beta, gamma : float
        Exponents of the non-vocabulary parameters N, of the vocabulary V (its size, or its
        parameters as in the paper), and of the training data D (characters or tokens); at least
        `SMALLEST_EXPONENT`.
    delta : float
        Exponent of the vocabulary in the data term, any sign.
    """

    name = "vocabulary"
    columns = ("n_params", "vocab_size", "n_tokens")
    is_signed = True
    coordinates = (
        *log_coordinates("A", "B", "F"),
        Coordinate(name="E", is_log=False, low=-np.inf),
        *linear_coordinates("alpha", "beta", "gamma", low=SMALLEST_EXPONENT),
        Coordinate(name="delta", is_log=False, low=-np.inf),
    )
    offset = "E"
    source = "Tao et al. 2024, arXiv:2407.13623, section 3.3 (delta = 0)"

    A: float
    B: float
    F: float
    E: float
    alpha: float
    beta: float
    gamma: float
    delta: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from (log A, log B, log F, E, alpha, beta, gamma, delta)."""
        log_A, log_B, log_F, E, alpha, beta, gamma, delta = theta
        x, v, y = (np.log(columns[name]) for name in cls.columns)
        model_and_vocabulary = np.exp(log_A - alpha * x) + np.exp(log_B - beta * v)
        return E + model_and_vocabulary + np.exp(log_F - gamma * y + delta * v)

    @classmethod
    def terms(cls, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the features of the model, vocabulary and data terms."""
        logs = [np.log(columns[name]) for name in cls.columns]
        features = np.zeros((3, len(logs[0]), 8))
        for k, log in enumerate(logs):
            features[k, :, k] = 1.0
            features[k, :, 4 + k] = -log
        features[2, :, 7] = logs[1]
        return features

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return the variable projection on a grid of exponents.

        The projection needs positive losses, so a constant is added to all of them.
        """
        logs = np.log(np.stack([columns[name] for name in cls.columns]))
        middle = logs.mean(axis=1)
        x, v, y = (logs - middle[:, None])[:, None]
        raised = 2.0 * float(np.ptp(target)) - float(target.min()) + 1e-9
        grid = np.array(list(product(EXPONENTS, EXPONENTS, EXPONENTS, (-0.1, 0.0, 0.1, 0.3))))
        alpha, beta, gamma, delta = grid.T[..., None]
        powers = [np.exp(-alpha * x), np.exp(-beta * v), np.exp(delta * v - gamma * y)]
        basis = np.stack([*powers, np.ones_like(powers[0])], axis=1)
        c, misfit = project(basis, target + raised)
        scales = np.log(c[:, :3]) + grid[:, :3] * middle
        scales[:, 2] -= grid[:, 3] * middle[1]
        return ranked(np.concatenate([scales, c[:, 3:] - raised, grid], axis=1), misfit)
