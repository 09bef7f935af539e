"""SLURM's commands replayed: a queue in a folder, and launchers that die at a given step.

The replayed commands answer in the words of SLURM 22.05. `let_cluster_run` then runs every job
that sbatch accepted. Nothing here depends on the speed of the machine.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalelab.launch.base import LaunchReport, LaunchRequest, Watcher
from scalelab.launch.slurm.arrays import SlurmOptions
from scalelab.launch.slurm.intents import read_job_group, settle
from scalelab.launch.slurm.launcher import launch_slurm
from scalelab.launch.slurm.resources import RunNeeds
from scalelab.records.run_dir import RunDir
from scalelab.records.sweep_dir import Results
from scalelab.records.types import RunRecord
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.plan import make_plan
from scalelab.sweep.planned_run import DataFacts
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.sweep.tables import SlurmTable

# `reach` is a step of sbatch at which the launcher, its parent, may be killed. sbatch itself then
# dies with it, continues, or continues late: after later launchers have abandoned the submission.
SBATCH = """#!/bin/sh
cd "$REPLAY" || exit 1
: > "at_work/$$"
trap 'rm -f "at_work/$$"' EXIT; trap '' PIPE
echo "sbatch $*" >> calls
kill_at=none; if mv crash "crash.$$" 2>/dev/null; then read -r kill_at then < "crash.$$"; fi
reach() {
  [ "$1" = "$kill_at" ] || return 0
  kill -9 $PPID
  [ "$then" = dies ] && exit 1
  [ "$then" = late ] && until [ -e go_on ]; do sleep 0.01; done
  return 0
}
reach started
n=1; while ! mkdir "jobs/$n" 2>/dev/null; do n=$((n + 1)); done
sed -n 's/^#SBATCH --job-name=//p' "$1" > "jobs/$n/name"
sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1" > "jobs/$n/.last"
reach half
mv "jobs/$n/.last" "jobs/$n/last"
reach taken
if [ -e lose_answer ]; then
  rm lose_answer
  echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2
  exit 1
fi
echo "Submitted batch job $n"
reach answered
"""
SBATCH_STEPS = ("started", "half", "taken", "answered")
SBATCH_THEN = ("dies", "goes_on", "late")
SQUEUE = """#!/bin/sh
cd "$REPLAY" || exit 1
echo "squeue $*" >> calls
[ -e controller_is_down ] && { echo 'squeue: error: Unable to contact controller' >&2; exit 1; }
for job in jobs/*; do
  [ -s "$job/last" ] || continue
  state=PENDING; [ -e "$job/state" ] && state=$(cat "$job/state")
  i=0; while [ $i -le "$(cat "$job/last")" ]; do
    reason=None; [ -e "$job/reason" ] && reason=$(cat "$job/reason")
    echo "${job#jobs/}|$i|$state|0:01|$reason|$(cat "$job/name")"; i=$((i + 1))
  done
done
"""
SCONTROL = """#!/bin/sh
cd "$REPLAY" || exit 1
echo "scontrol $*" >> calls
echo 'MaxArraySize            = 1001'
"""
SCANCEL = """#!/bin/sh
cd "$REPLAY" || exit 1
echo "scancel $*" >> calls
for element; do rm -r "jobs/${element%%_*}"; done
"""
OTHER = "#!/bin/sh\nexit 0\n"
CHANGES = ("os.rename", "os.link", "os.mkdir", "os.remove")
ORPHAN_S = 60.0


def install(folder: Path) -> None:
    """Write the replayed commands and an empty queue into a folder."""
    for name in ("jobs", "at_work", "bin"):
        (folder / name).mkdir(parents=True)
    scripts = {"sbatch": SBATCH, "squeue": SQUEUE, "scontrol": SCONTROL, "scancel": SCANCEL}
    for name in ("sbatch", "squeue", "scontrol", "scancel", "srun"):
        program = folder / "bin" / name
        program.write_text(scripts.get(name, OTHER))
        program.chmod(0o755)


def empty(replay: Path) -> None:
    """Remove every job from the queue."""
    shutil.rmtree(replay / "jobs")
    (replay / "jobs").mkdir()
    for file in (replay / "crash", replay / "go_on"):
        file.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Crash:
    """Where a launcher dies: at its n-th change of the results folder or n-th command, or at a
    step of sbatch, which then does what ``then`` says.
    """

    step: int | str
    then: str = ""

    def __str__(self) -> str:
        return f"{self.step}, sbatch {self.then}" if self.then else str(self.step)


def crashing(crash: Crash, replay: Path, results: Path, work: Callable[[], object]) -> int:
    """Call ``work`` in a process that dies at a step; return its exit code."""
    if isinstance(crash.step, str):
        (replay / "crash").write_text(f"{crash.step} {crash.then}\n")
        code = in_child(work)
        (replay / "crash").unlink(missing_ok=True)
        return code

    def die_at(count: int) -> None:
        if count == crash.step:
            os.kill(os.getpid(), signal.SIGKILL)

    return in_child(lambda: counting_steps(results, work, die_at))


def counting_steps(results: Path, work: Callable[[], object], tell: Callable[[int], None]) -> int:
    """Call ``work``, pass the number of each step to ``tell`` before it, return their count.

    Use only in a separate process: Python cannot remove an audit hook.
    """
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        is_there = str(results) in str(arguments[0]) if arguments else False
        is_write = event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        is_change = is_there and (is_write or event in CHANGES)
        if is_change or event == "subprocess.Popen":
            count += 1
            tell(count)

    sys.addaudithook(hook)
    work()
    return count


def wait_for_orphans(replay: Path) -> None:
    """Wait until every sbatch whose launcher died has ended."""
    (replay / "go_on").touch()
    deadline = time.monotonic() + ORPHAN_S
    while any((replay / "at_work").iterdir()):
        assert time.monotonic() < deadline, "an sbatch does not end"
        time.sleep(0.005)


def let_cluster_run(replay: Path, results: Results, *, name: str = "crash") -> None:
    """Do what the jobs of the replayed cluster would do, for every element."""
    sweep = results.sweep(name)
    taken = [job for job in (replay / "jobs").iterdir() if (job / "last").exists()]
    for job in sorted(taken, key=lambda path: int(path.name)):
        intent = (job / "name").read_text().strip().removeprefix("scalelab.")
        started = f"started {job.name}"
        if settle(sweep / "intents" / intent, started) == started:
            for index in range(int((job / "last").read_text()) + 1):
                for run_id in read_job_group(sweep, intent, index).run_ids:
                    finish(results.run(run_id))
        (job / "state").write_text("COMPLETED")


def launch(
    results: Results,
    run_ids: tuple[str, ...],
    *,
    name: str = "crash",
    detach: bool = True,
    watch: Watcher = lambda view: None,
    **table: Any,
) -> LaunchReport:
    request = LaunchRequest(
        results=results, sweep=name, run_ids=run_ids, execution=ExecutionSpec(), n_workers=1
    )
    content = {"gpus_per_run": 0, "target_job_minutes": 0, **table}
    need = RunNeeds(gpus=content["gpus_per_run"], memory_gb=1.0)
    options = SlurmOptions(
        table=SlurmTable(**content),
        needs=dict.fromkeys(run_ids, need),
        seconds=dict.fromkeys(run_ids, 30.0),
        usd_per_gpu_hour=2.0,
        is_detached=detach,
    )
    return launch_slurm(request, options, watch)


def make_runs(
    folder: Path, n_runs: int, *, name: str = "crash", text: str = "f" * 12, extend: bool = False
) -> tuple[Results, tuple[str, ...]]:
    sweep = sweep_from_mapping(
        {
            "kind": "grid",
            "name": name,
            "n_params": "20K",
            "n_tokens": 1e5,
            "train": {"seq_len": 32, "batch_seqs": 4, "lr": 0.01, "seeds": tuple(range(n_runs))},
        },
        source="the test",
    )
    facts = DataFacts(
        fingerprint=text,
        eval_fingerprint="e" * 12,
        tokenizer="bytes",
        vocab_size=256,
        n_train_tokens=10**6,
        n_eval_tokens=4096,
    )
    results = Results(folder)
    saved = results.save_plan(
        make_plan(sweep, facts, precision="fp32"), sweep.science(), extend=extend
    )
    return results, saved.run_ids


def in_child(work: Callable[[], object]) -> int:
    """Call ``work`` in a forked process; return its exit code (negative: the signal)."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])


def fork(work: Callable[[], object]) -> int:
    """Call ``work`` in a forked process; return its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def side_by_side(folder: Path, works: Sequence[Callable[[Path], object]]) -> list[str]:
    """Call functions at the same time, each in a process with its own replayed cluster.

    Each gets the cluster's folder, in ``folder``. Returns what went wrong, in words; none: nothing.
    """

    def isolated(number: int, work: Callable[[Path], object]) -> None:
        replay = folder / f"replay{number}"
        install(replay)
        os.environ["PATH"] = f"{replay / 'bin'}{os.pathsep}{os.environ['PATH']}"
        os.environ["REPLAY"] = str(replay)
        try:
            work(replay)
        except BaseException:
            (folder / f"failure{number}").write_text(traceback.format_exc())
            raise

    pids = [fork(functools.partial(isolated, number, work)) for number, work in enumerate(works)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    said = [path.read_text() for path in sorted(folder.glob("failure*"))]
    return said or [f"ended with {code}" for code in codes if code != 0]


def finish(run: RunDir) -> None:
    attempt = run.claim()
    attempt.write_record(
        RunRecord(
            run_id=run.run_id,
            attempt=attempt.number,
            token=attempt.token,
            status="done",
            loss_nats=1.0 + int(run.run_id, 16) % 997 / 1000,
            loss_se_nats=None,
            n_params={"chinchilla": 1000},
            flops={"exact": 1e9},
            n_tokens=1,
            unique_tokens=1,
            n_steps=1,
            wall_s=1.0,
        )
    )
    attempt.accept()
