"""From a sweep specification to a plan: all runs, before the first one starts.

`make_plan` is a pure function of the specification and of facts about the text. Use ``isoflop`` to
find the best size at each budget (several sizes at equal FLOPs), ``grid`` to vary N and D
independently for a parametric fit, and ``ladder`` for the same runs with one constant-rate trunk
per size, at about half the steps.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scalelab.corpus.tokenizer import END_TOKEN
from scalelab.errors import UsageError
from scalelab.sweep.isoflop_sizes import budget_shapes
from scalelab.sweep.rules import FEW_STEPS, rule_batch_seqs, rule_texts, schedule_parts
from scalelab.sweep.run_spec import ROUTER_WEIGHTS, RunSpec
from scalelab.sweep.shapes import chosen_shapes
from scalelab.sweep.spec import MAX_PLANNED_RUNS, SweepSpec
from scalelab.sweep.train_table import TrainTable
from scalelab.sweep.trunk import shared_steps
from scalelab.theory.accounting import (
    DEFAULT_FLOP_CONVENTION,
    DEFAULT_PARAM_CONVENTION,
    count_params,
    train_flops,
    train_flops_per_token,
)
from scalelab.theory.decay_rules import CONSTANT, find_weight_decay_rule
from scalelab.theory.schedule import RuleInputs
from scalelab.theory.shape import BASE_WIDTH, ModelShape
from scalelab.units import format_flops, format_quantity, plural

MAX_EPOCHS = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFacts:
    """Facts about the text that planning needs.

    Attributes
    ----------
    fingerprint, eval_fingerprint : str
        Content hashes of the training and held-out tokens; ``unprepared`` in a dry run.
    tokenizer : str
        Name of the tokenizer.
    vocab_size : int
        Tokens of the vocabulary that occur.
    n_train_tokens : int
        Unique training tokens.
    n_eval_tokens : int
        Held-out tokens.
    is_estimated : bool
        Whether the token counts were estimated from file sizes.
    end_token : int or None
        Token that ends a document; None if there is none.
    """

    fingerprint: str
    eval_fingerprint: str
    tokenizer: str
    vocab_size: int
    n_train_tokens: int
    n_eval_tokens: int
    is_estimated: bool = False
    end_token: int | None = END_TOKEN


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """One row of a plan.

    Attributes
    ----------
    spec : RunSpec
        The run.
    budget_flops : float or None
        Its isoFLOP budget.
    n_params : int
        All parameters (the ``chinchilla`` convention).
    flops : float
        Training FLOPs, exact convention.
    """

    spec: RunSpec
    budget_flops: float | None
    n_params: int
    flops: float

    @property
    def n_params_active(self) -> int:
        """Parameters that a token uses; all parameters of a dense model."""
        return count_params(self.spec.shape).of_active().total

    @property
    def tokens_per_param(self) -> float:
        """D/N, active parameters counted."""
        return self.spec.n_tokens / self.n_params_active


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Every run of a sweep.

    Attributes
    ----------
    name, kind : str
        As in the specification.
    rows : tuple of PlannedRun
        Budget by budget, smallest model first.
    data : DataFacts
        The text that they share.
    rules : Mapping[str, str]
        Rules of the shapes, the learning rate, the batch and the schedule, as text.
    n_merged : int
        Rows left out because, in whole steps, they equal another row.
    """

    name: str
    kind: str
    rows: tuple[PlannedRun, ...]
    data: DataFacts
    rules: Mapping[str, str]
    n_merged: int = 0

    @property
    def total_flops(self) -> float:
        """Training FLOPs of all rows, exact convention."""
        return sum(row.flops for row in self.rows)

    @property
    def executed_flops(self) -> float:
        """Training FLOPs of all rows, with shared trunk steps counted once."""
        shared = shared_steps([row.spec for row in self.rows])
        return sum(
            row.flops * (1 - shared[row.spec.run_id] / row.spec.n_steps) for row in self.rows
        )

    @property
    def has_experts(self) -> bool:
        """Whether a run trains a mixture of experts."""
        return any(row.spec.shape.n_experts for row in self.rows)

    def epochs(self, row: PlannedRun) -> float:
        """Return the epochs of a run over the text."""
        return row.spec.n_tokens / self.data.n_train_tokens

    def warnings(self) -> list[str]:
        """Return warnings to read before a launch."""
        found = []
        if self.n_merged:
            found.append(
                f"{plural(self.n_merged, 'row')} left out: in whole steps, equal to another row of "
                "the same size."
            )
        if self.data.n_train_tokens < self.data.n_eval_tokens:
            found.append(
                f"the text is too small to hold out {format_quantity(self.data.n_eval_tokens)} "
                "tokens and train on as many; a launch will fail. Try --eval-tokens 16K."
            )
        repeating = [row for row in self.rows if self.epochs(row) > 1]
        if repeating:
            worst = max(self.epochs(row) for row in repeating)
            found.append(
                f"{len(repeating)} of {plural(len(self.rows), 'run')} "
                f"{'repeats' if len(repeating) == 1 else 'repeat'} text, up to "
                f"{worst:,.1f} epochs of {format_quantity(self.data.n_train_tokens)} unique tokens."
            )
            if worst > MAX_EPOCHS:
                found[-1] += f" A launch refuses more than {MAX_EPOCHS:g} without --allow-repeats."
        short = [row for row in self.rows if row.spec.n_steps < FEW_STEPS]
        if short:
            fewest = min(row.spec.n_steps for row in short)
            found.append(
                f"{plural(len(short), 'run')} with fewer than {FEW_STEPS} steps (minimum "
                f"{fewest}): warm-up dominates their losses. Use a smaller --batch-seqs."
            )
        return found

    def refuse_repeats(self, *, allow_repeats: bool) -> None:
        """Raise UsageError when a run exceeds 4 epochs and that is not allowed."""
        worst = max((self.epochs(row) for row in self.rows), default=0.0)
        if worst > MAX_EPOCHS and not allow_repeats:
            raise UsageError(
                f"a run of {worst:.1f} epochs over {format_quantity(self.data.n_train_tokens)} "
                "unique tokens",
                f"at most {MAX_EPOCHS:g} epochs, because further repeats improve the loss little",
                "Add text with --data corpus/, use smaller budgets, or add --allow-repeats.",
            )


def make_plan(sweep: SweepSpec, data: DataFacts, *, precision: str) -> Plan:
    """Return the plan of a sweep; ``precision`` applies if the sweep does not set it.

    Raises
    ------
    UsageError
        When the axes give no valid plan: no shape of a size, more sizes than shapes, less than one
        step, two budgets with the same run, or a sequence longer than the text.
    """
    n_seeds = len(set(sweep.train.seeds))
    count = (
        n_seeds
        * len(sweep.model.experts())
        * sweep.n_sizes()
        * max(len(sweep.budgets), len(sweep.n_tokens))
    )
    if count > MAX_PLANNED_RUNS:
        raise UsageError(
            f"{count:,} runs",
            f"at most {MAX_PLANNED_RUNS:,}",
            "Use fewer points, for example --n-params 1M..100M:5, or fewer --seeds.",
        )
    _require_sequences(sweep.train.seq_len, data)
    make_rows = {"isoflop": _isoflop_rows, "grid": _grid_rows, "ladder": _ladder_rows}[sweep.kind]
    planned = make_rows(sweep, data, sweep.train.precision or precision)
    distinct = _distinct(planned)
    rows = tuple(
        dataclasses.replace(row, spec=dataclasses.replace(row.spec, seed=seed))
        for row in distinct
        for seed in dict.fromkeys(sweep.train.seeds)
    )
    return Plan(
        name=sweep.default_name(),
        kind=sweep.kind,
        rows=rows,
        data=data,
        rules=rule_texts(sweep),
        n_merged=len(planned) - len(distinct),
    )


def _require_sequences(seq_len: int, data: DataFacts) -> None:
    for part, n_tokens in (("training", data.n_train_tokens), ("held-out", data.n_eval_tokens)):
        # The last token of a part is a target, never an input.
        if seq_len > n_tokens - 1:
            raise UsageError(
                f"sequences of {seq_len:,} tokens from {n_tokens:,} {part} tokens",
                f"sequences of at most {n_tokens - 1:,} tokens",
                f"Use --seq-len {max(1, n_tokens - 1)} or less, or add text, for example "
                "--data corpus/.",
            )


def _distinct(rows: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return the rows, each run once; raise UsageError when two budgets share a run."""
    found: dict[RunSpec, PlannedRun] = {}
    for row in rows:
        other = found.setdefault(row.spec, row)
        if row.budget_flops != other.budget_flops:
            raise UsageError(
                f"budgets {format_quantity(other.budget_flops or 0, 6)} and "
                f"{format_quantity(row.budget_flops or 0, 6)}, both of which train "
                f"{format_quantity(row.n_params)} parameters for {row.spec.n_steps:,} steps",
                "budgets that differ by at least one step at every size",
                "Remove one of these --budgets, or use --batch-seqs "
                f"{max(1, row.spec.batch_seqs // 4)}.",
            )
    return list(found.values())


def _isoflop_rows(sweep: SweepSpec, data: DataFacts, precision: str) -> list[PlannedRun]:
    per_token = functools.partial(train_flops_per_token, seq_len=sweep.train.seq_len)
    return [
        planned_run(
            shape,
            budget / per_token(shape)[DEFAULT_FLOP_CONVENTION],
            budget,
            sweep.train,
            data,
            precision,
        )
        for budget in sweep.budgets
        for shape in budget_shapes(sweep, budget, data.tokenizer, data.vocab_size)
    ]


def _grid_rows(sweep: SweepSpec, data: DataFacts, precision: str) -> list[PlannedRun]:
    return [
        planned_run(shape, n_tokens, None, sweep.train, data, precision)
        for shape in _shapes(sweep, data)
        for n_tokens in sweep.n_tokens
    ]


def _shapes(sweep: SweepSpec, data: DataFacts) -> list[ModelShape]:
    """Return the shapes of a grid or ladder, one mixture of experts after the other."""
    return [
        shape
        for rule in sweep.shape_rules()
        for shape in chosen_shapes(sweep.n_params, data.vocab_size, rule)
    ]


def _ladder_rows(sweep: SweepSpec, data: DataFacts, precision: str) -> list[PlannedRun]:
    """Return the branches of one trunk per size, with the rules' values at the mean length.

    The warm-up is that of the shortest branch, so that all branches leave the trunk after it.
    """
    shortest = min(sweep.n_tokens)
    mean = math.exp(statistics.fmean(math.log(n_tokens) for n_tokens in sweep.n_tokens))
    rows = []
    for shape in _shapes(sweep, data):
        middle = planned_run(shape, mean, None, sweep.train, data, precision).spec
        shared = {name: getattr(middle, name) for name in ("batch_seqs", "lr", "weight_decay")}
        train = sweep.train.model_copy(update={**shared, "weight_decay_rule": CONSTANT})
        first = planned_run(shape, shortest, None, train, data, precision).spec
        for n_tokens in sweep.n_tokens:
            row = planned_run(shape, n_tokens, None, train, data, precision)
            spec = dataclasses.replace(row.spec, warmup_steps=first.warmup_steps)
            rows.append(dataclasses.replace(row, spec=spec))
    return rows


def planned_run(
    shape: ModelShape,
    n_tokens: float,
    budget: float | None,
    train: TrainTable,
    data: DataFacts,
    precision: str,
) -> PlannedRun:
    """Return the run of a shape on this many tokens, in whole steps, with the rules applied.

    Raises
    ------
    UsageError
        When the tokens are less than one step.
    """
    counts = count_params(shape)
    # Rules were fitted to dense models: those of equal FLOPs have the active parameters.
    inputs = RuleInputs(
        n_params=counts.of_active().by_convention(),
        n_tokens=n_tokens,
        flops_kaplan=train_flops_per_token(shape, train.seq_len)["6nd_kaplan"] * n_tokens,
        d_model=shape.d_model if train.parametrization == "standard" else BASE_WIDTH,
    )
    batch_seqs = train.batch_seqs or rule_batch_seqs(inputs, train)
    n_steps = round(n_tokens / (batch_seqs * train.seq_len))
    if n_steps < 1:
        budget_words = f" at {format_flops(budget)} FLOPs" if budget else ""
        raise UsageError(
            f"{format_quantity(n_tokens)} tokens for {format_quantity(counts.total)} "
            f"parameters{budget_words}, less than a step of {batch_seqs * train.seq_len:,} tokens",
            f"at least one step, preferably {FEW_STEPS}",
            "Use larger budgets or --n-tokens, or smaller steps, for example --batch-seqs "
            f"{max(1, batch_seqs // 8)}.",
        )
    inputs = dataclasses.replace(inputs, batch_tokens=batch_seqs * train.seq_len)
    lr = float(f"{train.lr or train.find_lr_rule().value(inputs):.4g}")
    decay_rule = find_weight_decay_rule(train.weight_decay_rule)
    weight_decay = train.weight_decay
    if decay_rule is not None:
        weight_decay = float(f"{decay_rule.value(dataclasses.replace(inputs, lr=lr)):.4g}")
    warmup_steps, decay_steps = schedule_parts(n_steps, train)
    spec = RunSpec(
        shape=shape,
        seq_len=train.seq_len,
        batch_seqs=batch_seqs,
        n_steps=n_steps,
        lr=lr,
        warmup_steps=warmup_steps,
        data_fingerprint=data.fingerprint,
        eval_fingerprint=data.eval_fingerprint,
        tokenizer=data.tokenizer,
        seed=0,
        schedule=train.schedule,
        decay_steps=decay_steps,
        lr_end_ratio=train.lr_end_ratio,
        optimizer=train.optimizer,
        parametrization=train.parametrization,
        beta1=train.beta1,
        beta2=train.beta2,
        epsilon=train.epsilon,
        weight_decay=weight_decay,
        grad_clip=train.grad_clip,
        z_loss=train.z_loss,
        logit_softcap=train.logit_softcap,
        is_document_masked=train.is_document_masked,
        end_token=_end_token(data) if train.is_document_masked else END_TOKEN,
        init_std=train.init_std,
        ema_decay=train.ema_decay,
        precision=precision,
        **({name: getattr(train, name) for name in ROUTER_WEIGHTS} if shape.n_experts else {}),
    )
    flops = train_flops(shape, train.seq_len, spec.n_tokens)[DEFAULT_FLOP_CONVENTION]
    return PlannedRun(
        spec=spec,
        budget_flops=budget,
        n_params=counts.by_convention()[DEFAULT_PARAM_CONVENTION],
        flops=flops,
    )


def _end_token(data: DataFacts) -> int:
    if data.end_token is None:
        raise UsageError(
            "is_document_masked = true for tokens without a token that ends a document",
            "tokens whose documents end with one token",
            "Give it, for example --end-token 50256, or remove --is-document-masked.",
        )
    return data.end_token


def longest_first(rows: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return the rows by decreasing FLOPs, so that a long run does not start last."""
    return sorted(rows, key=lambda row: -row.flops)
