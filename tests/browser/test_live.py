"""A sweep that trains, local and on a real SLURM: on the page at once, each run as it finishes.

The launch is the moment at which the plan is saved. `make bench` holds the seconds to their goals.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from scalelab.records.sweep_dir import Results
from tests.slurm.cluster import Cluster, missing_programs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FIRST_S, EACH_S = 3.0, 5.0
"""Goals: from the saved plan to the page, and from a finished run to the page."""
SWEEP = """
kind = "isoflop"
name = "live"
budgets = "4e9,8e9"
sizes = 3
span = 8
[data]
paths = ["{text}"]
eval_tokens = 4096
[train]
seq_len = 32
batch_seqs = 4
[launcher.slurm]
gpus_per_run = 0
cpus = 1
mem_gb = 0.5
time_min = 20
target_job_minutes = 0
array_parallelism = 2
"""
# Streamlit replaces the bar for each count, so the first time of each text is what a person saw.
WATCH = """() => {
  window.seenAt = {};
  const look = () => {
    const said = document.body.innerText.match(/(\\d+) of \\d+ runs are done/);
    const ended = document.body.innerText.match(/isoFLOP sweep: (\\d+) done$/m);
    const found = said ?? ended;
    if (found && !(found[1] in window.seenAt)) window.seenAt[found[1]] = Date.now() / 1000;
  };
  new MutationObserver(look).observe(
    document.body, {childList: true, subtree: true, characterData: true});
  look();
}"""


@pytest.fixture(params=["local", "slurm"])
def launcher(
    request: pytest.FixtureRequest, give_up: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Return the name of each launcher, and the environment in which it works."""
    if request.param == "local":
        yield "local", dict(os.environ)
        return
    missing = missing_programs(accounting=False)
    if missing:
        give_up(f"no SLURM: {', '.join(missing)} not installed (`make system`, as root)")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short, for the sockets
    cluster = Cluster(folder, accounting=False)
    try:
        try:
            cluster.start()
        except (OSError, subprocess.SubprocessError) as error:
            give_up(f"no SLURM, though it is installed: {error}\n{cluster.logs()}")
        yield "slurm", {**cluster.environment, "OMP_NUM_THREADS": "1"}
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Watched:
    """What a person saw of a sweep: seconds since its launch."""

    seen_s: dict[int, float]
    """When the page first said that this number of runs are done."""
    ended_s: list[float]
    """When each run was done, the first one first."""
    errors: list[str]

    def first_s(self) -> float:
        """Return the seconds to the page that has the sweep, with any count."""
        return min(self.seen_s.values())

    def late_s(self) -> list[float]:
        """Return the seconds from the end of each run to the page that counts it."""
        return [
            min(at for count, at in self.seen_s.items() if count >= number) - ended
            for number, ended in enumerate(self.ended_s, 1)
        ]


@pytest.fixture
def watched(
    launcher: tuple[str, dict[str, str]],
    serve: Callable[..., Any],
    visit: Callable[..., Any],
    picture: Callable[[Page, str], Path],
    cache_home: Path,
    tmp_path: Path,
) -> Watched:
    """Launch a sweep by the command, with the page open before, and note what the page says."""
    name, environment = launcher
    results, spec, text = tmp_path / "results", tmp_path / "live.toml", tmp_path / "text"
    text.mkdir()
    rng = random.Random(5)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(200)]
    for number in range(120):
        (text / f"{number}.txt").write_text(" ".join(rng.choices(words, k=600)))
    spec.write_text(SWEEP.format(text=text))
    page, seen = visit(serve(results).url)
    expect(page.get_by_text("There are no results yet.")).to_be_visible()
    page.evaluate(WATCH)
    command = [sys.executable, "-c", "from scalelab.cli.main import run; run()", "sweep", "run"]
    command += [str(spec), "--launcher", name, "--yes", "--results", str(results)]
    log = tmp_path / "log.txt"
    with log.open("wb") as out:
        sweep = subprocess.Popen(
            command,
            env={**environment, "XDG_CACHE_HOME": str(cache_home)},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    while "1" not in page.evaluate("Object.keys(window.seenAt)") and sweep.poll() is None:
        page.wait_for_timeout(300)
    picture(page, f"live-{name}")
    while sweep.poll() is None:
        page.wait_for_timeout(300)
    assert sweep.returncode == 0, log.read_text()
    runs = Results(results).load_plan("live").run_ids
    page.wait_for_function(f"() => '{len(runs)}' in window.seenAt", timeout=60_000)
    expect(page.get_by_role("combobox", name="Sweep or table")).to_have_value("live")
    launched_s = (results / "sweeps" / "live" / "plan.json").stat().st_mtime
    ended = (results / "runs" / run / "accepted" for run in runs)
    found = Watched(
        seen_s={int(n): at - launched_s for n, at in page.evaluate("window.seenAt").items()},
        ended_s=sorted(path.stat().st_mtime - launched_s for path in ended),
        errors=seen.errors,
    )
    late = ", ".join(f"{each:.2f}" for each in found.late_s())
    print(f"\n{name}: sweep after {found.first_s():.2f} s, runs after {late} s; ", end="")
    print(f"median {statistics.median(found.late_s()):.2f} s, load {os.getloadavg()[0]:.1f}")
    return found


def test_a_sweep_is_on_the_page_while_it_runs(watched: Watched) -> None:
    # How soon depends on what else runs on the machine: the test below holds the seconds.
    during = [count for count, at in watched.seen_s.items() if at < watched.ended_s[-1]]
    assert during, (watched.seen_s, watched.ended_s)
    assert watched.errors == []


@pytest.mark.bench
def test_a_sweep_and_its_runs_are_on_the_page_in_time(watched: Watched) -> None:
    assert watched.first_s() < FIRST_S
    assert max(watched.late_s()) < EACH_S
