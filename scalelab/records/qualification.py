"""Verdicts: which ways to execute a step are right and fast on one GPU with one software.

A verdict is a JSON file, one for each `Platform`, in ``<results>/qualification`` and in the user's
cache. `scalelab.train.qualify` writes it; this module reads it, joins two of them and answers which
way a run takes. It needs no torch.

Its fields::

    schema, platform, made_s, took_s, limit_s, host
    kernels   one entry for the sizes of each model: class, is_whole (whether nothing is worth
              another try), tries, and checks: op, size, status, reason, errors and the accepted
              errors (`allowed`)
    shapes    one entry for each run at which whole steps were checked: label, n_params, step_flops,
              seq_len, batch_seqs, n_runs, kind, class, is_whole, tries, chosen, candidates
    candidates of a shape: step, kernels, attention, status, reason, checks (errors by weight),
              step_ms, against_ms (the best earlier way in the same rounds), micro_batch_seqs
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scalelab.records.files import list_entries, read_json, write_atomically
from scalelab.records.machine import cache_folder
from scalelab.sweep.execution import CHOICES, ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import count_params, train_flops_per_token

SCHEMA = 1
OK, NOT_TRIED = "ok", "not tried"
RULED_OUT = ("wrong", "not repeatable", "failed", "crashed", "hung")
"""Statuses of a kernel or a way that is not used: results too far from the reference's, two replays
that differ, an error, the end of its process, no answer in time."""
RETRIED = (NOT_TRIED, "crashed", "hung")
"""Statuses that the next worker tries once more: the machine may have been the reason."""
RELEASED = "released"
"""Content of the lock file of a worker that has finished measuring."""
LOCK_STALE_S = 30.0
"""A lock that does not change for so long has a dead holder."""
WIN_RATIO = 0.98
"""A way replaces an earlier one if its step takes less than this share of the time."""
_KEY_DIGITS = 10

Way = dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Platform:
    """What a verdict holds for.

    Attributes
    ----------
    device : str
        Name of the GPU (of the CPU for interpreted kernels).
    driver, torch, triton : str
        Versions; ``none`` if absent.
    revision : str
        Hash of the sources of the kernels and of the trainer.
    """

    device: str
    driver: str
    torch: str
    triton: str
    revision: str

    @property
    def file_name(self) -> str:
        """Name of the verdict's file."""
        digest = hashlib.sha256("|".join(asdict(self).values()).encode()).hexdigest()
        words = re.sub(r"[^A-Za-z0-9]+", "-", self.device).strip("-").lower()
        return f"{words[:40]}-{digest[:_KEY_DIGITS]}.json"


def cached_verdicts() -> Path | None:
    """Return the folder of the verdicts in the user's cache; None without a home."""
    try:
        return cache_folder() / "qualification"
    except FileNotFoundError:
        return None


def read_verdict(path: Path) -> dict[str, Any] | None:
    """Return a verdict; None if the file is missing, damaged or of another version."""
    try:
        content = read_json(path)
    except OSError:
        return None
    if content is None or content.get("schema") != SCHEMA:
        return None
    has_lists = all(isinstance(content.get(name), list) for name in ("kernels", "shapes"))
    return content if has_lists and isinstance(content.get("platform"), dict) else None


def read_verdicts(folder: Path | None) -> dict[Path, dict[str, Any]]:
    """Return the verdicts in a folder by file, newest first."""
    found = {}
    for path in list_entries(folder) if folder is not None else ():
        if path.suffix == ".json" and (verdict := read_verdict(path)) is not None:
            found[path] = verdict
    return dict(sorted(found.items(), key=lambda item: -float(item[1].get("made_s") or 0)))


def is_measuring(folder: Path, *, now_s: float | None = None) -> bool:
    """Return whether a worker that shares this folder of verdicts is measuring one.

    Its locks are those of `scalelab.train.qualify.lock`. ``now_s`` is the Unix time.
    """
    now = time.time() if now_s is None else now_s
    for lock in (entry for entry in list_entries(folder) if entry.suffix == ".lock"):
        claims = [entry for entry in list_entries(lock) if entry.name.isdecimal()]
        newest = max(claims, key=lambda entry: int(entry.name), default=None)
        try:
            if newest is None or now - newest.stat().st_mtime > LOCK_STALE_S:
                continue
            if newest.read_text(encoding="utf-8") != RELEASED:
                return True
        except OSError:
            continue  # released and removed meanwhile
    return False


def write_verdict(path: Path, verdict: Mapping[str, Any]) -> bool:
    """Write a verdict; return whether that was possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(verdict, indent=1))
    except OSError:
        return False
    return True


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first verdict with what only the second one found out."""
    kernels = {_text(entry["class"]): entry for entry in first["kernels"]}
    for entry in second["kernels"]:
        known = kernels.get(_text(entry["class"]))
        if known is None or (entry["tries"] > known["tries"] and not known["is_whole"]):
            kernels[_text(entry["class"])] = entry
    shapes = {_shape_key(entry): entry for entry in first["shapes"]}
    for entry in second["shapes"]:
        known = shapes.get(_shape_key(entry))
        shapes[_shape_key(entry)] = entry if known is None else _merged_shape(known, entry)
    return {**first, "kernels": list(kernels.values()), "shapes": list(shapes.values())}


def _merged_shape(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    known = {_text(way_of(each)): each for each in first["candidates"]}
    for each in second["candidates"]:
        if known.get(_text(way_of(each)), {"status": NOT_TRIED})["status"] in RETRIED:
            known[_text(way_of(each))] = each
    found = list(known.values())
    return {
        **first,
        "is_whole": first["is_whole"] or second["is_whole"],
        "tries": max(first["tries"], second["tries"]),
        "chosen": fastest(found),
        "candidates": found,
    }


def kernel_class(spec: RunSpec, n_runs: int) -> dict[str, Any]:
    """Return the sizes and the dtype that select the kernels of a run."""
    shape = spec.shape
    return {
        "d_model": shape.d_model,
        "d_ff": shape.d_ff,
        "n_heads": shape.n_heads,
        "n_kv_heads": shape.kv_heads,
        "d_head": shape.d_head,
        "vocab_size": shape.vocab_size,
        "n_experts": shape.n_experts,
        "n_active_experts": shape.n_active_experts,
        "d_shared_expert": shape.d_shared_expert,
        "n_runs": n_runs,
        "has_qk_norm": shape.has_qk_norm,
        "dtype": "fp32" if spec.precision == "fp32" else "bf16",
    }


def kind_of(spec: RunSpec, n_runs: int) -> dict[str, Any]:
    """Return what must be equal for a run to take the choice of another run's shape."""
    more = {name: True for name in ("logit_softcap", "is_document_masked") if getattr(spec, name)}
    return {
        **more,
        "precision": spec.precision,
        "optimizer": spec.optimizer,
        "parametrization": spec.parametrization,
        "has_experts": spec.shape.n_experts > 0,
        "is_batched": n_runs > 1,
    }


def shape_entry(
    spec: RunSpec, n_runs: int, candidates: Sequence[Mapping[str, Any]], **more: Any
) -> dict[str, Any]:
    """Return the entry of a run's shape, with the figures of its candidates."""
    return {
        "label": spec.shape.label(),
        "n_params": count_params(spec.shape).total,
        "step_flops": n_runs * _step_flops(spec),
        "seq_len": spec.seq_len,
        "batch_seqs": spec.batch_seqs,
        "n_runs": n_runs,
        "kind": kind_of(spec, n_runs),
        "class": kernel_class(spec, n_runs),
        **more,
        "chosen": fastest(candidates),
        "candidates": list(candidates),
    }


def own_shape(
    verdict: Mapping[str, Any] | None, spec: RunSpec, n_runs: int
) -> dict[str, Any] | None:
    """Return the entry of exactly this run's shape; None if there is none."""
    wanted = _shape_key(shape_entry(spec, n_runs, ()))
    return next((e for e in (verdict or {}).get("shapes", ()) if _shape_key(e) == wanted), None)


def nearest_shape(
    verdict: Mapping[str, Any] | None, spec: RunSpec, n_runs: int
) -> dict[str, Any] | None:
    """Return the entry of the same kind whose step is nearest in FLOPs; None if there is none.

    An entry without a way that is right does not count: its time ran out.
    """
    kind, flops = kind_of(spec, n_runs), math.log(n_runs * _step_flops(spec))
    entries = [
        entry
        for entry in (verdict or {}).get("shapes", ())
        if entry["kind"] == kind and entry["chosen"] is not None
    ]
    return min(entries, key=lambda e: abs(math.log(e["step_flops"]) - flops), default=None)


def own_kernels(
    verdict: Mapping[str, Any] | None, spec: RunSpec, n_runs: int
) -> dict[str, Any] | None:
    """Return the entry of the kernels at the sizes of a run; None if there is none."""
    wanted = kernel_class(spec, n_runs)
    return next((e for e in (verdict or {}).get("kernels", ()) if e["class"] == wanted), None)


def way_of(execution: ExecutionSpec | Mapping[str, Any]) -> Way:
    """Return step, kernels and attention of an execution."""
    if isinstance(execution, ExecutionSpec):
        return {name: getattr(execution, name) for name in CHOICES}
    return {name: execution[name] for name in CHOICES}


def with_way(execution: ExecutionSpec, way: Mapping[str, Any]) -> ExecutionSpec:
    """Return the execution with step, kernels and attention of a way."""
    return replace(execution, step=way["step"], kernels=way["kernels"], attention=way["attention"])


def name_of(way: Mapping[str, Any]) -> str:
    """Return a way as text, such as ``graph + triton + flash``."""
    return " + ".join(way[name] for name in CHOICES)


def kernel_status(
    entry: Mapping[str, Any] | None, way: Mapping[str, Any]
) -> tuple[str, str] | None:
    """Return status and reason if the kernels at some sizes keep a way from being used, or None."""
    if "triton" not in (way["kernels"], way["attention"]):
        return None
    for check in () if entry is None else entry["checks"]:
        field = "attention" if check["op"].startswith("attention") else "kernels"
        if way[field] == "triton" and check["status"] != OK:
            return check["status"], f"{check['op']} ({check['size']}): {check['reason']}"
    if entry is None or not entry["is_whole"]:
        return NOT_TRIED, "not all kernels were checked at these sizes"
    return None


def status_of(
    verdict: Mapping[str, Any] | None,
    spec: RunSpec,
    n_runs: int,
    way: ExecutionSpec | Mapping[str, Any],
) -> tuple[str, str]:
    """Return the status of a way for a run, and the reason if it is not ``ok``."""
    way = way_of(way)
    problem = kernel_status(own_kernels(verdict, spec, n_runs), way)
    if problem is not None:
        return problem
    entry = nearest_shape(verdict, spec, n_runs)
    for candidate in () if entry is None else entry["candidates"]:
        if way_of(candidate) == way_of(way):
            return candidate["status"], candidate["reason"]
    return NOT_TRIED, "it was not among the candidates"


def ruled_out(
    verdict: Mapping[str, Any] | None, spec: RunSpec, n_runs: int, ways: Iterable[ExecutionSpec]
) -> list[dict[str, str]]:
    """Return the ways that a run must not take, each with status and reason."""
    found = []
    for way in ways:
        status, reason = status_of(verdict, spec, n_runs, way)
        if status in RULED_OUT:
            found.append({**way_of(way), "status": status, "reason": reason})
    return found


def choice(
    verdict: Mapping[str, Any] | None, spec: RunSpec, n_runs: int, ways: Iterable[ExecutionSpec]
) -> Way | None:
    """Return the fastest of the ways that are right for a run; None if none is known to be."""
    entry = nearest_shape(verdict, spec, n_runs)
    if entry is None:
        return None
    wanted = [way_of(way) for way in ways]
    return fastest(
        [
            candidate
            for candidate in entry["candidates"]
            if way_of(candidate) in wanted and status_of(verdict, spec, n_runs, candidate)[0] == OK
        ]
    )


def fastest(candidates: Iterable[Mapping[str, Any]]) -> Way | None:
    """Return the fastest right candidate; the earlier one if two are equal within 2 %."""
    best: Mapping[str, Any] | None = None
    for candidate in candidates:
        if candidate["status"] != OK or candidate.get("step_ms") is None:
            continue
        if best is not None:
            # Times from the same rounds are compared where there are some.
            is_paired = candidate.get("against") == way_of(best)
            other = candidate["against_ms"] if is_paired else best["step_ms"]
            if candidate["step_ms"] >= WIN_RATIO * other:
                continue
        best = candidate
    return None if best is None else way_of(best)


def _step_flops(spec: RunSpec) -> float:
    per_token = train_flops_per_token(spec.shape, spec.seq_len)["exact"]
    return float(per_token * spec.tokens_per_step)


def _shape_key(entry: Mapping[str, Any]) -> str:
    return _text([entry[n] for n in ("class", "kind", "label", "seq_len", "batch_seqs", "n_runs")])


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
