"""Branches of a WSD trunk: which runs share it, where each leaves it, and the steps saved.

Under ``wsd``, runs that differ only in length and decay take the same steps until the shorter one
starts to decay. `scalelab.train.trunk` saves the states at those steps.

References
----------
Hagele et al. 2024, arXiv:2405.18392 (one trunk, one cooldown per length).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence

from scalelab.sweep.run_spec import RUN_ID_LENGTH, RunSpec, canonical

_BRANCH_FIELDS = ("n_steps", "decay_steps")


def trunk_id(spec: RunSpec) -> str:
    """Return the hash of a run without its length, which all branches of a trunk share."""
    content = {k: v for k, v in canonical(spec).items() if k not in _BRANCH_FIELDS}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:RUN_ID_LENGTH]


def branch_step(spec: RunSpec) -> int | None:
    """Return the step at which a run leaves its trunk; None if it has no trunk."""
    return spec.n_steps - spec.decay_steps if spec.schedule == "wsd" and spec.decay_steps else None


def predecessors(specs: Iterable[RunSpec]) -> dict[str, RunSpec]:
    """Return, by run_id, the branch from whose trunk state a run starts; the first has none.

    It is the longest other branch that leaves the trunk no later than the run.
    """
    trunks: dict[str, list[RunSpec]] = {}
    for spec in dict.fromkeys(specs):
        if branch_step(spec) is not None:
            trunks.setdefault(trunk_id(spec), []).append(spec)
    found = {}
    for branches in trunks.values():
        in_order = sorted(branches, key=lambda spec: (branch_step(spec) or 0, spec.run_id))
        for before, after in itertools.pairwise(in_order):
            found[after.run_id] = before
    return found


def shared_steps(specs: Sequence[RunSpec]) -> dict[str, int]:
    """Return, by run_id, the steps that another branch of the trunk has already taken."""
    before = predecessors(specs)
    return {
        spec.run_id: branch_step(before[spec.run_id]) or 0 if spec.run_id in before else 0
        for spec in specs
    }
