"""The environment variables that a user's program gets."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping

from scalelab.launch.programs.process import TOKEN_VARIABLE
from scalelab.program_log import METRICS_VARIABLE
from scalelab.records.machine import SAFE_PATH
from scalelab.records.run_dir import Attempt
from scalelab.sweep.program import ProgramExecution
from scalelab.sweep.program_render import Place

ALWAYS_PASSED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_*", "TZ", "TMPDIR", "TERM"),
    *("LD_LIBRARY_PATH", "CUDA_*", "NVIDIA_*", "ROCR_*", "HIP_*", "OMP_NUM_THREADS"),
)
"""Variables that a program gets in addition to those of ``pass_env``."""
RANKS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("ROLE_*", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_*", "OMPI_*", "PMI_*", "PMIX_*"),
    *("SLURM_*", "SLURMD_*", "SUBMITIT_*"),
)
"""Variables by which a program would take itself for a part of the worker's job."""
DEFAULTS = {"WANDB_MODE": "offline", "PYTHONUNBUFFERED": "1"}
"""Set where neither the sweep file nor the environment says otherwise. A program that does not
buffer its output shows its progress at once, and its last lines survive SIGKILL."""


def program_environment(
    execution: ProgramExecution,
    declared: Mapping[str, str],
    own: Mapping[str, str],
    *,
    is_step: bool = False,
    base: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the whole environment of a program.

    Parameters
    ----------
    execution : ProgramExecution
        With ``pass_env``.
    declared : Mapping
        Variables of the sweep file.
    own : Mapping
        Variables of scalelab, ``SCALELAB_*``.
    is_step : bool
        Whether srun starts the program, which needs the variables of SLURM.
    base : Mapping, optional
        The worker's environment; default that of this process.
    """
    found = dict(os.environ if base is None else base)
    if execution.pass_env:
        needed = ("SLURM_*",) if is_step else ()
        found = _matching(found, (*ALWAYS_PASSED, *needed, *execution.pass_env))
    # The worker imports nothing from its folder; a program may import its neighbours.
    removed = (*SAFE_PATH, "SCALELAB_*", *(() if is_step else RANKS))
    for name in _matching(found, removed):
        if name not in execution.pass_env:
            del found[name]
    return {**DEFAULTS, **found, **declared, **own}


def own_variables(attempt: Attempt, place: Place, deadline_s: float | None) -> dict[str, str]:
    """Return the variables ``SCALELAB_*`` of an attempt.

    Parameters
    ----------
    attempt : Attempt
    place : Place
        Where it executes.
    deadline_s : float or None
        Unix time at which the worker will stop the program; None without a limit.
    """
    deadline = {} if deadline_s is None else {"SCALELAB_DEADLINE": str(int(deadline_s))}
    return {
        "SCALELAB_RUN_ID": place.run_id,
        "SCALELAB_RUN_JSON": place.run_json,
        METRICS_VARIABLE: place.metrics,
        "SCALELAB_OUT_DIR": place.out_dir,
        "SCALELAB_CHECKPOINT": place.checkpoint,
        "SCALELAB_ATTEMPT": str(attempt.number),
        TOKEN_VARIABLE: attempt.token,
        **deadline,
    }


def _matching(found: Mapping[str, str], patterns: tuple[str, ...]) -> dict[str, str]:
    return {
        name: value
        for name, value in found.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
