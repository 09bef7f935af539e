"""States of a run, and the groups of states that commands act on.

Run folders record `FILE_STATES`. The SLURM launcher adds ``queued`` from the queue; `scalelab
status` adds ``interrupted`` and ``broken``. `RUN_STATES` has the meaning of every state.
"""

from __future__ import annotations

INTERRUPTED = "interrupted"
PRUNED = "pruned"
BROKEN = "broken"

RUN_STATES = {
    "done": "Training ended and its loss was accepted.",
    "running": "The newest attempt is training.",
    "queued": "A SLURM job that contains the run waits, or trains another run first.",
    "planned": "No attempt has started.",
    INTERRUPTED: "The worker process died without recording an end.",
    "preempted": "The worker stopped early; the next attempt resumes from its checkpoint.",
    "cancelled": "A user cancelled the run.",
    PRUNED: "A launcher with --stop-hopeless stopped the run; fits leave it out.",
    "diverged": "The loss diverged; fits leave the run out.",
    "failed": "The newest attempt ended with an error, or too many attempts died.",
    BROKEN: "The run folder cannot be read.",
}
"""Each state and its meaning, in display order."""

FILE_STATES = tuple(state for state in RUN_STATES if state not in ("queued", INTERRUPTED, BROKEN))
"""States that the files of a run folder record."""

FINAL = ("done", "diverged")
"""A result was accepted; the run is never trained again."""

ENDED = (*FINAL, "failed", PRUNED)
"""No attempt follows unless the user asks for a retry."""

ACTIVE = ("running", "queued")
"""A worker or a job has the run."""

STOPPED = ("planned", INTERRUPTED, "preempted", "cancelled")
"""Nothing has the run; `scalelab resume` continues it."""

OPEN = ("planned", *ACTIVE)
"""No attempt is over, or a new one is running or queued."""

LOST = ("failed", PRUNED, "diverged", "cancelled", "preempted")
"""The newest attempt ended without a usable loss."""

RESTARTABLE = (*ACTIVE, "planned", "preempted", "cancelled")
"""A launcher starts the run if no process has it."""
