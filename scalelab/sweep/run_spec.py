"""One training run (`RunSpec`): what it computes, and its content hash, the run_id.

These are plain dataclasses, so that a worker reads them from the run folder without pydantic.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar, get_origin, get_type_hints

from scalelab.corpus.tokenizer_names import END_TOKEN
from scalelab.errors import SpecError
from scalelab.sweep.program import ProgramSpec, as_tuples
from scalelab.sweep.run_parts import EvalSetRef as EvalSetRef
from scalelab.sweep.run_parts import SourceWeight as SourceWeight
from scalelab.sweep.run_parts import require
from scalelab.theory.shape import ModelShape
from scalelab.units import round_significant

NUMERICS_REVISION = 1
BALANCE_WEIGHT = 0.01
"""Default weight of the load-balance loss: alpha in arXiv:2101.03961, section 2.2."""
RUN_ID_LENGTH = 12
HASHED_DIGITS = 6
MAX_KEPT_IDS = 1 << 17
WEIGHT_TOLERANCE = 1e-6
"""Largest difference between 1 and the sum of a mixture's weights."""
SCHEDULES = ("cosine", "wsd")
PRECISIONS = ("fp32", "bf16", "fp8")
"""fp8 multiplies in fp8 where `scalelab.theory.precision` says so, otherwise in bf16. fp16 is not
supported: it needs loss scaling, bf16 does not."""
OPTIMIZERS = ("adamw", "muon")
PARAMETRIZATIONS = ("standard", "mup", "completep")
ROUTER_WEIGHTS = ("balance_weight", "router_z_weight")
"""Fields that only mixtures of experts have at other values than the default."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """One training run: every field changes its result, none describes its execution.

    Attributes
    ----------
    shape : ModelShape
        The model.
    seq_len : int
        Tokens in a sequence.
    batch_seqs : int
        Sequences in an optimizer step, over all devices.
    n_steps : int
        Optimizer steps; the schedule ends at the last one.
    lr : float
        Peak learning rate.
    warmup_steps : int
        Steps of linear warm-up.
    data_fingerprint, eval_fingerprint, tokenizer : str
        Content hashes of the training tokens and of the held-out tokens, and the tokenizer's name.
    seed : int
        Seed of the initial weights and of the data order.
    schedule : str
        ``cosine`` or ``wsd`` (`scalelab.theory.schedule`).
    decay_steps : int
        Steps of the final decay under ``wsd``; 0 under ``cosine``.
    lr_end_ratio : float
        Learning rate at the last step, relative to the peak.
    optimizer : str
        One of `OPTIMIZERS`.
    beta1, beta2, epsilon, weight_decay : float
        AdamW's constants; weight decay is decoupled and excludes norms and embeddings.
    grad_clip : float
        Maximum global gradient norm.
    z_loss : float
        Weight of the squared log-normaliser in the training loss.
    balance_weight : float
        Weight of a mixture's load-balance loss in the training loss (arXiv:2101.03961, section
        2.2), averaged over the blocks.
    router_z_weight : float
        Weight of a mixture's squared log-normaliser of the router (arXiv:2202.08906, equation 5),
        averaged over the blocks; the paper uses 0.001.
    logit_softcap : float
        Cap c of the logits: ``c * tanh(logits / c)``, in training and in evaluation
        (Gemma 2, arXiv:2408.00118, section 2). 0 disables it.
    is_document_masked : bool
        Whether attention stays inside a document, in training and in evaluation.
    end_token : int
        Token that ends a document; at its default unless ``is_document_masked``.
    init_std : float
        Standard deviation of the embedding's initial weights; matrices use 1/sqrt(fan_in).
    parametrization : str
        One of `PARAMETRIZATIONS`: how initial values and learning rates depend on the shape
        (`scalelab.train.parametrization`).
    precision : str
        One of `PRECISIONS`: data type of matrix products; master weights are fp32.
    ema_decay : float
        Decay of a moving average of the weights; its held-out loss is recorded in addition to that
        of the final weights. 0 disables it.
    program : ProgramSpec or None
        The user's training program that trains the run; None for the built-in trainer. Fields above
        that the program's command does not use have no effect.
    eval_sets : tuple of EvalSetRef
        Named evaluation sets, beside the held-out one; kept in the order of their names.
    eval_every : float
        Share of the schedule between evaluations during training; 0 evaluates at the end only.
    mixture : tuple of SourceWeight
        Sources of the training tokens and their weights, which sum to 1; empty for a single text.
        Kept in the order of their names.
    numerics_revision : int
        Incremented by hand when the trainer's mathematics changes.
    """

    shape: ModelShape
    seq_len: int
    batch_seqs: int
    n_steps: int
    lr: float
    warmup_steps: int
    data_fingerprint: str
    eval_fingerprint: str
    tokenizer: str
    seed: int
    schedule: str = "cosine"
    decay_steps: int = 0
    lr_end_ratio: float = 0.1
    optimizer: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    z_loss: float = 0.0
    logit_softcap: float = 0.0
    is_document_masked: bool = False
    end_token: int = END_TOKEN
    init_std: float = 0.02
    parametrization: str = "standard"
    precision: str = "fp32"
    ema_decay: float = 0.0
    balance_weight: float = BALANCE_WEIGHT
    router_z_weight: float = 0.0
    program: ProgramSpec | None = None
    eval_sets: tuple[EvalSetRef, ...] = ()
    eval_every: float = 0.0
    mixture: tuple[SourceWeight, ...] = ()
    numerics_revision: int = NUMERICS_REVISION

    def __post_init__(self) -> None:
        for name in _float_fields():
            # 1 and 1.0 are the same run and must hash to the same run_id.
            if type(getattr(self, name)) is int:
                object.__setattr__(self, name, float(getattr(self, name)))
        for name in ("eval_sets", "mixture"):
            if parts := getattr(self, name):
                ordered = tuple(sorted(parts, key=operator.attrgetter("name")))
                object.__setattr__(self, name, ordered)
                names = [part.name for part in ordered]
                require(self, name, len(set(names)) == len(names), "names that differ")
        for name in ("seq_len", "batch_seqs", "n_steps"):
            require(self, name, getattr(self, name) >= 1, "a whole number from 1")
        require(self, "lr", self.lr > 0, "a number above zero")
        is_in_run = 0 <= self.warmup_steps <= self.n_steps
        require(self, "warmup_steps", is_in_run, f"0 to the run's {self.n_steps} steps")
        left = self.n_steps - self.warmup_steps
        is_in_run = 0 <= self.decay_steps <= left
        require(self, "decay_steps", is_in_run, f"0 to the {left} steps after warm-up")
        require(self, "ema_decay", 0 <= self.ema_decay < 1, "0 to below 1")
        for name, default in zip(ROUTER_WEIGHTS, (BALANCE_WEIGHT, 0.0), strict=True):
            value = getattr(self, name)
            require(self, name, value >= 0, "a number from 0")
            is_used = self.shape.n_experts > 0 or value == default
            require(self, name, is_used, f"{default:g} for a dense model, which has no router")
        require(self, "eval_every", 0 <= self.eval_every <= 1, "a share of the schedule, 0 to 1")
        total = math.fsum(source.weight for source in self.mixture) if self.mixture else 1.0
        require(self, "mixture", abs(total - 1) <= WEIGHT_TOLERANCE, "weights that sum to 1")
        for name in ("z_loss", "logit_softcap"):
            require(self, name, getattr(self, name) >= 0, "a number from 0")
        for name, allowed in (
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("optimizer", OPTIMIZERS),
            ("parametrization", PARAMETRIZATIONS),
        ):
            require(self, name, getattr(self, name) in allowed, " or ".join(allowed))
        if self.parametrization != "standard" and self.shape.n_experts:
            raise SpecError(
                f"parametrization = {self.parametrization!r} for a mixture of experts",
                "a dense model, because its router has no rule",
                "Use parametrization = standard, or n_experts = 0.",
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens in an optimizer step."""
        return self.batch_seqs * self.seq_len

    @property
    def n_tokens(self) -> int:
        """Training tokens D, repeats included."""
        return self.n_steps * self.tokens_per_step

    @property
    def run_id(self) -> str:
        """Hash of the content: equal specs have the same run_id on every machine.

        Floats are rounded to 6 significant digits. Fields at their default are left out, so that
        adding a field does not change the run_id of older runs.
        """
        return _content_hash(self)


def canonical(value: Any) -> Any:
    """Return a dataclass as nested dicts for hashing: without defaults, with rounded floats."""
    content: dict[str, Any] = {}
    for name, default in _defaults(type(value)):  # type: ignore[arg-type]
        entry = getattr(value, name)
        # Most fields are at their default, so this comes first: a plan hashes many thousand runs.
        if entry is default or entry == default:
            continue
        if dataclasses.is_dataclass(entry):
            content[name] = canonical(entry)
        elif isinstance(entry, tuple) and entry and dataclasses.is_dataclass(entry[0]):
            content[name] = [canonical(part) for part in entry]
        elif isinstance(entry, float):
            rounded = round_significant(entry, HASHED_DIGITS)
            if rounded != default:
                content[name] = rounded
        else:
            content[name] = entry
    return content


def to_json(spec: RunSpec) -> str:
    """Return every field as indented JSON with full precision."""
    return json.dumps(asdict(spec), indent=1, sort_keys=True) + "\n"


def run_spec_from_mapping(content: Mapping[str, Any]) -> RunSpec:
    """Return the `RunSpec` that `to_json` wrote.

    Raises
    ------
    SpecError
        When a field is unknown, missing or of the wrong type.
    """
    content = dict(content)
    shape = content.pop("shape", None)
    if not isinstance(shape, Mapping):
        raise SpecError(
            f"shape = {shape!r}",
            "a table of shape fields",
            "Restore spec.json from the version that the sweep command wrote.",
        )
    program = content.pop("program", None)
    if isinstance(program, Mapping):
        content["program"] = build(ProgramSpec, as_tuples(program))
    for name, cls in PARTS.items():
        content[name] = tuple(_part(cls, part, name) for part in content.get(name, ()))
    return build(RunSpec, {**content, "shape": build(ModelShape, shape)})


PARTS: Mapping[str, type[EvalSetRef] | type[SourceWeight]] = {
    "eval_sets": EvalSetRef,
    "mixture": SourceWeight,
}
"""Fields that hold several dataclasses."""


def _part(cls: type[_T], content: Any, name: str) -> _T:
    if not isinstance(content, Mapping):
        raise SpecError(
            f"{name} with {content!r}",
            f"a list of tables with {', '.join(item.name for item in fields(cls))}",  # type: ignore[arg-type]
            "Restore spec.json from the version that the sweep command wrote.",
        )
    return build(cls, content)


def build(cls: type[_T], content: Mapping[str, Any]) -> _T:
    """Return ``cls(**content)`` after checking names and types of the fields.

    Raises
    ------
    SpecError
        When a field is unknown, missing or of the wrong type.
    """
    hints = _type_hints(cls)  # type: ignore[arg-type]
    required = _required_fields(cls)  # type: ignore[arg-type]
    if not required <= content.keys() <= hints.keys():
        unknown, missing = sorted(content.keys() - hints.keys()), sorted(required - content.keys())
        raise SpecError(
            f"{cls.__name__} with unknown {unknown} and missing {missing}",
            f"the fields {sorted(hints)}",
            "Write it with this version of scalelab, or correct the names.",
        )
    values: dict[str, Any] = {}
    for name, entry in content.items():
        kind = tuple if get_origin(hints[name]) is tuple else hints[name]
        if kind is float and isinstance(entry, int) and not isinstance(entry, bool):
            entry = float(entry)
        if not isinstance(entry, kind) or (kind is int and isinstance(entry, bool)):
            raise SpecError(
                f"{name} = {entry!r} in {cls.__name__}",
                f"a {getattr(kind, '__name__', kind)}",
                f"Give {name} a value of type {getattr(kind, '__name__', kind)}.",
            )
        values[name] = entry
    return cls(**values)


@functools.lru_cache(maxsize=MAX_KEPT_IDS)
def _content_hash(spec: RunSpec) -> str:
    """Return the hash of a spec's content; cached, because planning uses it a dozen times."""
    content = json.dumps(canonical(spec), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:RUN_ID_LENGTH]


@functools.cache
def _defaults(cls: type[Any]) -> tuple[tuple[str, Any], ...]:
    """Return the name and default of each field; MISSING, which equals no value, without one."""
    return tuple((item.name, item.default) for item in fields(cls))


@functools.cache
def _float_fields() -> tuple[str, ...]:
    return tuple(name for name, kind in _type_hints(RunSpec).items() if kind is float)


@functools.cache
def _required_fields(cls: type[Any]) -> frozenset[str]:
    return frozenset(item.name for item in fields(cls) if item.default is dataclasses.MISSING)


@functools.cache
def _type_hints(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls)
