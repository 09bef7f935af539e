"""Deciding which runs to start: the difference between the plan and the state of the run folders.

A pure function, so that every fault can be tested without a process. A finished run is never
repeated, a living run never started twice, and an unknown state never counts as failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scalelab.records.states import FINAL, PRUNED, RESTARTABLE

MAX_LOST_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """The state of a run as a launcher sees it.

    Attributes
    ----------
    status : str
        One of `scalelab.records.states.FILE_STATES` from the run folder, or ``queued``.
    is_alive : bool
        Whether a process or job that trains it may still be running.
    n_lost : int
        Consecutive attempts that ended without a note (killed, out of memory, machine lost).
    is_wanted : bool
        False if the run was cancelled or pruned: then it is not started again.
    """

    status: str
    is_alive: bool = False
    n_lost: int = 0
    is_wanted: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Actions:
    """What a launcher does with the runs of a plan; each run is in exactly one part.

    Attributes
    ----------
    start : tuple of str
        run_ids to start, in the order given.
    wait : tuple of str
        Running elsewhere: watched, not started.
    finished : tuple of str
        With an accepted record.
    gave_up : tuple of str
        Failed, lost too often, cancelled or pruned: started again only on request.
    """

    start: tuple[str, ...]
    wait: tuple[str, ...]
    finished: tuple[str, ...]
    gave_up: tuple[str, ...]


def reconcile(
    run_ids: Sequence[str], states: Mapping[str, RunState], *, retry_failed: bool = False
) -> Actions:
    """Return what to do with each run.

    Parameters
    ----------
    run_ids : sequence of str
        The plan, in the order in which runs should start.
    states : Mapping[str, RunState]
        State of each run; an absent run was never started.
    retry_failed : bool
        Whether to start runs again that failed or were lost too often.
    """
    parts: dict[str, list[str]] = {"start": [], "wait": [], "finished": [], "gave_up": []}
    for run_id in dict.fromkeys(run_ids):
        state = states.get(run_id, RunState(status="planned"))
        if state.status in FINAL:
            parts["finished"].append(run_id)
        elif state.is_alive:
            parts["wait"].append(run_id)
        elif not state.is_wanted or state.status == PRUNED:
            parts["gave_up"].append(run_id)
        elif retry_failed or (state.status in RESTARTABLE and state.n_lost < MAX_LOST_ATTEMPTS):
            parts["start"].append(run_id)
        else:
            parts["gave_up"].append(run_id)
    return Actions(**{name: tuple(found) for name, found in parts.items()})
