"""The measured noise scale of a sweep's runs, as the batch rule ``noise:NAME`` of another sweep."""

from __future__ import annotations

import json
from collections.abc import Iterator
from statistics import fmean

from scalelab.errors import NotIdentifiedError, UsageError
from scalelab.records.run_dir import Attempt
from scalelab.records.sweep_dir import Results
from scalelab.sweep.spec import SweepSpec
from scalelab.theory.noise_rule import NOISE_PREFIX, NoiseConstants, fit_noise_rule
from scalelab.units import plural

MEASURED_SHARE = 0.5
"""Share of a run's training curve, at its end, over which the two terms are averaged."""


def with_noise_rule(sweep: SweepSpec, results: Results) -> SweepSpec:
    """Return the sweep with the constants of its ``noise:NAME`` rule filled in.

    Raises
    ------
    UsageError, NotIdentifiedError
        As `measured_rule`.
    """
    train = sweep.train
    name = train.noise_name()
    if name is None or train.noise is not None:
        return sweep
    filled = train.model_copy(update={"noise": measured_rule(results, name)})
    return sweep.model_copy(update={"train": filled})


def measured_rule(results: Results, name: str) -> NoiseConstants:
    """Return the power law of the noise scale in the finished runs of a sweep.

    Raises
    ------
    UsageError
        If there is no such sweep.
    NotIdentifiedError
        If its runs did not measure the noise scale, or do not differ in D.
    """
    if name not in results.sweep_names():
        known = ", ".join(NOISE_PREFIX + one for one in results.sweep_names()[:3])
        raise UsageError(
            f"the rule {NOISE_PREFIX}{name} without a sweep {name!r} in {results.path}",
            f"one of {known}" if known else "a finished sweep",
            "Set the results folder of the sweep with --results, or train one, for example "
            f"`scalelab sweep grid --name {name} --micro-batch 2 --n-params 1M --n-tokens "
            "20M..80M:3`.",
        )
    run_ids = results.load_plan(name).run_ids
    measured, n_finished = [], 0
    for run_id in run_ids:
        run = results.run(run_id)
        attempt = run.accepted()
        record = None if attempt is None else attempt.read_record()
        if attempt is None or record is None or record.status != "done":
            continue
        n_finished += 1
        scale = noise_scale(attempt)
        if scale is not None:
            measured.append((float(record.n_tokens), scale))
    constants = fit_noise_rule(name, measured)
    if constants is None:
        n_lengths = len({n_tokens for n_tokens, _ in measured})
        raise NotIdentifiedError(
            f"the rule {NOISE_PREFIX}{name}: {plural(len(run_ids), 'run')}, {n_finished} finished, "
            f"{len(measured)} with a noise scale, at {plural(n_lengths, 'number')} of tokens",
            "finished runs with micro-batches and at least two numbers of tokens",
            "Train with --micro-batch half of the batch or less, and with a range such as "
            "--n-tokens 20M..80M:3.",
        )
    return constants


def noise_scale(attempt: Attempt) -> float | None:
    """Return a run's gradient noise scale in tokens; None if it was not measured.

    It is the quotient of the two terms, each averaged over the last `MEASURED_SHARE` of the curve,
    because the mean of the quotients is biased. A negative term is noise and gives None.
    """
    terms = list(_terms(attempt))
    terms = terms[int(len(terms) * (1 - MEASURED_SHARE)) :]
    if not terms:
        return None
    trace, grad_sq = fmean(term[0] for term in terms), fmean(term[1] for term in terms)
    return trace / grad_sq if trace > 0 and grad_sq > 0 else None


def _terms(attempt: Attempt) -> Iterator[tuple[float, float]]:
    """Yield the two terms of each row of the curve that has them; skip an incomplete last line."""
    try:
        lines = attempt.metrics_path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            row = json.loads(line)
            trace, grad_sq = row["noise_trace"], row["noise_grad_sq"]
        except (ValueError, KeyError, TypeError):
            continue
        if trace is not None and grad_sq is not None:
            yield float(trace), float(grad_sq)
