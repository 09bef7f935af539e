"""The verb `decide`: which model to train within limits, from a fit or a published law."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from scalelab.api.arguments import as_names, value_of
from scalelab.errors import ScalelabError, UsageError
from scalelab.forecast.one_thread import on_one_thread
from scalelab.records.metric import NATS
from scalelab.units import format_quantity, parse_quantity

if TYPE_CHECKING:
    from scalelab.api.reports import Decision
    from scalelab.forecast.allocate import Forecast
    from scalelab.forecast.decision import Candidate, Deployment, Limits
    from scalelab.forecast.fit_report import FitReport
    from scalelab.forecast.forecaster import Forecaster
    from scalelab.forecast.law_file import SavedLaw
    from scalelab.forecast.more_runs import AddedBudget
    from scalelab.sweep.expert_rule import ExpertRule
    from scalelab.sweep.shape_rule import ShapeRule

T = TypeVar("T")
SAME_SIZE = 0.05
"""Relative difference in N below which a candidate is the compute-optimal one."""
CHINCHILLA_FLOPS = 5.76e23
"""The budget of Chinchilla and Gopher, arXiv:2203.15556."""
BOUNDS = ("flops", "gpu_hours", "days", "usd", "kwh", "kg_co2")
"""Limits that bound the compute of training."""


@on_one_thread
def decide(
    source: FitReport | SavedLaw | str,
    limits: Limits | Mapping[str, Any] | None = None,
    deployment: Deployment | Mapping[str, Any] | None = None,
    *,
    candidates: str | Sequence[str] = (),
    target_loss: float | None = None,
    real_shapes: tuple[int, int] | None = None,
    experts: Mapping[str, int] | None = None,
    level: float | None = None,
) -> Decision:
    """Choose what to train within limits.

    Parameters
    ----------
    source : FitReport, SavedLaw or str
        A fit, whose forecaster answers (`FitReport.forecaster`); a law from `load_law`, or what
        `load_law` takes: a name or a file.
    limits : Limits or dict, optional
        For example ``{"usd": 1e6, "days": 30}``. Without a limit that bounds compute and without
        candidates, the compute is limited to `usual_flops`.
    deployment : Deployment or dict, optional
        For example ``{"gpu": "h100", "inference_tokens": "10T"}``.
    candidates : str or sequence of str
        Models to compare, for example ``"7B:2T"``; default: search all sizes.
    target_loss : float, optional
        Loss to reach, in the unit of the law's metric.
    real_shapes : (int, int), optional
        Vocabulary and sequence length. With them, only shapes of the shape table are considered,
        at their exact FLOPs; default: any size, with C = 6 N D.
    experts : dict, optional
        Mixture of experts of every candidate: ``n_experts``, and optionally ``n_active_experts``,
        ``granularity`` and ``n_shared_experts``, as in the table ``[model]`` of a sweep. Needs
        ``real_shapes``. N and compute count active parameters, memory counts all of them.
    level : float, optional
        Level of the intervals of a saved law; default 0.9. A fit has its own.

    Raises
    ------
    UsageError
        If no model is within the limits, a name is unknown, there is a target loss but no noise of
        runs, or the law counts N by another convention than the shapes.
    NotIdentifiedError
        If the runs do not answer: they lie on one line, or do not determine the law that answers.
    """
    from scalelab.api.laws import load_law
    from scalelab.api.reports import Decision
    from scalelab.fit.intervals import check_level
    from scalelab.forecast.allocate import parse_request
    from scalelab.forecast.decide import decide as best
    from scalelab.forecast.decide import parse_candidate
    from scalelab.forecast.decision import Deployment, Limits
    from scalelab.forecast.extrapolation import extrapolation_warning, fitted_range
    from scalelab.forecast.fit_report import FitReport, ordered
    from scalelab.forecast.forecaster import forecaster
    from scalelab.forecast.law_file import SavedLaw
    from scalelab.forecast.of_experts import at_experts
    from scalelab.forecast.size_pool import real_shapes as existing
    from scalelab.forecast.verdict import wide_optimum
    from scalelab.records.metric import parse_metric
    from scalelab.units import format_flops

    rule = _mixture(experts)
    if rule is not None and real_shapes is None:
        raise UsageError(
            "experts without real shapes",
            "a vocabulary and sequence length, which give the parameters of every shape",
            "Add --real-shapes, or real_shapes=(32_768, 4096).",
        )
    limits = from_quantities(Limits, limits, "limits")
    deployment = from_quantities(Deployment, deployment, "deployment")
    if isinstance(source, str):
        source = load_law(source)
    if not isinstance(source, (SavedLaw, FitReport)):
        raise UsageError(
            f"a {type(source).__name__} to decide from",
            "the report of a fit, or the name or file of a law",
            "Write decide(fit(df), ..) or decide('hoffmann', ..).",
        )
    if isinstance(source, SavedLaw):
        if real_shapes is not None:
            source.check_params("--real-shapes", "chinchilla" if rule is None else "active")
        level = 0.9 if level is None else level
        check_level(level)
        law = source.as_fit() if source.has_uncertainty else source.law
        fitted, kept = source.fitted_range(), source.warnings
        found: Forecaster = forecaster(law, level, fitted)
        beside = None
        has_intervals = source.has_uncertainty
    else:
        found, beside = source.forecaster, source.law_forecaster
        fitted, kept = fitted_range(source.observations), source.warnings
        has_intervals = True
    dense = found
    found = at_experts(found, rule)
    if not candidates and not is_bounded(limits):
        limits = replace(limits, flops=usual_flops(source))
    if target_loss is not None and isinstance(source, SavedLaw) and source.noise is None:
        raise UsageError(
            f"a target loss with the law {source.name}, which has no noise of runs",
            "a fit of runs, whose noise gives the probability that a run misses the target",
            "Give --from or --sweep in place of --law, or omit --target-loss.",
        )
    answer = best(
        found,
        limits,
        deployment,
        named=[parse_candidate(text) for text in as_names(candidates, "candidates", "7B:2T")],
        target_loss=target_loss,
        shapes=None if real_shapes is None else existing(*real_shapes, _rule(rule)),
        beside=beside,
    )
    if isinstance(source, SavedLaw):
        answer = replace(answer, metric=parse_metric(source.metric), unit=source.unit)
    else:
        metric = source.observations.metric
        answer = replace(answer, metric=metric, unit=metric.unit)
    if fitted is None:
        return Decision.of(answer)
    shown = answer.candidates if candidates or answer.best is None else (answer.best,)
    far = [
        extrapolation_warning(each.label, words)
        for each in shown
        if (
            words := fitted.describe_extrapolation(
                n_params=each.n_params, n_tokens=each.n_tokens, flops=each.flops
            )
        )
    ]
    # warnings about the forecasts of the report are not about this decision
    others = [warning for warning in kept if warning.code != "extrapolation"]
    if (chosen := answer.best) is not None and has_intervals:
        with contextlib.suppress(ScalelabError):
            if not candidates:
                at = parse_request(f"C={format_flops(chosen.flops)}")
                optimum = dense.forecast(at)
                others += wide_optimum(optimum)
                if _is_optimal(chosen, optimum):
                    answer = replace(answer, optimum=optimum)
        if isinstance(source, FitReport):
            with contextlib.suppress(ScalelabError):
                answer = replace(answer, to_add=_narrower(source, chosen))
    warnings = ordered([*others, *far, *answer.warnings])
    return Decision.of(replace(answer, warnings=warnings))


def _is_optimal(chosen: Candidate, optimum: Forecast) -> bool:
    """Return whether a candidate has the compute-optimal size, so that its interval applies."""
    size = optimum.n_params
    return size is not None and abs(chosen.n_params / size.value - 1) < SAME_SIZE


def _narrower(source: FitReport, chosen: Candidate) -> tuple[AddedBudget, ...]:
    """Return the runs that would narrow the loss of a candidate, if the average answers.

    Within the compute of the runs there are none: they would cost more than the candidate.
    """
    from scalelab.forecast.allocate import AVERAGED, parse_request
    from scalelab.forecast.extrapolation import fitted_range
    from scalelab.forecast.headline import runs_to_add

    is_within = chosen.flops <= fitted_range(source.observations).flops
    if is_within or source.forecaster.name != AVERAGED:
        return ()
    n_params, n_tokens = (format_quantity(x, 4) for x in (chosen.n_params, chosen.n_tokens))
    asked = parse_request(f"N={n_params},D={n_tokens}")
    return runs_to_add(source, source.forecaster.forecast(asked))


def is_bounded(limits: Limits) -> bool:
    """Return whether a limit bounds the compute of training."""
    return bool(set(limits.given()) & set(BOUNDS))


def usual_flops(source: FitReport | SavedLaw) -> float:
    """Return the compute for which `decide` answers without a limit, FLOPs.

    Ten times that of the largest run; the compute of Chinchilla for a law of unknown runs.
    """
    from scalelab.forecast.headline import FACTOR, next_compute
    from scalelab.forecast.law_file import SavedLaw
    from scalelab.units import round_significant

    if not isinstance(source, SavedLaw):
        return next_compute(source.observations)
    fitted = source.fitted_range()
    return CHINCHILLA_FLOPS if fitted is None else round_significant(FACTOR * fitted.flops, 2)


def _mixture(experts: Mapping[str, int] | None) -> ExpertRule | None:
    """Return the mixture of experts that a dict describes; None for dense models."""
    if not experts:
        return None
    from scalelab.sweep.model_table import ModelTable
    from scalelab.sweep.option import validated

    return validated(ModelTable, experts, source="experts").experts()[0]


def _rule(experts: ExpertRule | None) -> ShapeRule:
    """Return the rule of the shapes; experts have widths that are fast on GPUs."""
    from scalelab.sweep.shape_rule import ALIGNED, DEFAULT_RULE

    return (
        DEFAULT_RULE if experts is None else replace(DEFAULT_RULE, table=ALIGNED, experts=experts)
    )


def from_quantities(kind: type[T], given: T | Mapping[str, Any] | None, argument: str) -> T:
    """Return limits or a deployment; text in a dict is read as a quantity."""
    if isinstance(given, Mapping):
        given = {
            name: parse_quantity(value, what=name)
            if isinstance(value, str) and name != "gpu"
            else value
            for name, value in given.items()
        }
    return value_of(kind, {} if given is None else given, argument)


def as_sweep(
    best: Candidate,
    made_by: str,
    real_shapes: tuple[int, int] | None = None,
    experts: Mapping[str, int] | None = None,
    *,
    unit: str = NATS,
) -> str:
    """Return a sweep file, a grid of one run, for a candidate; ``scalelab sweep run`` takes it.

    Parameters
    ----------
    best : Candidate
    made_by : str
        Command that gives the same answer; written as a comment.
    real_shapes : (int, int), optional
        Vocabulary and sequence length for which its shape was chosen. With them the plan has the
        same shape and FLOPs.
    experts : dict, optional
        Its mixture of experts, as for `decide`.
    unit : str, optional
        Unit of its loss.
    """
    from scalelab.corpus.tokenizer import ByteTokenizer
    from scalelab.units import format_flops

    if real_shapes is None:
        counted = (
            f"# C = 6 N D = {format_flops(best.flops)} FLOPs. The plan trains the nearest shape "
            "and counts its exact FLOPs:\n"
            "# see `sweep run --dry-run`; `decide --real-shapes` keeps a limit by these.\n"
        )
        made_for = ""
    else:
        vocab_size, seq_len = real_shapes
        counted = f"# {best.shape}, {format_flops(best.flops)} FLOPs by exact count.\n"
        tokenizer = "bytes" if vocab_size == ByteTokenizer.vocab_size else f"bpe:{vocab_size}"
        made_for = f'\n[data]\ntokenizer = "{tokenizer}"\n\n[train]\nseq_len = {seq_len}\n'
    keys = "".join(f"{name} = {value}\n" for name, value in (experts or {}).items())
    mixture = f'\n[model]\nshapes = "aligned"\n{keys}' if keys else ""
    words = "".join(letter for letter in made_by if letter.isprintable())
    limits = "" if best.low is None else f" ({best.low:.4f} to {best.high:.4f})"
    return (
        f"# {words}\n"
        f"# Predicted loss {best.loss_nats:.4f} {unit}{limits}.\n"
        f"{counted}"
        'kind = "grid"\n'
        f'n_params = "{best.n_params:.6g}"\n'
        f'n_tokens = "{best.n_tokens:.6g}"\n'
        f"{made_for}{mixture}"
    )
