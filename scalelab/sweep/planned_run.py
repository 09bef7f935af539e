"""One row of a plan: the run of a model on some tokens, with the rules applied."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from scalelab.corpus.tokenizer_names import END_TOKEN
from scalelab.errors import UsageError
from scalelab.sweep.program import ProgramSpec
from scalelab.sweep.program_render import steps_with_evaluations, used_names
from scalelab.sweep.rules import FEW_STEPS, rule_batch_seqs, schedule_parts
from scalelab.sweep.run_size import NO_SHAPE, RunSize, model_size, run_size, shape_size
from scalelab.sweep.run_spec import ROUTER_WEIGHTS, EvalSetRef, RunSpec, SourceWeight
from scalelab.sweep.train_table import TrainTable
from scalelab.theory.accounting import count_params
from scalelab.theory.decay_rules import find_weight_decay_rule
from scalelab.theory.schedule import RuleInputs
from scalelab.theory.shape import BASE_WIDTH, ModelShape
from scalelab.units import format_flops, format_quantity

UNUSED_LR = 1.0
"""Learning rate of runs whose program has no placeholder for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFacts:
    """Facts about a source of a mixture.

    Attributes
    ----------
    name, fingerprint : str
        Its name and the content hash of its tokens.
    n_train_tokens, n_eval_tokens : int
        Unique training tokens, and held-out tokens.
    weight : float or None
        Its share of the training tokens; None before a sweep over mixtures chooses it.
    """

    name: str
    fingerprint: str
    n_train_tokens: int
    n_eval_tokens: int
    weight: float | None


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
    n_train_tokens : int or None
        Unique training tokens; None if a program's data is not declared.
    n_eval_tokens : int
        Held-out tokens.
    is_estimated : bool
        Whether the token counts were estimated from file sizes.
    end_token : int or None
        Token that ends a document; None if there is none.
    warnings : tuple of str
        What to know about the text before training on it.
    sources : tuple of SourceFacts
        Sources of a mixture in the order of their names; empty for one text. The other facts are
        then of all sources together.
    eval_sets : tuple of EvalSetRef
        Named evaluation sets; fingerprints are ``unprepared`` in a dry run.
    """

    fingerprint: str
    eval_fingerprint: str
    tokenizer: str
    vocab_size: int
    n_train_tokens: int | None
    n_eval_tokens: int
    is_estimated: bool = False
    end_token: int | None = END_TOKEN
    warnings: tuple[str, ...] = ()
    eval_sets: tuple[EvalSetRef, ...] = ()
    sources: tuple[SourceFacts, ...] = ()

    @property
    def mixture(self) -> tuple[SourceWeight, ...]:
        """The sources and their weights, as a run has them; empty without weights."""
        return tuple(
            SourceWeight(name=each.name, fingerprint=each.fingerprint, weight=each.weight)
            for each in self.sources
            if each.weight is not None
        )

    def with_weights(self, weights: Mapping[str, float]) -> DataFacts:
        """Return the facts with other weights of the sources, by name."""
        sources = tuple(
            dataclasses.replace(each, weight=weights[each.name]) for each in self.sources
        )
        return dataclasses.replace(self, sources=sources)


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
        Training FLOPs, by the convention of `RunSize.flop_convention`.
    """

    spec: RunSpec
    budget_flops: float | None
    n_params: int
    flops: float

    @property
    def n_params_active(self) -> int:
        """Parameters that a token uses; all parameters of a dense model."""
        return run_size(self.spec).active

    @property
    def tokens_per_param(self) -> float:
        """D/N, active parameters counted."""
        return self.spec.n_tokens / self.n_params_active


def planned_run(
    shape: ModelShape,
    n_tokens: float,
    budget: float | None,
    train: TrainTable,
    data: DataFacts,
    precision: str,
    program: ProgramSpec | None = None,
) -> PlannedRun:
    """Return the run of a shape on this many tokens, in whole steps, with the rules applied.

    With a ``program`` that has a row of a table of sizes, the size is that of the row.

    Raises
    ------
    UsageError
        When the tokens are less than one step, or a rule needs a shape that the run does not have.
    """
    size = model_size(shape, train.seq_len, program)
    inputs = _rule_inputs(shape, n_tokens, train, size)
    batch_seqs = train.batch_seqs or int(_ruled("batch", train, inputs))
    n_steps = round(n_tokens / (batch_seqs * train.seq_len))
    if n_steps < 1:
        budget_words = f" at {format_flops(budget)} FLOPs" if budget else ""
        raise UsageError(
            f"{format_quantity(n_tokens)} tokens for {format_quantity(size.total)} "
            f"parameters{budget_words}, less than a step of {batch_seqs * train.seq_len:,} tokens",
            f"at least one step, preferably {FEW_STEPS}",
            "Use larger budgets or --n-tokens, or smaller steps, for example --batch-seqs "
            f"{max(1, batch_seqs // 8)}.",
        )
    if program is not None and "eval_every" in used_names(program):
        n_steps = steps_with_evaluations(n_steps)
    inputs = dataclasses.replace(inputs, batch_tokens=batch_seqs * train.seq_len)
    lr = UNUSED_LR
    if train.lr or program is None or used_names(program).intersection(("lr", "lr_end")):
        lr = float(f"{train.lr or _ruled('lr', train, inputs):.4g}")
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
        program=program,
        mixture=data.mixture,
        eval_sets=data.eval_sets,
        eval_every=train.eval_every,
        **({name: getattr(train, name) for name in ROUTER_WEIGHTS} if shape.n_experts else {}),
    )
    return PlannedRun(
        spec=spec,
        budget_flops=budget,
        n_params=size.total,
        flops=size.planned_per_token * spec.n_tokens,
    )


def _end_token(data: DataFacts) -> int:
    if data.end_token is None:
        raise UsageError(
            "--document-mask for tokens without a token that ends a document",
            "tokens whose documents end with one token",
            "Give it, for example --end-token 50256, or remove --document-mask.",
        )
    return data.end_token


def _rule_inputs(
    shape: ModelShape, n_tokens: float, train: TrainTable, size: RunSize
) -> RuleInputs:
    """Return what the rules know of a run; NaN and no key for what its table does not state."""
    if shape == NO_SHAPE:
        kaplan = size.flops_per_token.get("6nd_kaplan", math.nan)
        return RuleInputs(
            n_params=size.n_params,
            n_tokens=n_tokens,
            flops_kaplan=kaplan * n_tokens,
            d_model=math.nan,
        )
    size_of_shape = shape_size(shape, train.seq_len)
    # Rules were fitted to dense models: those of equal FLOPs have the active parameters.
    return RuleInputs(
        n_params=count_params(shape).of_active().by_convention(),
        n_tokens=n_tokens,
        flops_kaplan=size_of_shape.flops_per_token["6nd_kaplan"] * n_tokens,
        d_model=shape.d_model if train.parametrization == "standard" else BASE_WIDTH,
    )


def _ruled(what: str, train: TrainTable, inputs: RuleInputs) -> float:
    """Return the batch or the learning rate of the rule.

    Raises
    ------
    UsageError
        If the rule needs what a table of sizes does not state.
    """
    try:
        if what == "batch":
            return rule_batch_seqs(inputs, train)
        value = train.find_lr_rule().value(inputs)
    except (KeyError, ValueError):
        value = math.nan
    if math.isfinite(value):
        return value
    rule = train.batch_rule if what == "batch" else train.lr_rule
    key = "batch_seqs" if what == "batch" else "lr"
    raise UsageError(
        f"{what}_rule = {rule} for a model that only a table of sizes gives",
        "a rule that needs neither the width nor other missing columns, or the value itself",
        f"Write train.{key}, or add the columns n_layers, d_model and n_heads to the table, or "
        "n_params_kaplan for rules of parameters without embeddings.",
    )
