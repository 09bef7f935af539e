"""The verb `decide`: which model to train within limits, from a fit or a published law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from scalelab.api.arguments import as_names, value_of
from scalelab.errors import UsageError
from scalelab.units import parse_quantity

if TYPE_CHECKING:
    from scalelab.api.reports import Decision
    from scalelab.forecast.decision import Candidate, Limits, Setting
    from scalelab.forecast.fit_report import FitReport

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """Devices for training and serving, their prices, and the tokens to serve.

    Attributes
    ----------
    gpu : str
        Name in the hardware table, for example ``h100``.
    n_devices : float
    utilisation : float or None
        Share of the peak FLOP/s; default: the stated one of the table.
    usd_per_hour, grams_per_kwh : float or None
        Price of a device-hour and g CO2 per kWh; default: those of the table.
    inference_tokens : float
        Tokens served over the life of the model.
    bytes_per_param : float
        Bytes per parameter when serving.
    """

    gpu: str = "h100"
    n_devices: float = 1.0
    utilisation: float | None = None
    usd_per_hour: float | None = None
    grams_per_kwh: float | None = None
    inference_tokens: float = 0.0
    bytes_per_param: float = 2.0


def decide(
    source: FitReport | str,
    limits: Limits | Mapping[str, Any] | None = None,
    demand: Demand | Mapping[str, Any] | None = None,
    *,
    candidates: str | Sequence[str] = (),
    target_loss: float | None = None,
    real_shapes: tuple[int, int] | None = None,
) -> Decision:
    """Choose what to train within limits.

    Parameters
    ----------
    source : FitReport or str
        A fit, or the name of a published law.
    limits : Limits or dict, optional
        For example ``{"usd": 1e6, "days": 30}``.
    demand : Demand or dict, optional
        For example ``{"gpu": "h100", "inference_tokens": "10T"}``.
    candidates : str or sequence of str
        Models to compare, for example ``"7B:2T"``; default: search all sizes.
    target_loss : float, optional
        Loss to reach, nats per token.
    real_shapes : (int, int), optional
        Vocabulary and sequence length. With them, only shapes of the shape table are considered,
        at their exact FLOPs; default: any size, with C = 6 N D.

    Raises
    ------
    UsageError
        If no model is within the limits, a name is unknown, there is neither limit nor target, or
        there is a target loss but no fit.
    NotIdentifiedError
        If the runs do not determine the law of the fit.
    """
    from scalelab.api.reports import Decision
    from scalelab.forecast.decide import decide as best
    from scalelab.forecast.decide import parse_candidate
    from scalelab.forecast.decision import Limits
    from scalelab.forecast.extrapolation import far_warning, fitted_range
    from scalelab.forecast.fit_report import FitReport, ordered
    from scalelab.forecast.forecaster import forecaster
    from scalelab.forecast.published_laws import law_by_name
    from scalelab.forecast.size_pool import real_shapes as existing

    limits = _given(Limits, limits, "limits")
    demand = _given(Demand, demand, "demand")
    if not isinstance(source, (str, FitReport)):
        raise UsageError(
            f"a {type(source).__name__} to decide from",
            "the report of a fit, or the name of a published law",
            "Write decide(fit(df), ..) or decide('hoffmann', ..).",
        )
    if isinstance(source, str):
        found = forecaster(law_by_name(source).law)
    else:
        found = forecaster(source.fit, source.level)
    if target_loss is not None and isinstance(source, str):
        raise UsageError(
            f"a target loss with the published law {source}",
            "a fit of runs, whose noise gives the probability that a run misses the target",
            "Give --from or --sweep in place of --law, or omit --target-loss.",
        )
    answer = best(
        found,
        limits,
        setting_of(demand),
        named=[parse_candidate(text) for text in as_names(candidates, "candidates", "7B:2T")],
        target_loss=target_loss,
        shapes=None if real_shapes is None else existing(*real_shapes),
    )
    if isinstance(source, str):
        return Decision.of(answer)
    shown = answer.candidates if candidates or answer.best is None else (answer.best,)
    fitted = fitted_range(source.observations)
    far = [
        far_warning(each.label, words)
        for each in shown
        if (words := fitted.far(n_params=each.n_params, n_tokens=each.n_tokens, flops=each.flops))
    ]
    # warnings about the forecasts of the report are not about this decision
    kept = [warning for warning in source.warnings if warning.code != "extrapolation"]
    warnings = ordered([*kept, *far, *answer.warnings])
    return Decision.of(replace(answer, warnings=warnings))


def _given(kind: type[T], given: T | Mapping[str, Any] | None, argument: str) -> T:
    """Return limits or a demand; text in a dict is read as a quantity."""
    if isinstance(given, Mapping):
        given = {
            name: parse_quantity(value, what=name)
            if isinstance(value, str) and name != "gpu"
            else value
            for name, value in given.items()
        }
    return value_of(kind, {} if given is None else given, argument)


def setting_of(demand: Demand) -> Setting:
    """Return a demand with the defaults of the hardware table filled in."""
    from scalelab.forecast.decision import Setting
    from scalelab.theory.hardware import STATED_UTILISATION, WORLD_GRAMS_PER_KWH, find_hardware

    device = find_hardware(demand.gpu)
    return Setting(
        hardware=device,
        n_devices=demand.n_devices,
        utilisation=STATED_UTILISATION if demand.utilisation is None else demand.utilisation,
        usd_per_hour=device.usd_per_hour if demand.usd_per_hour is None else demand.usd_per_hour,
        grams_per_kwh=WORLD_GRAMS_PER_KWH if demand.grams_per_kwh is None else demand.grams_per_kwh,
        inference_tokens=demand.inference_tokens,
        bytes_per_param=demand.bytes_per_param,
    )


def as_sweep(best: Candidate, made_by: str, real_shapes: tuple[int, int] | None = None) -> str:
    """Return a sweep file, a grid of one run, for a candidate; ``scalelab sweep run`` takes it.

    Parameters
    ----------
    best : Candidate
    made_by : str
        Command that gives the same answer; written as a comment.
    real_shapes : (int, int), optional
        Vocabulary and sequence length for which its shape was chosen. With them the plan has the
        same shape and FLOPs.
    """
    from scalelab.corpus.tokenizer import ByteTokenizer
    from scalelab.units import format_flops

    if real_shapes is None:
        counted = (
            f"# C = 6 N D = {format_flops(best.flops)} FLOP. The plan trains the nearest shape and "
            "counts its exact FLOPs:\n"
            "# see `sweep run --dry-run`; `decide --real-shapes` keeps a limit by these.\n"
        )
        made_for = ""
    else:
        vocab_size, seq_len = real_shapes
        counted = f"# {best.shape}, {format_flops(best.flops)} FLOP by exact count.\n"
        tokenizer = "bytes" if vocab_size == ByteTokenizer.vocab_size else f"bpe:{vocab_size}"
        made_for = f'\n[data]\ntokenizer = "{tokenizer}"\n\n[train]\nseq_len = {seq_len}\n'
    words = "".join(letter for letter in made_by if letter.isprintable())
    limits = "" if best.low is None else f" ({best.low:.4f} to {best.high:.4f})"
    return (
        f"# {words}\n"
        f"# Predicted loss {best.loss_nats:.4f} nats{limits}.\n"
        f"{counted}"
        'kind = "grid"\n'
        f'n_params = "{best.n_params:.6g}"\n'
        f'n_tokens = "{best.n_tokens:.6g}"\n'
        f"{made_for}"
    )
