"""Complete a logged run: N, D, loss and whether it ended, each with the sentence of its source."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.logs.history import History
from scalelab.logs.losses import BPB, NATS, checked_unit, in_nats, is_held_out, rank_losses, unit_of
from scalelab.logs.shapes import count_logged
from scalelab.logs.types import FINISHED, UNFINISHED, Derived, LoggedRun, RawRun
from scalelab.logs.values import Settings

_N_NAMES = (
    *("n_params", "num_params", "parameter_count", "num_parameters", "model_num_parameters"),
    *("total_params", "total_parameters", "model_params", "params", "param_count"),
)
_TOKEN_SERIES = (
    *("n_tokens", "n_tokens_seen", "tokens_seen", "total_tokens", "num_input_tokens_seen"),
    *("throughput/total_tokens", "optim/total_tokens", "train/n_tokens", "train/tokens"),
    *("tokens", "consumed_tokens", "consumed-tokens", "token_count", "train/total_tokens"),
)
_PLANNED_STEPS = (
    *("max_steps", "max_iters", "num_iterations", "num_train_steps", "train_iters"),
    *("training/steps", "total_steps", "training_steps", "train_steps", "n_steps", "num_steps"),
)
_BATCH_TOKENS = ("tokens_per_step", "batch_tokens", "tokens_per_batch", "total_batch_size_tokens")
_BATCH = (
    *("global_batch_size", "train_batch_size", "batch_seqs", "batch_size"),
    *("per_device_train_batch_size", "global_bs", "train/batch_size", "batch"),
)
_LENGTH = (
    *("max_seq_len", "seq_len", "seq_length", "block_size", "sequence_length", "sequence_len"),
    *("max_seq_length", "context_length", "ctx_len", "n_ctx", "max_length", "n_positions"),
)
_GLOBAL_BATCH = {"global_batch_size", "train_batch_size", "batch_seqs", "global_bs"}
_RATE = ("learning_rate", "lr", "max_lr", "peak_lr", "matrix_lr", "optimizer/init_args/lr")
_RATE_SERIES = ("learning_rate", "lr", "optim/lr", "optim/learning_rate", "train/learning_rate")


def derive(raw: RawRun, loss_unit: str | None = None) -> LoggedRun:
    """Return the run with N, D, loss and status.

    Parameters
    ----------
    raw : RawRun
        What a reader found.
    loss_unit : str, optional
        Unit of the loss, one of `scalelab.logs.losses.LOSS_UNITS`; default: by its name.

    Raises
    ------
    UsageError
        If the unit is not known.
    """
    settings = Settings(raw.config)
    ends = {n: found for n, s in raw.history.series.items() if (found := s.last()) is not None}
    final = {**raw.summary, **{name: value for name, (_, value) in ends.items()}}
    derived: dict[str, Derived] = {}
    notes = list(raw.notes)
    per_step = raw.tokens_per_step or _tokens_per_step(settings)
    last = raw.history.last_step()
    if last is None and (stated := _first(raw.summary, ("global_step", "step", "_step"))):
        last = int(stated[1]) if math.isfinite(stated[1]) else None
    _add_params(derived, raw, settings)
    loss_name, loss_step = _add_loss(derived, raw, ends, final, loss_unit, notes)
    tokens_name = _token_series(raw.history, final)
    n_tokens = _tokens_at(raw, loss_step, tokens_name, final, per_step, last, settings)
    if n_tokens is not None:
        derived["n_tokens"] = n_tokens
    if per_step is not None:
        derived["batch_tokens"] = per_step
    _add_settings(derived, raw.history, settings)
    incomplete = _why_incomplete(raw, settings, last, final, tokens_name)
    loss = derived.get("loss_nats")
    if not incomplete and loss_name and not math.isfinite(final.get(loss_name, math.nan)):
        incomplete = f"its last {loss_name} is not a finite number"
    return LoggedRun(
        name=raw.name,
        reader=raw.reader,
        path=str(raw.path),
        config=raw.config,
        curve=_curve(raw, tokens_name, per_step, loss_name),
        final=final,
        last_step=last,
        status=UNFINISHED if incomplete else FINISHED,
        incomplete=incomplete,
        derived=derived,
        loss_unit=_unit(loss_name, loss_unit) if loss is not None else NATS,
        is_validation=bool(loss_name) and is_held_out(loss_name),
        notes=tuple(notes),
    )


def _first(values: dict[str, float], names: Sequence[str]) -> tuple[str, float] | None:
    return next(((name, values[name]) for name in names if name in values), None)


def _add_params(derived: dict[str, Derived], raw: RawRun, settings: Settings) -> None:
    """Add N: as the trainer states it, else counted from the shape."""
    counted = count_logged(settings)
    stated = raw.n_params
    if stated is None and (found := _first(raw.summary, _N_NAMES)) is not None:
        stated = Derived(value=found[1], source=f"{found[0]} of the run's summary")
    if stated is None and (named := settings.named_number(*_N_NAMES)) is not None:
        stated = Derived(value=named[1], source=f"{named[0]} of the run's settings")
    if stated is not None and stated.value > 0 and math.isfinite(stated.value):
        derived["n_params"] = stated
    elif counted is not None:
        derived["n_params"] = Derived(value=counted.total, source=counted.source, is_counted=True)
    if "n_params" in derived:
        derived["n_params_chinchilla"] = derived["n_params"]
    if raw.n_params_kaplan is not None:
        derived["n_params_kaplan"] = raw.n_params_kaplan
    elif counted is not None:
        derived["n_params_kaplan"] = Derived(
            value=counted.kaplan, source=f"{counted.source}; without embeddings and head"
        )
    if counted is not None and counted.active != counted.total:
        derived["n_params_active"] = Derived(
            value=counted.active, source=f"{counted.source}; active experts only"
        )


def _unit(name: str, asked: str | None) -> str:
    """Return the unit in which the loss is kept: bits per byte stay, all else becomes nats."""
    return BPB if (checked_unit(asked) if asked else unit_of(name)) == BPB else NATS


def _add_loss(
    derived: dict[str, Derived],
    raw: RawRun,
    ends: dict[str, tuple[int, float]],
    final: dict[str, float],
    asked: str | None,
    notes: list[str],
) -> tuple[str, int | None]:
    """Add the final loss; return its name and step."""
    ranked = rank_losses(final)
    if not ranked:
        return "", None
    name = ranked[0]
    unit = checked_unit(asked) if asked else unit_of(name)
    value = float(in_nats(np.array([final[name]]), unit)[0])
    step = ends[name][0] if name in ends else None
    if math.isfinite(value):
        words = f"last value of {name}"
        if unit not in (NATS, BPB):
            words += f"; converted from {unit} to nats"
        if not is_held_out(name):
            words += "; a training loss, because no held-out loss was logged"
        derived["loss_nats"] = Derived(value=value, source=words)
    others = [other for other in ranked[1:] if is_held_out(other) and unit_of(other) == unit]
    if others:
        notes.append(f"other held-out losses: {', '.join(others[:5])} (--map loss_nats=..)")
    return name, step


def _token_series(history: History, final: dict[str, float]) -> str:
    known = (*history.series, *final)
    return next((name for name in _TOKEN_SERIES if name in known), "")


def _tokens_at(
    raw: RawRun,
    step: int | None,
    series: str,
    final: dict[str, float],
    per_step: Derived | None,
    last: int | None,
    settings: Settings,
) -> Derived | None:
    """Return D at the step of the final loss."""
    if series in raw.history.series:
        steps, values = raw.history.series[series].points()
        at = len(steps) - 1
        if step is not None:
            at = max(int(np.searchsorted(steps, step, side="right")) - 1, 0)
        if math.isfinite(values[at]) and values[at] > 0:
            words = (
                "last value of" if at == len(steps) - 1 else "value at the step of that loss, of"
            )
            return Derived(value=float(values[at]), source=f"{words} {series}")
    elif series and math.isfinite(final[series]) and final[series] > 0:
        return Derived(value=final[series], source=f"{series} of the run's summary")
    if per_step is None:
        return None
    reached = step if step is not None else last
    if reached is None:
        return None
    done = reached + 1 if raw.is_step_from_zero else reached
    if raw.steps_done is not None and (step is None or step >= (last or 0)):
        done = raw.steps_done
    planned = settings.named_number(*_PLANNED_STEPS)
    steps_name = planned[0] if planned is not None and planned[1] == done else "steps"
    if done <= 0:
        return None
    return Derived(value=done * per_step.value, source=f"{steps_name} x {per_step.source}")


def _tokens_per_step(s: Settings) -> Derived | None:
    """Return the tokens of an optimizer step from batch and length."""
    if (named := s.named_number(*_BATCH_TOKENS)) is not None and named[1] > 0:
        return Derived(value=named[1], source=named[0])
    length, batch = s.named_number(*_LENGTH), s.named_number(*_BATCH)
    if s.path("total_batch_size") and (whole := s.number("total_batch_size")):
        return Derived(value=whole, source="total_batch_size")
    if length is None or batch is None or length[1] <= 0 or batch[1] <= 0:
        return None
    factors = [batch]
    if batch[0].rpartition("/")[2] not in _GLOBAL_BATCH:
        for names in (
            ("gradient_accumulation_steps", "grad_accum_steps", "accumulate_grad_batches"),
            ("world_size", "n_gpus", "num_gpus"),
        ):
            factor = s.named_number(*names)
            if factor is not None and factor[1] >= 1:
                factors.append(factor)
    factors.append(length)
    value = math.prod(number for _, number in factors)
    return Derived(value=value, source=" x ".join(name for name, _ in factors))


def _add_settings(derived: dict[str, Derived], history: History, settings: Settings) -> None:
    for column, names in (("seq_len", _LENGTH), ("seed", ("seed",))):
        if (named := settings.named_number(*names)) is not None:
            derived[column] = Derived(value=named[1], source=f"{named[0]} of the run's settings")
    rate = settings.named_number(*_RATE)
    if rate is not None and rate[1] > 0:
        derived["lr"] = Derived(value=rate[1], source=f"{rate[0]} of the run's settings")
        return
    for name in _RATE_SERIES:
        if name in history.series:
            values = history.series[name].points()[1]
            values = values[np.isfinite(values)]
            if len(values) and values.max() > 0:
                derived["lr"] = Derived(
                    value=float(values.max()), source=f"largest value of {name}"
                )
                return


def _why_incomplete(
    raw: RawRun, settings: Settings, last: int | None, final: dict[str, float], tokens: str
) -> str:
    """Return why the run did not reach its planned end; empty if it did or no end is known."""
    if raw.unfinished:
        return raw.unfinished
    planned = raw.planned_steps
    if planned is None and (named := settings.named_number(*_PLANNED_STEPS)) is not None:
        planned = named[1]
    done = raw.steps_done
    slack = 0
    if done is None and last is not None:
        done = last + 1 if raw.is_step_from_zero else last
        slack = _log_interval(raw.history)
    if planned is not None and planned > 0 and done is not None:
        # The last step of a finished run may lie within one interval of logging.
        if done + slack < planned:
            return f"it stopped at step {done:,} of {planned:,.0f}"
    elif raw.planned_tokens and tokens in final and final[tokens] < 0.995 * raw.planned_tokens:
        return f"it stopped at {final[tokens]:,.0f} of {raw.planned_tokens:,.0f} tokens"
    if raw.status and raw.status.lower() not in ("finished", "success", "completed"):
        return f"its status is {raw.status}"
    return ""


def _log_interval(history: History) -> int:
    """Return the distance between the last two steps of the densest series."""
    gaps = []
    for series in history.series.values():
        steps = series.points()[0]
        if len(steps) > 1:
            gaps.append(int(steps[-1] - steps[-2]))
    return min(gaps, default=1)


def _curve(
    raw: RawRun, tokens: str, per_step: Derived | None, loss_name: str
) -> dict[str, FloatArray]:
    """Return steps, tokens and training loss (the final loss where there is no training loss)."""
    ranked = rank_losses(raw.history.series)
    name = next((n for n in ranked if not is_held_out(n) and unit_of(n) == NATS), loss_name)
    empty = np.zeros(0)
    if name not in raw.history.series:
        return {"step": empty, "tokens": empty, "loss_nats": empty}
    steps, losses = raw.history.series[name].points()
    seen = np.full(len(steps), np.nan)
    if tokens in raw.history.series:
        at, values = raw.history.series[tokens].points()
        seen = np.interp(steps, at, values, left=np.nan)
    elif per_step is not None:
        seen = (steps + (1 if raw.is_step_from_zero else 0)) * per_step.value
    unit = unit_of(name)
    return {
        "step": steps.astype(np.float64),
        "tokens": seen,
        "loss_nats": in_nats(losses, unit),
    }
