"""For training programs that scalelab starts: write rows and the final loss where it reads them.

Five lines in a training script::

    from scalelab.program_log import ProgramLog

    log = ProgramLog(n_params=sum(p.numel() for p in model.parameters()))
    log.row(step, loss, tokens=tokens, lr=lr)  # from time to time, and after the last step
    log.final(eval_loss)  # once, at the end

A program that scalelab did not start, or a process of torchrun other than the first, writes
nothing. Needs the standard library only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import SupportsFloat, TextIO

METRICS_VARIABLE = "SCALELAB_METRICS"
VERSION = 1


class ProgramLog:
    """Appends JSON lines to the file that the variable ``SCALELAB_METRICS`` names.

    Parameters
    ----------
    n_params : int, optional
        All parameters of the model, embeddings included.
    flops_per_token : float, optional
        Training FLOPs per token, as the program counts them.
    unit : str
        Unit of every loss: ``nats`` per token, ``bits`` per token, ``bits_per_byte`` or
        ``perplexity``.
    bytes_per_token : float, optional
        For ``bits_per_byte``.
    """

    def __init__(
        self,
        *,
        n_params: int | None = None,
        flops_per_token: float | None = None,
        unit: str = "nats",
        bytes_per_token: float | None = None,
    ) -> None:
        path = os.environ.get(METRICS_VARIABLE)
        is_first = os.environ.get("RANK", "0") == "0"
        self._file: TextIO | None = None
        if path and is_first:
            self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._write(
            scalelab=VERSION,
            n_params=n_params,
            flops_per_token=flops_per_token,
            unit=unit,
            bytes_per_token=bytes_per_token,
        )

    def row(
        self,
        step: int,
        loss: SupportsFloat | None = None,
        *,
        tokens: int | None = None,
        lr: SupportsFloat | None = None,
        grad_norm: SupportsFloat | None = None,
        eval_loss: SupportsFloat | None = None,
    ) -> None:
        """Write the state after ``step`` optimizer steps.

        Parameters
        ----------
        step : int
            Optimizer steps taken, 1 after the first.
        loss : float, optional
            Training loss.
        tokens : int, optional
            Training tokens seen so far; default: the steps times the planned batch.
        lr, grad_norm : float, optional
            Learning rate, and norm of the gradient before clipping.
        eval_loss : float, optional
            Loss on held-out data.
        """
        self._write(
            step=step,
            tokens=tokens,
            loss=_number(loss),
            lr=_number(lr),
            grad_norm=_number(grad_norm),
            eval_loss=_number(eval_loss),
        )

    def final(
        self,
        eval_loss: SupportsFloat,
        *,
        step: int | None = None,
        tokens: int | None = None,
        loss_se: SupportsFloat | None = None,
        evals: Mapping[str, SupportsFloat] | None = None,
    ) -> None:
        """Write the result of the run.

        Parameters
        ----------
        eval_loss : float
            Loss on held-out data after the last step.
        step, tokens : int, optional
            Optimizer steps taken and tokens seen; default: those of the last row.
        loss_se : float, optional
            Standard error of that loss.
        evals : Mapping, optional
            Other measurements by name.
        """
        self._write(
            final=True,
            eval_loss=_number(eval_loss),
            step=step,
            tokens=tokens,
            loss_se=_number(loss_se),
            evals=None if evals is None else {n: _number(value) for n, value in evals.items()},
        )

    def _write(self, **content: object) -> None:
        if self._file is not None:
            given = {name: value for name, value in content.items() if value is not None}
            self._file.write(json.dumps(given) + "\n")


def _number(value: SupportsFloat | None) -> float | None:
    return None if value is None else float(value)
