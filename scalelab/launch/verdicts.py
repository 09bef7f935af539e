"""What is known about this machine's GPU when a sweep is planned: verdicts of earlier workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scalelab.launch.devices import gpu_names
from scalelab.records.qualification import cached_verdicts, choice, merged, read_verdicts, with_way
from scalelab.records.software import installed_version, trainer_revision
from scalelab.records.sweep_dir import Results
from scalelab.sweep.execution import ExecutionSpec, candidates
from scalelab.sweep.run_spec import RunSpec

Verdict = Mapping[str, Any]


def local_verdict(results: Results, request: ExecutionSpec) -> Verdict | None:
    """Return the verdict on this machine's GPU with the installed software; None without one.

    The driver is not compared: a worker does that.
    """
    if request.device != "cuda" or not gpu_names():
        return None
    folders = (results.qualification, cached_verdicts())
    known = [each for folder in folders for each in read_verdicts(folder).values() if _is_own(each)]
    if not known:
        return None
    newest = known[0]
    for other in known[1:]:
        if other["platform"] == newest["platform"]:
            newest = merged(newest, other)
    return newest


def taken_execution(
    request: ExecutionSpec, spec: RunSpec, verdict: Verdict | None, *, n_runs: int = 1
) -> ExecutionSpec | None:
    """Return the way that a worker takes for a run after a verdict; None if it must measure."""
    way = choice(verdict, spec, n_runs, candidates(request, spec))
    return None if way is None else with_way(request, way)


def _is_own(verdict: Verdict) -> bool:
    platform = verdict["platform"]
    # The name of a build, such as +cu130, is not always part of the package's version.
    versions = (str(platform.get("torch")).split("+")[0], str(platform.get("triton")))
    installed = (installed_version("torch").split("+")[0], installed_version("triton"))
    is_same = versions == installed and platform.get("revision") == trainer_revision()
    return is_same and platform.get("device") in gpu_names()
