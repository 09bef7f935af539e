"""Clusters for the session, with and without accounting, and a sweep of tiny runs."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from scalelab.launch.proposal import propose
from scalelab.launch.saved_options import save_options
from scalelab.records.sweep_dir import Results
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.sweep.speeds import unmeasured_cpu_speed
from tests.slurm.cluster import Cluster, missing_programs

HERE = Path(__file__).parent
CHECKPOINT_INTERVAL_S = 2.0


@pytest.fixture(scope="session", params=[False, True], ids=["no-sacct", "sacct"])
def cluster(request: pytest.FixtureRequest, give_up: Callable[[str], None]) -> Iterator[Any]:
    """Return a running cluster; without one, skip with the reason (see `give_up`)."""
    missing = missing_programs(accounting=request.param)
    if missing:
        give_up(f"no SLURM: {', '.join(missing)} not installed (`make system`, as root)")
    # A socket's path may have about 100 characters; pytest's folders can exceed that.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    made = Cluster(folder, accounting=request.param)
    before = {name: os.environ.get(name) for name in ("PATH", "SLURM_CONF", "OMP_NUM_THREADS")}
    try:
        try:
            made.start()
        except (OSError, subprocess.SubprocessError) as error:
            give_up(f"no SLURM, though it is installed: {error}\n{made.logs()}")
        os.environ.update({name: made.environment[name] for name in ("PATH", "SLURM_CONF")})
        os.environ["OMP_NUM_THREADS"] = "1"
        yield made
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class TinySweep:
    """A saved sweep and the ways to launch it."""

    results: Results
    name: str
    run_ids: tuple[str, ...]
    program: dict[str, Any] | None = None
    """How the program of the runs is started; None for the built-in trainer."""

    def start_launcher(self, *, kill_at: str = "", **changes: Any) -> subprocess.Popen[str]:
        """Launch in a separate process, which kills itself at step ``kill_at``."""
        words = {
            "checkpoint_interval_s": CHECKPOINT_INTERVAL_S,
            "kill_at": kill_at,
            "program": self.program,
            **changes,
        }
        return subprocess.Popen(
            [
                sys.executable,
                str(HERE / "launcher.py"),
                str(self.results.path),
                self.name,
                json.dumps(words),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def statuses(self) -> dict[str, str]:
        return {run_id: self.results.run(run_id).status() for run_id in self.run_ids}

    def losses(self) -> dict[str, float | None]:
        """Return the loss of each run's accepted record, bit for bit."""
        found = {}
        for run_id in self.run_ids:
            accepted = self.results.run(run_id).accepted()
            record = accepted.read_record() if accepted else None
            found[run_id] = record.loss_nats if record else None
        return found


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random text of a few words."""
    rng = random.Random(5)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(200)]
    folder = tmp_path_factory.mktemp("text")
    for number in range(120):
        (folder / f"{number}.txt").write_text(" ".join(rng.choices(words, k=600)))
    return folder


@pytest.fixture(scope="session")
def make_sweep(text: Path) -> Callable[..., TinySweep]:
    """Return a function that makes sweeps of runs of ``steps`` steps, with ``slurm`` options."""

    def make(
        folder: Path,
        *,
        name: str = "tiny",
        seeds: int = 12,
        n_tokens: float | str = 1e6,
        lr: float = 0.01,
        extend: bool = False,
        slurm: dict[str, Any] | None = None,
        program: dict[str, Any] | None = None,
    ) -> TinySweep:
        options = {
            "gpus_per_run": 0,
            "cpus": 1,
            "mem_gb": 0.5,
            "time_min": 20,
            "target_job_minutes": 0,
            "array_parallelism": 8,
            **(slurm or {}),
        }
        data = {"paths": (str(text),), "eval_tokens": 4096}
        sweep = sweep_from_mapping(
            {
                "kind": "grid",
                "name": name,
                "n_params": "12K",
                "n_tokens": n_tokens,
                "allow_repeats": True,
                "train": {"seq_len": 32, "batch_seqs": 4, "lr": lr, "seeds": tuple(range(seeds))},
                "launcher": {"name": "slurm", "slurm": options},
                **({"program": program} if program else {"data": data}),
            },
            source="the test",
        )
        results = Results(folder)
        how = sweep.program.execution() if sweep.program else None
        proposal = propose(
            sweep,
            results,
            execution=ExecutionSpec(program=how),
            n_workers=1,
            is_dry_run=False,
            speed=unmeasured_cpu_speed(1),
        )
        saved = results.save_plan(proposal.plan, sweep.science(), extend=extend)
        save_options(results, name, sweep.launcher)
        return TinySweep(results, name, saved.run_ids, asdict(how) if how else None)

    return make


@pytest.fixture
def stopping(cluster: Any) -> Iterator[list[subprocess.Popen[str]]]:
    """Launchers in this list end with the test, and so does every job."""
    launchers: list[subprocess.Popen[str]] = []
    yield launchers
    cluster.cancel_all()
    for launcher in launchers:
        if launcher.poll() is None:
            launcher.send_signal(signal.SIGKILL)
        launcher.communicate()


@pytest.fixture
def wait_for() -> Callable[[Callable[[], bool], str, float], None]:
    def wait(holds: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"no {what} within {seconds:g} s"
            time.sleep(0.2)

    return wait
