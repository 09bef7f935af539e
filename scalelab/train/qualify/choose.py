"""Which way an attempt takes: from the verdict on this platform, measured where it is missing.

The verdict beside the results counts first, so that all GPUs of a sweep choose alike; where it has
nothing, the one in the user's cache does; where that has nothing either, this worker measures.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from socket import gethostname
from typing import Any

from scalelab.errors import UsageError
from scalelab.records.qualification import (
    RETRIED,
    SCHEMA,
    Platform,
    cached_verdicts,
    choice,
    kernel_class,
    kind_of,
    merged,
    name_of,
    nearest_shape,
    own_kernels,
    own_shape,
    read_verdict,
    ruled_out,
    way_of,
    with_way,
    write_verdict,
)
from scalelab.sweep.execution import (
    AUTO,
    CHOICES,
    ExecutionSpec,
    QualifyRequest,
    candidates,
    planned_execution,
)
from scalelab.sweep.run_spec import RunSpec
from scalelab.train.qualify.cases import free_memory
from scalelab.train.qualify.lock import held
from scalelab.train.qualify.measure import LIMIT_S, Target, measure, way_id
from scalelab.train.qualify.platform import is_measurable, this_platform
from scalelab.train.qualify.steps import plain_reference

MAX_TRIES = 2
"""Qualifications that may run out of time on the same shape before its gaps stay."""
LOCK_WAIT_S = LIMIT_S + 60.0
"""Longest wait for another worker's verdict. After it, a worker measures its own."""
_TRITON_ON_CPU = {"step": "eager", "kernels": "triton", "attention": "explicit"}
"""The way that interpreted kernels add to those of a CPU."""


class RuledOutError(UsageError):
    """A way was asked for by name, and qualification has ruled it out."""


def qualified(
    request: ExecutionSpec,
    spec: RunSpec,
    *,
    n_runs: int,
    request_: QualifyRequest | None,
    should_stop: Callable[[], str | None] | None = None,
    is_forced: bool = False,
) -> tuple[ExecutionSpec, dict[str, Any]]:
    """Return the execution of an attempt without ``auto``, and the note for ``attempt.json``.

    Parameters
    ----------
    request : ExecutionSpec
        As asked for; step, kernels and attention may be ``auto``.
    spec : RunSpec
        The run (the first of batched runs).
    n_runs : int
        Batched runs.
    request_ : QualifyRequest or None
        Folder of the shared verdicts and the shapes of the sweep; None uses the user's cache and
        the shape of the run.
    should_stop : callable
        Called a few times a second while measuring; a text ends it.
    is_forced : bool
        Whether to measure again what the verdicts have.

    Raises
    ------
    RuledOutError
        If the request names fields, and all ways with them are ruled out.
    """
    ways = _ways(request, spec)
    note: dict[str, Any] = {"requested": way_of(request)}
    if not _needs_verdict(request, ways):
        planned = planned_execution(request, spec)
        has_choice = AUTO in way_of(request).values()
        return planned, {**note, "chosen": way_of(planned)} if has_choice else {}
    platform = this_platform(request.device)
    verdict, path = _verdict(platform, request, spec, n_runs, request_, should_stop, is_forced)
    out = ruled_out(verdict, spec, n_runs, ways)
    entry = nearest_shape(verdict, spec, n_runs)
    best = choice(verdict, spec, n_runs, ways)
    note |= {
        "file": None if path is None else str(path),
        "shape": None if entry is None else entry["label"],
        "ruled_out": out,
    }
    if best is None:
        best, note["is_qualified"] = _unqualified(request, spec, ways, out), False
    note["chosen"] = best
    return with_way(request, best), note


def _unqualified(
    request: ExecutionSpec,
    spec: RunSpec,
    ways: Sequence[ExecutionSpec],
    out: Sequence[dict[str, str]],
) -> dict[str, str]:
    """Return the way of a run for which no way is known to be right: what was asked for by name.

    With everything ``auto``, that is the plain reference, which all others are compared with.
    """
    plain = plain_reference(request, spec)
    named = {name: value for name, value in way_of(request).items() if value != AUTO}
    refused = [{name: each[name] for name in CHOICES} for each in out]
    left = [way_of(way) for way in ways if way_of(way) not in refused]
    if named.items() <= way_of(plain).items():
        return way_of(plain)
    if left:
        return left[-1]
    words = " and ".join(f"{name} = {value}" for name, value in named.items())
    reasons = "; ".join(f"{name_of(each)}: {each['status']}, {each['reason']}" for each in out)
    raise RuledOutError(
        f"{words}, which qualification ruled out on this device ({reasons})",
        "a way that gives the reference's results here, such as auto",
        "Use step, kernels and attention = auto, or measure again with "
        "`scalelab bench qualify --sweep NAME --force`.",
    )


def _ways(request: ExecutionSpec, spec: RunSpec) -> list[ExecutionSpec]:
    """Return the ways that a request allows, with interpreted kernels on a CPU."""
    ways = list(candidates(request, spec))
    extra = with_way(request, _TRITON_ON_CPU)
    is_allowed = all(
        value in (AUTO, getattr(extra, name)) for name, value in way_of(request).items()
    )
    if request.device == "cpu" and is_measurable("cpu") and is_allowed and extra not in ways:
        ways.insert(len(ways) - 1, extra)
    return ways


def _needs_verdict(request: ExecutionSpec, ways: Sequence[ExecutionSpec]) -> bool:
    """Say whether a way must be qualified: not for one device's only way, nor for a plain one."""
    if request.n_devices > 1 or not is_measurable(request.device):
        return False
    is_auto = AUTO in way_of(request).values()
    return (is_auto and len(ways) > 1) or any(
        "triton" in (way.kernels, way.attention) or way.step in ("graph", "compiled")
        for way in ways
    )


def _verdict(
    platform: Platform,
    request: ExecutionSpec,
    spec: RunSpec,
    n_runs: int,
    request_: QualifyRequest | None,
    should_stop: Callable[[], str | None] | None,
    is_forced: bool,
) -> tuple[dict[str, Any], Path | None]:
    """Return the verdict with what this run needs, and its file if one could be written."""
    folders = [cached_verdicts()] if request_ is None else [request_.folder, cached_verdicts()]
    paths = [folder / platform.file_name for folder in folders if folder is not None]
    specs = () if request_ is None else request_.specs

    def read() -> dict[str, Any]:
        found = [read_verdict(path) for path in paths]
        known = [each for each in found if each and each["platform"] == asdict(platform)]
        return functools.reduce(merged, known) if known else _empty(platform)

    def targets(verdict: Mapping[str, Any]) -> list[Target]:
        return _targets(verdict, request, spec, n_runs, specs)

    def is_needed() -> bool:
        return is_forced or bool(targets(read()))

    verdict = read()
    if is_needed():
        lock = (
            held(paths[0], wait_s=LOCK_WAIT_S, is_needed=is_needed) if paths else nullcontext(True)
        )
        with lock as goes_on:
            verdict = read()
            if goes_on:
                todo = targets(_empty(platform) if is_forced else verdict)
                fresh = _measured(todo, platform, request, should_stop)
                # Another worker may have written meanwhile: its entries stay, unless forced.
                verdict = merged(fresh, read()) if is_forced else merged(read(), fresh)
                verdict |= {name: fresh[name] for name in ("made_s", "took_s", "host")}
                for path in paths:
                    write_verdict(path, verdict)
    elif paths and read_verdict(paths[0]) != verdict:
        # All runs of this results folder take the same choice, on each machine.
        write_verdict(paths[0], verdict)
    return verdict, next((path for path in paths if path.exists()), None)


def _measured(
    targets: Sequence[Target],
    platform: Platform,
    request: ExecutionSpec,
    should_stop: Callable[[], str | None] | None,
) -> dict[str, Any]:
    """Measure targets and return their entries as a verdict."""
    started = time.monotonic()
    labels = ", ".join(dict.fromkeys(target.spec.shape.label() for target in targets))
    print(
        f"scalelab: qualifying {platform.device} at {labels}, at most {LIMIT_S:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    free_memory()
    measure(targets, request, limit_s=LIMIT_S, should_stop=should_stop)
    return {
        **_empty(platform),
        "took_s": time.monotonic() - started,
        "kernels": [
            {**(t.kernels or t.kernel_entry([])), "tries": t.tries}
            for t in targets
            if t.needs_kernels
        ],
        "shapes": [t.entry() for t in targets if t.ways],
    }


def _empty(platform: Platform) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "platform": asdict(platform),
        "made_s": time.time(),
        "took_s": 0.0,
        "limit_s": LIMIT_S,
        "host": gethostname(),
        "kernels": [],
        "shapes": [],
    }


def _targets(
    verdict: Mapping[str, Any],
    request: ExecutionSpec,
    spec: RunSpec,
    n_runs: int,
    specs: Sequence[RunSpec],
) -> list[Target]:
    """Return what a verdict lacks for a run: shapes with their candidates, the largest first."""
    shapes: list[tuple[RunSpec, int]] = []
    if n_runs == 1 and specs:
        # The largest shape takes most of the compute; the median one has a neighbour on each side.
        shapes = [(each, 1) for each in dict.fromkeys((specs[-1], specs[0], *specs))]
    nearest = nearest_shape(verdict, spec, n_runs)
    if kind_of(spec, n_runs) not in [kind_of(*shape) for shape in shapes] and (
        nearest is None or _left(nearest, _measured_ways(request, spec))
    ):
        shapes.append((spec, n_runs))
    targets = []
    for each, count in shapes:
        ways = _measured_ways(request, each)
        entry, kernels = own_shape(verdict, each, count), own_kernels(verdict, each, count)
        if _left(entry, ways) or (_has_triton(ways) and not _is_settled(kernels)):
            known = () if entry is None else entry["candidates"]
            tried = {way_id(c): c for c in known if c["status"] not in RETRIED}
            tries = 1 + max((e["tries"] for e in (entry, kernels) if e is not None), default=0)
            targets.append(
                Target(
                    spec=each,
                    n_runs=count,
                    ways=ways,
                    kernels=kernels,
                    tries=tries,
                    candidates=tried,
                )
            )
    own = own_kernels(verdict, spec, n_runs)
    is_covered = any(kernel_class(t.spec, t.n_runs) == kernel_class(spec, n_runs) for t in targets)
    if _has_triton(_ways(request, spec)) and not is_covered and not _is_settled(own):
        tries = 1 + (0 if own is None else own["tries"])
        targets.insert(0, Target(spec=spec, n_runs=n_runs, ways=(), kernels=own, tries=tries))
    return targets


def _measured_ways(request: ExecutionSpec, spec: RunSpec) -> list[ExecutionSpec]:
    """Return the ways of a request, and at the end the plain reference to compare them with."""
    plain = plain_reference(request, spec)
    return [*(way for way in _ways(request, spec) if way != plain), plain]


def _left(entry: Mapping[str, Any] | None, ways: Sequence[ExecutionSpec]) -> bool:
    """Say whether an entry lacks ways that are worth another try."""
    if entry is None:
        return True
    known = [way_id(each) for each in entry["candidates"]]
    return not _is_settled(entry) or any(way_id(way) not in known for way in ways)


def _is_settled(entry: Mapping[str, Any] | None) -> bool:
    return entry is not None and (entry["is_whole"] or entry["tries"] >= MAX_TRIES)


def _has_triton(ways: Sequence[ExecutionSpec]) -> bool:
    return any("triton" in (way.kernels, way.attention) for way in ways)
