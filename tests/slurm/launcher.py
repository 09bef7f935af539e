"""A launcher in a separate process that can kill itself at a given step.

``python launcher.py RESULTS SWEEP '{"kill_at": "17"}'``: at the 17th change that it makes to the
results folder or at the 17th command that it starts, whichever comes; ``sbatch+0.02``: that many
seconds after it started sbatch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from scalelab.launch.base import LaunchRequest, LaunchView
from scalelab.launch.saved_options import saved_options
from scalelab.launch.slurm.arrays import SlurmOptions
from scalelab.launch.slurm.launcher import launch_slurm
from scalelab.launch.slurm.resources import run_needs
from scalelab.records.sweep_dir import Results
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.program import ProgramExecution, as_tuples
from scalelab.sweep.tables import LauncherTable

CHANGES = ("os.rename", "os.link", "os.mkdir", "os.remove", "os.symlink", "subprocess.Popen")


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(step: str, results: str) -> None:
    """Make this process kill itself at a step; steps are Python audit events."""
    count = 0
    word, _, delay = step.partition("+")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        is_write = (
            event == "open" and results in str(arguments[0]) and arguments[1] not in ("r", "rb")
        )
        if not is_write and event not in CHANGES:
            return
        if word == "sbatch":
            if event == "subprocess.Popen" and "sbatch" in str(arguments[1]):
                threading.Timer(float(delay), kill_self).start()
            return
        count += 1
        if count == int(word):
            kill_self()

    sys.addaudithook(hook)


def show(view: LaunchView) -> None:
    if view.note:
        print(view.note, flush=True)


def main() -> None:
    folder, name, words = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    results = Results(folder)
    saved = results.load_plan(name)
    program = words.get("program")
    request = LaunchRequest(
        results=results,
        sweep=name,
        run_ids=saved.run_ids,
        execution=ExecutionSpec(
            step="direct",
            checkpoint_interval_s=words["checkpoint_interval_s"],
            program=ProgramExecution(**as_tuples(program)) if program else None,
        ),
        n_workers=1,
        retry_failed=words.get("retry_failed", False),
    )
    table = saved_options(results, name, LauncherTable).slurm
    specs = [results.run(run_id).read_spec() for run_id in saved.run_ids]
    options = SlurmOptions(
        table=table,
        needs=run_needs(table, request.execution, specs, saved.budgets),
        seconds=dict.fromkeys(saved.run_ids, words.get("seconds", 5.0)),
        usd_per_gpu_hour=2.0,
        is_detached=words.get("detach", False),
    )
    if words["kill_at"]:
        die_at(words["kill_at"], str(folder))
    report = launch_slurm(request, options, show)
    print(json.dumps({"statuses": report.statuses, "n_started": report.n_started}))


if __name__ == "__main__":
    main()
