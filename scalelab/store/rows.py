"""Convert the files of a run into rows of ``runs`` and ``attempts``: pure functions."""

from __future__ import annotations

import functools
import json
import math
import operator
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from scalelab.corpus.tasks import TEXT
from scalelab.records.run_dir import execution_of
from scalelab.records.run_files import RUN_DEFAULTS, SHAPE_DEFAULTS, RunFiles
from scalelab.records.types import RunRecord
from scalelab.store.arrow_columns import arrow_columns
from scalelab.store.program_columns import program_columns, program_of
from scalelab.store.table_types import Table
from scalelab.sweep.execution import AUTO, CHOICES
from scalelab.sweep.run_size import flop_convention, model_size
from scalelab.sweep.run_spec import PARTS
from scalelab.theory.accounting import (
    DEFAULT_PARAM_CONVENTION,
    count_params,
    train_flops_per_token,
)
from scalelab.theory.shape import ModelShape

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

_FROM_RECORD = (
    *("n_tokens", "unique_tokens", "loss_se_nats", "ema_loss_nats"),
    *("wall_s", "energy_j", "diverged_at_step", "reason"),
)
_FROM_NOTE = ("started_s", "host", "job_id", "restart_count", "git_commit", "is_dirty")


def run_row(run: RunFiles) -> Row:
    """Return the run's row of ``runs``."""
    shape = {**SHAPE_DEFAULTS, **run.spec["shape"]}
    spec = {**RUN_DEFAULTS, **run.spec}
    program = program_of(run.spec)
    tokens_per_step = spec["batch_seqs"] * spec["seq_len"]
    newest = run.accepted or (run.attempts[-1] if run.attempts else None)
    row: Row = {
        **spec,
        **shape,
        **{name: _json(parts) if (parts := spec[name]) else None for name in PARTS},
        "run_id": run.run_id,
        "status": run.status,
        "n_tokens": tokens_per_step * spec["n_steps"],
        "tokens_per_step": tokens_per_step,
        "attempts": len(run.attempts),
        **(execution_columns(newest.note) if newest else {}),
    }
    if run.accepted is not None and run.accepted.record is not None:
        record = run.accepted.record
        n_params, flops = record.n_params, record.flops
        row |= {
            "eval_sets": _eval_sets(run, spec["eval_sets"], record.n_steps) or row["eval_sets"],
            **{name: getattr(record, name) for name in _FROM_RECORD},
            "loss_nats": record.loss_nats if record.status == "done" else None,
            **_bits_per_byte(record),
            "epochs": record.n_tokens / record.unique_tokens if record.unique_tokens else None,
            "accepted_attempt": run.accepted.number,
            "steps_taken": record.n_steps,
        }
    else:
        n_params, per_token = _planned_counts(tuple(shape.items()), spec["seq_len"])
        if program is not None:
            size = model_size(_model(tuple(shape.items())), spec["seq_len"], program)
            n_params, per_token = dict(size.n_params), dict(size.flops_per_token)
        flops = {name: value * row["n_tokens"] for name, value in per_token.items()}
        row["reason"] = newest.end.get("reason") if newest else None
        if run.pruned is not None:
            row["reason"] = run.pruned.get("reason")
    row |= {f"n_params_{name}": count for name, count in n_params.items()}
    row |= {f"flops_{name}": count for name, count in flops.items()}
    row |= _expert_columns(_model(tuple(shape.items())), n_params)
    row["n_params"] = n_params.get(DEFAULT_PARAM_CONVENTION)
    row["flop_convention"] = flop_convention(flops)
    row["flops"] = flops.get(row["flop_convention"] or "")
    if program is not None:
        row |= program_columns(program, _model(tuple(shape.items())))
    return row


def _eval_sets(run: RunFiles, planned: Iterable[Row], last_step: int) -> str | None:
    """Return the sets of a run with those that were evaluated after it; None without the latter.

    Their fingerprints say whether the losses of two runs are of the same tokens.
    """
    later = {
        each.set: {"name": each.set, "fingerprint": each.fingerprint, "n_tokens": each.n_tokens}
        for each in run.evaluations
        if each.kind == TEXT and each.step == last_step
    }
    if not later:
        return None
    known = later | {ref["name"]: ref for ref in planned}
    return _json([known[name] for name in sorted(known)])


def _bits_per_byte(record: RunRecord) -> Row:
    """Return the loss in bits per byte of text, which runs with other tokenizers share."""
    found, loss = record.bytes_per_token, record.loss_nats
    if not isinstance(found, (int, float)) or not found > 0:
        return {}
    if record.status != "done" or loss is None:
        return {"bytes_per_token": found}
    return {"bytes_per_token": found, "bits_per_byte": loss / math.log(2) / found}


def attempt_rows(run: RunFiles, torn: Mapping[int, int]) -> list[Row]:
    """Return the run's rows of ``attempts``; ``torn`` has the torn lines by attempt number."""
    segments = run.curve_segments()
    rows = []
    for attempt in run.attempts:
        resumed_attempt, resumed_step = attempt.resumed_from
        after, to = segments.get(attempt.number, (None, None))
        note, record = attempt.note, attempt.record
        versions = note.get("versions")
        rows.append(
            {
                "run_id": run.run_id,
                "attempt": attempt.number,
                "status": record.status if record else attempt.end.get("status") or "running",
                "is_accepted": attempt is run.accepted,
                "loss_nats": record.loss_nats if record else None,
                "kind": attempt.end.get("kind"),
                "reason": attempt.end.get("reason"),
                "evals": _json(evals) if (evals := attempt.end.get("evals")) else None,
                "resumed_from_attempt": resumed_attempt,
                "resumed_from_step": resumed_step,
                "curve_after_step": after,
                "curve_to_step": to,
                "torn_lines": torn.get(attempt.number, 0),
                "ended_s": attempt.end.get("time_s"),
                "energy_j": attempt.end.get("energy_j"),
                **execution_columns(note),
                **{name: note.get(name) for name in _FROM_NOTE},
                "versions": _versions_text(versions) if versions else None,
            }
        )
    return rows


def execution_columns(note: Mapping[str, Any]) -> Row:
    """Return the execution columns of an attempt."""
    execution = execution_of(note)
    qualification = note.get("qualification")
    requested = qualification.get("requested") if isinstance(qualification, dict) else None
    execution["requested"] = _request_text(requested or execution)
    execution["step_mode"] = execution.pop("step", None)
    return {**execution, "device_name": note.get("device_name")}


def _request_text(way: Any) -> str | None:
    """Return step, kernels and attention of a request as text; None if one is unknown."""
    words = [way.get(name) for name in CHOICES] if isinstance(way, dict) else [None]
    if None in words:
        return None
    return AUTO if set(words) == {AUTO} else " + ".join(map(str, words))


def _expert_columns(shape: ModelShape, n_params: Mapping[str, int]) -> Row:
    """Return the columns of the mixture-of-experts laws, in which a dense model has one expert."""
    active, total = n_params.get("active"), n_params.get("chinchilla")
    return {
        "n_experts": max(shape.n_experts, 1),
        "n_active_experts": max(shape.n_active_experts, 1),
        "granularity": shape.granularity,
        "density": active / total if active and total else None,
    }


@functools.lru_cache(maxsize=4096)
def _model(shape: tuple[tuple[str, Any], ...]) -> ModelShape:
    return ModelShape(**dict(shape))


@functools.lru_cache(maxsize=4096)
def _planned_counts(
    shape: tuple[tuple[str, Any], ...], seq_len: int
) -> tuple[dict[str, int], dict[str, float]]:
    model = _model(shape)
    return count_params(model).by_convention(), train_flops_per_token(model, seq_len)


def _versions_text(versions: Any) -> str:
    """Return versions as JSON, cached because the runs of a sweep share them."""
    is_plain = isinstance(versions, dict) and all(type(v) is str for v in versions.values())
    return _sorted_json(tuple(versions.items())) if is_plain else _json(versions)


@functools.lru_cache(maxsize=256)
def _sorted_json(items: tuple[tuple[str, str], ...]) -> str:
    return _json(dict(items))


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def as_arrow(table: Table, rows: Iterable[Row]) -> pa.Table:
    """Return rows as an Arrow table with the columns of ``table``; missing values are null.

    Values of the wrong type are as in `scalelab.store.arrow_columns.arrow_columns`.
    """
    names = table.column_names()
    blank, values_of = dict.fromkeys(names), operator.itemgetter(*names)
    tuples = [values_of({**blank, **row}) for row in rows]
    columns = zip(*tuples, strict=True) if tuples else ([] for _ in names)
    return arrow_columns(table, dict(zip(names, columns, strict=True)))
