"""What to start next: the difference between the plan and what the run folders say.

Pure: the same inputs give the same actions, so every fault can be tested without a process. A
finished run is never redone, a living one never doubled, and unknown is never taken for failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scalelab.records.states import FINAL, RESTARTABLE

MAX_LOST_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """What is known of a run.

    Attributes
    ----------
    status : str
        One of `scalelab.records.states.FILE_STATES`, as its files say.
    is_alive : bool
        Whether a process or job that works on it may still live.
    n_lost : int
        Attempts in a row that ended without a word (killed, out of memory, machine gone).
    is_wanted : bool
        False when somebody cancelled it: then it is not started again.
    """

    status: str
    is_alive: bool = False
    n_lost: int = 0
    is_wanted: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Actions:
    """What a launcher does with each run of a plan; the four parts are the plan.

    Attributes
    ----------
    start : tuple of str
        run_ids to start, in the order given.
    wait : tuple of str
        Alive elsewhere: watched, not started.
    finished : tuple of str
        With an accepted record.
    gave_up : tuple of str
        Failed, lost too often or cancelled: started again only when asked for.
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
        What is known of each; a run that is absent was never started.
    retry_failed : bool
        Whether runs that failed, or were lost too often, are started again.
    """
    parts: dict[str, list[str]] = {"start": [], "wait": [], "finished": [], "gave_up": []}
    for run_id in dict.fromkeys(run_ids):
        state = states.get(run_id, RunState(status="planned"))
        if state.status in FINAL:
            parts["finished"].append(run_id)
        elif state.is_alive:
            parts["wait"].append(run_id)
        elif not state.is_wanted:
            parts["gave_up"].append(run_id)
        elif retry_failed or (state.status in RESTARTABLE and state.n_lost < MAX_LOST_ATTEMPTS):
            parts["start"].append(run_id)
        else:
            parts["gave_up"].append(run_id)
    return Actions(**{name: tuple(found) for name, found in parts.items()})
