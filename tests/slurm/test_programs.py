"""Programs in jobs of the real cluster: Hugging Face's Trainer, torchrun and srun on two nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalelab.launch.programs.process import processes_of
from scalelab.launch.slurm.intents import read_intents
from scalelab.records.sweep_dir import Results
from tests.programs.adversary import adversary_table
from tests.programs.test_hf_trainer import N_RUNS, TINY, check_runs, scalelab
from tests.slurm.test_jobs import ended

WITHOUT_SACCT = pytest.mark.parametrize("cluster", [False], indirect=True, ids=["no-sacct"])
TWO_NODES = {"gpus_per_run": 4, "gpus_per_node": 2}
# Each task says who it is; the first one then is the adversary.
RANKED = """
import os, runpy, signal, sys, time
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES")
out = sys.argv[sys.argv.index("--out") + 1] if "--out" in sys.argv else [
    word.split("=", 1)[1] for word in sys.argv if word.startswith("--out=")][0]
os.makedirs(out, exist_ok=True)
with open(f"{out}/rank_{os.environ['RANK']}", "w") as file:
    file.write(" ".join(os.environ.get(name, "-") for name in names))
if os.environ["RANK"] != "0":
    def stop(number, frame):
        open(f"{out}/stopped_{os.environ['RANK']}", "w").close()
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    while not os.path.exists(f"{out}/over"):
        time.sleep(0.05)
    sys.exit(0)
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    open(f"{out}/over", "w").close()
"""


@WITHOUT_SACCT
@pytest.mark.long  # the same sweep trains on the local pool in tests/programs
def test_the_trainer_of_hugging_face_trains_an_isoflop_sweep_in_jobs(
    cluster: Any, tmp_path: Path
) -> None:
    words = ("--launcher", "slurm", "--gpus-per-run", "0", "--cpus", "1", "--mem", "2G")
    report = scalelab(*TINY, *words, results=tmp_path)
    assert report["counts"] == {"done": N_RUNS}
    check_runs(Results(tmp_path))
    intents = read_intents(Results(tmp_path).sweep("hf"))
    assert sum(len(intent.job_groups) for intent in intents) == N_RUNS


@WITHOUT_SACCT
@pytest.mark.parametrize("launcher", ["srun", pytest.param("torchrun", marks=pytest.mark.long)])
def test_a_program_on_two_nodes_is_started_and_stopped_as_a_whole(
    cluster: Any,
    make_sweep: Callable[..., Any],
    tmp_path: Path,
    stopping: list[Any],
    wait_for: Callable[..., None],
    launcher: str,
) -> None:
    ranked = tmp_path / "ranked.py"
    ranked.write_text(RANKED)
    table = adversary_table("--step-s=0.05")
    table["command"].insert(1, str(ranked))
    table["launcher"] = launcher
    sweep = make_sweep(tmp_path / "results", seeds=1, n_tokens=2e4, slurm=TWO_NODES, program=table)
    stopping.append(sweep.start_launcher())
    run = sweep.results.run(sweep.run_ids[0])
    wait_for(lambda: len(list(run.path.glob("attempts/*/out/rank_?"))) == 4, "four ranks", 300)
    wait_for(lambda: any(run.path.glob("attempts/*/out/ckpt_*")), "checkpoint", 300)
    (first,) = run.attempts()
    (intent,) = read_intents(sweep.results.sweep(sweep.name))
    cluster.command("scancel", "--signal=USR2", f"{intent.job_id()}_0")
    wait_for(lambda: first.read_note().get("ended") is not None, "stop", 300)
    assert first.read_note()["ended"]["reason"] == "received SIGUSR2"
    ranks = {int(p.name[5:]): p.read_text().split() for p in first.path.glob("out/rank_?")}
    assert [ranks[n][:2] for n in range(4)] == [[str(n), "4"] for n in range(4)]
    assert sorted(ranks[n][2] for n in range(4)) == ["0", "0", "1", "1"]
    if launcher == "srun":
        assert len({words[3] for words in ranks.values()}) == 1
    # Every task got the signal, none was killed by srun.
    assert len(list(first.path.glob("out/stopped_?"))) == 3
    assert "stopped at step" in (first.path / "output.txt").read_text()
    assert processes_of(first.token) == []
    # The job continues with a second attempt, from the checkpoint.
    wait_for(lambda: len(run.attempts()) == 2, "second attempt", 300)
    second = run.attempts()[1]
    wait_for(lambda: second.read_note().get("resumed_from") is not None, "resume", 300)
    assert ended(stopping[0])["statuses"] == {run.run_id: "done"}
    assert processes_of(second.token) == []
