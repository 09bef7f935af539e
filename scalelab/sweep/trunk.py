"""Runs of one constant-rate trunk: which share it, where they leave it, and what that saves.

Under ``wsd`` two runs that differ only in their length and their decay take the same steps until
the shorter one begins to decay. `scalelab.train.trunk` keeps the states there.

References
----------
Hagele et al. 2024, arXiv:2405.18392 (one trunk, a cooldown a length).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence

from scalelab.sweep.run_spec import RUN_ID_LENGTH, RunSpec, canonical

_BRANCH_FIELDS = ("n_steps", "decay_steps")


def trunk_id(spec: RunSpec) -> str:
    """Return the identity that all branches of one trunk share: the run's without its length."""
    content = {k: v for k, v in canonical(spec).items() if k not in _BRANCH_FIELDS}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:RUN_ID_LENGTH]


def branch_step(spec: RunSpec) -> int | None:
    """Return after how many steps a run leaves its trunk; None when it has none."""
    return spec.n_steps - spec.decay_steps if spec.schedule == "wsd" and spec.decay_steps else None


def predecessors(specs: Iterable[RunSpec]) -> dict[str, RunSpec]:
    """Return, by run_id, the branch whose place on the trunk a run begins at; none for the first.

    The longest other branch that leaves the trunk no later than the run does.
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
    """Return, by run_id, the steps that a run finds taken where its trunk's branches go in turn."""
    before = predecessors(specs)
    return {
        spec.run_id: branch_step(before[spec.run_id]) or 0 if spec.run_id in before else 0
        for spec in specs
    }
