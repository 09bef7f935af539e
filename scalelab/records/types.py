"""Types that the trainer, the collector and fits share.

`MetricRow` is one line of ``metrics.jsonl``, `RunRecord` is ``record.json``, `Observations` is the
table of finished runs that every fit takes, and `Curves` are their training curves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.errors import DataError
from scalelab.records.evaluated import UNKNOWN, EvaluatedOn
from scalelab.records.metric import HELDOUT, Metric
from scalelab.units import plural

_COLUMNS = ("n_params", "n_tokens", "loss_nats", "flops", "budget", "cluster", "names")
_SIZES = ("n_params", "n_tokens", "flops")


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricRow:
    """One line of the training curve of one attempt.

    Attributes
    ----------
    step : int
        Optimizer steps taken so far (1 after the first).
    tokens : int
        Tokens seen so far.
    loss_nats : float
        Training loss of this step's batch, nats per token (not finite when the run diverges).
    lr : float or None
        Learning rate used in this step; None if a user's program does not report it.
    grad_norm : float or None
        Global gradient norm before clipping; None if a user's program does not report it.
    tokens_per_s : float or None
        Throughput since the previous row, excluding evaluation and checkpoints. For a user's
        program, its own figure or the time between its rows; None before the second reading.
    tflops_per_s : float or None
        Exact-convention FLOPs per second of each device since the previous row, in units of 1e12.
    mfu : float or None
        Fraction of the device's peak FLOPs per second; None if the peak is unknown.
    loss_scale : float or None
        Loss scale of mixed precision; None without one (the built-in trainer uses none).
    eval_loss_nats : float or None
        Loss on the held-out set, if evaluated at this step.
    noise_trace, noise_grad_sq : float or None
        The two terms of the gradient noise scale, if measured at this step.
    time_s : float
        Unix time at which the row was written.
    """

    step: int
    tokens: int
    loss_nats: float
    lr: float | None = None
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    tflops_per_s: float | None = None
    mfu: float | None = None
    loss_scale: float | None = None
    eval_loss_nats: float | None = None
    noise_trace: float | None = None
    noise_grad_sq: float | None = None
    time_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRow:
    """One line of ``evals.jsonl``: the loss of a run on an evaluation set after a step.

    Attributes
    ----------
    step : int
        Optimizer steps taken so far.
    set : str
        Name of the set; ``heldout`` for the held-out part of the training text.
    loss_nats : float
        Mean loss, nats per token.
    stderr_nats : float or None
        Standard error of that mean over sequences; None for a single sequence.
    n_tokens : int
        Tokens that were predicted.
    n_bytes : int or None
        Bytes of text of these tokens; None if unknown.
    ema_loss_nats : float or None
        Loss of the moving average of the weights; None if the run keeps none.
    """

    step: int
    set: str
    loss_nats: float
    stderr_nats: float | None
    n_tokens: int
    n_bytes: int | None
    ema_loss_nats: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """The result of one attempt at one run: ``record.json``.

    Attributes
    ----------
    run_id : str
        Identity of the run, `scalelab.sweep.run_spec.RunSpec.run_id`.
    attempt : int
        Number of the attempt that wrote the record.
    token : str
        The attempt's claim token.
    status : str
        ``done`` or ``diverged``.
    loss_nats : float or None
        Final held-out loss in nats per token; None if diverged.
    loss_se_nats : float or None
        Standard error of that mean over held-out sequences. The runs of a sweep share it, so fits
        do not use it as a weight.
    n_params : Mapping[str, int]
        Parameter count by convention (`scalelab.theory.accounting.PARAM_CONVENTIONS`).
    flops : Mapping[str, float]
        Training FLOPs by convention (`scalelab.theory.accounting.FLOP_CONVENTIONS`).
    n_tokens : int
        Tokens seen in training.
    unique_tokens : int
        Distinct training tokens among them; ``n_tokens / unique_tokens`` is the number of epochs.
    n_steps : int
        Optimizer steps taken.
    wall_s : float
        Seconds of training, summed over this attempt and those it resumed from.
    ema_loss_nats : float or None
        Held-out loss of the moving average of the weights; None if the run keeps none.
    energy_j : float or None
        Energy of the device over those attempts, joules; for batched runs, the run's share. None
        without a readable counter (`scalelab.train.energy`).
    diverged_at_step : int or None
        Step at which divergence was detected.
    reason : str or None
        Why the run diverged.
    bytes_per_token : float or None
        Mean bytes of text per held-out token; None if unknown.
    eval_tokens : int or None
        Held-out tokens that the loss is the mean of; None if unknown.
    source_tokens : Mapping[str, int] or None
        Distinct training tokens that each source of a mixture has; None without a mixture.
    """

    run_id: str
    attempt: int
    token: str
    status: str
    loss_nats: float | None
    loss_se_nats: float | None
    n_params: Mapping[str, int]
    flops: Mapping[str, float]
    n_tokens: int
    unique_tokens: int
    n_steps: int
    wall_s: float
    ema_loss_nats: float | None = None
    energy_j: float | None = None
    diverged_at_step: int | None = None
    reason: str | None = None
    bytes_per_token: float | None = None
    eval_tokens: int | None = None
    source_tokens: Mapping[str, int] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownRun:
    """A run or an imported row, which a registered forecast may be about.

    Attributes
    ----------
    run_id : str
        The run, or name and line of an imported row.
    source : str
        Its sweep or import.
    n_params : Mapping[str, float]
        Parameter count by convention.
    n_tokens, loss_nats : float
        Tokens, and final loss in nats per token; NaN while the run is not finished.
    eval_fingerprint : str or None
        Hash of the held-out tokens; None for an import.
    known_s : float
        Unix time at which it existed for certain: its start, or the import of its row.
    is_start_known : bool
        Whether that is the start.
    """

    run_id: str
    source: str
    n_params: Mapping[str, float]
    n_tokens: float
    loss_nats: float
    eval_fingerprint: str | None
    known_s: float
    is_start_known: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Observations:
    """Finished runs as columns, one entry per run (or checkpoint, see ``cluster``).

    N, D or C is NaN in every row if the table does not have it and the law does not need it.

    Attributes
    ----------
    n_params : ndarray of float, shape (n,)
        Parameters N, counted by ``param_convention``.
    n_tokens : ndarray of float, shape (n,)
        Training tokens D, including repeats.
    loss_nats : ndarray of float, shape (n,)
        Final loss in the unit of ``metric``.
    flops : ndarray of float, shape (n,)
        Training compute C, counted by ``flop_convention``.
    budget : ndarray of float, shape (n,), or None
        isoFLOP budget of each row, FLOPs; NaN for a row without one.
    cluster : ndarray of str, shape (n,), or None
        Label of rows with correlated noise: checkpoints of one run, branches of one trunk.
    names : ndarray of str or int, shape (n,), or None
        Name of the run of each row, or its line in the table; what ``--exclude`` takes.
    extra : Mapping[str, ndarray]
        Further columns that a law or objective may use: ``unique_tokens``, ``lr``, ``weight``, ..
    param_convention, flop_convention : str
        How N and C are counted; ``unstated`` if unknown.
    source : str
        Where the rows come from, for messages.
    is_signed : bool
        Whether losses may be 0 or negative, as normalised losses are.
    metric : Metric
        Which loss ``loss_nats`` is, with its unit.
    evaluated : EvaluatedOn
        Text and tokenizer of the losses, as far as they are known.
    """

    n_params: FloatArray
    n_tokens: FloatArray
    loss_nats: FloatArray
    flops: FloatArray
    budget: FloatArray | None = None
    cluster: NDArray[np.str_] | None = None
    names: NDArray[Any] | None = None
    extra: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    param_convention: str = "unstated"
    flop_convention: str = "unstated"
    source: str = ""
    is_signed: bool = False
    metric: Metric = HELDOUT
    evaluated: EvaluatedOn = UNKNOWN

    def __post_init__(self) -> None:
        n = len(self.loss_nats)
        columns = {**{name: getattr(self, name) for name in _COLUMNS}, **self.extra}
        for name, column in columns.items():
            if column is not None and len(column) != n:
                raise DataError(
                    f"column {name} with {len(column)} values for {n} losses",
                    "columns of equal length",
                    "Take every column from the same rows.",
                )
        for name in ("n_params", "n_tokens", "loss_nats", "flops"):
            column = getattr(self, name)
            is_any_sign = self.is_signed and name == "loss_nats"
            bad = np.flatnonzero(~(np.isfinite(column) & (is_any_sign | (column > 0))))
            if len(bad) and self.has(name):
                raise DataError(
                    f"{name} = {column[bad[0]]} in row {bad[0] + 1} "
                    f"({plural(len(bad), 'invalid row')})",
                    "finite numbers" if is_any_sign else "finite numbers above zero",
                    "Remove those rows, or use `scalelab import`, which rejects them.",
                )

    def __len__(self) -> int:
        return len(self.loss_nats)

    def has(self, name: str) -> bool:
        """Whether the rows have N, D or C (``n_params``, ``n_tokens``, ``flops``)."""
        return name not in _SIZES or not np.isnan(getattr(self, name)).all()

    @property
    def is_sized(self) -> bool:
        """Whether the rows have all of N, D and C."""
        return all(self.has(name) for name in _SIZES)

    def take(self, rows: NDArray[Any]) -> Observations:
        """Return the rows at these positions, or where a mask is true."""
        columns = {name: getattr(self, name) for name in _COLUMNS}
        taken: dict[str, Any] = {
            name: None if col is None else col[rows] for name, col in columns.items()
        }
        return replace(self, **taken, extra={name: col[rows] for name, col in self.extra.items()})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Curves:
    """Smoothed training curves of finished runs, one entry per point.

    Attributes
    ----------
    run_id : ndarray of str, shape (m,)
        The run of each point.
    n_tokens : ndarray of float, shape (m,)
        Tokens seen at the point.
    loss_nats : ndarray of float, shape (m,)
        Mean training loss around the point, nats per token.
    """

    run_id: NDArray[np.str_]
    n_tokens: FloatArray
    loss_nats: FloatArray
