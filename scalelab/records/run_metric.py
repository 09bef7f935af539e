"""The final value of a metric of one run, from its record and its evaluations."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

from scalelab.errors import UsageError, did_you_mean
from scalelab.records.metric import ACCURACY, BPB, HELDOUT_SET, TASK, Metric, Term
from scalelab.records.run_dir import EVALS_FILE, Attempt, RunDir
from scalelab.records.types import RunRecord
from scalelab.sweep.run_spec import RunSpec


def check_in_training(metric: Metric, specs: Iterable[RunSpec]) -> None:
    """Raise UsageError unless these runs will know the metric when their training ends."""
    for spec in specs:
        names = [HELDOUT_SET, *(ref.name for ref in spec.eval_sets)]
        names += [source.name for source in spec.mixture]
        for term in metric.terms:
            if term.kind in (TASK, ACCURACY):
                raise UsageError(
                    f"--metric {metric.text}, which is measured after training",
                    "an evaluation set, whose loss every run reports at its end",
                    f"Write for example --metric {BPB}:{names[-1]}.",
                )
            if term.name not in names:
                raise UsageError(
                    f"--metric {metric.text}, which these runs do not evaluate",
                    f"one of their evaluation sets: {', '.join(names)}",
                    did_you_mean(term.name, names, prefix="--metric ").strip()
                    or f"Add the set: --eval-set {term.name}=PATH.",
                )
        return


def final_metric(run: RunDir, metric: Metric) -> float | None:
    """Return a metric of a run; infinite if the run diverged, None if it is not known."""
    attempt = run.accepted()
    record = attempt.read_record() if attempt else None
    if attempt is None or record is None:
        return None
    if record.loss_nats is None:
        return math.inf
    sums = [_term(term, attempt, record) for term in metric.terms]
    parts = [t.weight * x for t, x in zip(metric.terms, sums, strict=True) if x is not None]
    return math.fsum(parts) if len(parts) == len(metric.terms) else None


def fingerprints(spec: RunSpec, metric: Metric) -> tuple[str | None, ...]:
    """Return the content hash of the set of each term, which comparable runs share."""
    known = {ref.name: ref.fingerprint for ref in spec.eval_sets}
    known |= {source.name: source.fingerprint for source in spec.mixture}
    return tuple(
        spec.eval_fingerprint if term.name == HELDOUT_SET else known.get(term.name)
        for term in metric.terms
    )


def _term(term: Term, attempt: Attempt, record: RunRecord) -> float | None:
    if term.name == HELDOUT_SET:
        loss, per_token = record.loss_nats, record.bytes_per_token
        bits = loss / math.log(2) / per_token if loss is not None and per_token else None
        return bits if term.kind == BPB else loss
    try:
        text = (attempt.path / EVALS_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    for line in reversed(text.split("\n")[:-1]):
        row = json.loads(line)
        if row["set"] == term.name and row["step"] == record.n_steps:
            loss, n_bytes = float(row["loss_nats"]), row.get("n_bytes")
            if term.kind != BPB:
                return loss
            return loss * row["n_tokens"] / n_bytes / math.log(2) if n_bytes else None
    return None
