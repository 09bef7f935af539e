"""The verb `decide`: what to train under limits, from a fit or from a published law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scalelab.forecast.decision import Candidate, Decision, Limits, Setting
    from scalelab.forecast.fit_report import FitReport


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """On what a model is trained and served.

    Attributes
    ----------
    gpu : str
        Name in the hardware table.
    n_devices : float
    utilisation : float or None
        Share of the peak; None is the stated one.
    usd_per_hour, grams_per_kwh : float or None
        None takes the table's.
    inference_tokens : float
        Tokens served over the model's life.
    bytes_per_param : float
        Of the served weights.
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
    limits: Limits,
    demand: Demand | None = None,
    *,
    candidates: Sequence[str] = (),
    target_loss: float | None = None,
    real_shapes: tuple[int, int] | None = None,
) -> Decision:
    """Return what to train under limits.

    Parameters
    ----------
    source : FitReport or str
        A fit, or the name of a published law.
    limits : Limits
    demand : Demand, optional
    candidates : sequence of str
        Such as ``7B:2T``; none searches.
    target_loss : float, optional
        Loss to reach, nats.
    real_shapes : (int, int), optional
        Vocabulary and sequence length: choose among shapes that exist, by their exact FLOPs;
        default any size with C = 6 N D.

    Raises
    ------
    UsageError
        For limits that no model keeps, unknown names, no limit at all, or a target loss without
        a fit.
    NotIdentifiedError
        When the fit does not determine its law.
    """
    from scalelab.errors import UsageError
    from scalelab.forecast.decide import decide as best
    from scalelab.forecast.decide import parse_candidate
    from scalelab.forecast.extrapolation import far_warning, fitted_range
    from scalelab.forecast.fit_report import ordered
    from scalelab.forecast.forecaster import forecaster
    from scalelab.forecast.published_laws import law_by_name
    from scalelab.forecast.size_pool import real_shapes as existing

    if isinstance(source, str):
        found = forecaster(law_by_name(source).law)
    else:
        found = forecaster(source.fit, source.level)
    if target_loss is not None and isinstance(source, str):
        raise UsageError(
            f"a target loss by the constants of {source}",
            "a fit of runs: their noise says how likely a run is to miss it",
            "Give --from or --sweep in place of --law, or leave out --target-loss.",
        )
    answer = best(
        found,
        limits,
        setting_of(demand or Demand()),
        named=[parse_candidate(text) for text in candidates],
        target_loss=target_loss,
        shapes=None if real_shapes is None else existing(*real_shapes),
    )
    if isinstance(source, str):
        return answer
    told = answer.candidates if candidates or answer.best is None else (answer.best,)
    reach = fitted_range(source.observations)
    far = [
        far_warning(each.label, words)
        for each in told
        if (words := reach.far(n_params=each.n_params, n_tokens=each.n_tokens, flops=each.flops))
    ]
    return replace(answer, warnings=ordered([*source.warnings, *far, *answer.warnings]))


def setting_of(demand: Demand) -> Setting:
    """Return a demand with the table's figures filled in."""
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
    """Return a candidate as a sweep file that ``scalelab sweep run`` takes: a grid of one.

    Parameters
    ----------
    best : Candidate
    made_by : str
        The command that has the same answer, for the comment.
    real_shapes : (int, int), optional
        Vocabulary and sequence length that its shape was chosen for: with them the plan has the
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
