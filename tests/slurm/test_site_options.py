"""Site options on the real cluster: values arrive as they were given."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalelab.cli.main import main
from scalelab.launch.slurm.queue import Slurm
from scalelab.sweep.site_options import UNLISTED, read_site_options, refuse_unknown

ONE_CLUSTER = pytest.mark.parametrize("cluster", [False], indirect=True, ids=["no-sacct"])
COMMENT = 'it\'s "x" $(touch /tmp/y); #1 %j =é'


@ONE_CLUSTER
def test_the_installed_sbatch_lists_its_options(cluster: Any) -> None:
    installed = Slurm().sbatch_options()
    assert {"constraint", "exclusive", "gres", "mem-per-gpu", "network", "reservation"} <= installed
    assert not UNLISTED & installed
    refuse_unknown({"constraint": "a", "hint": "compute_bound"}, installed)


@ONE_CLUSTER
def test_a_job_with_site_options_runs_and_has_them(
    cluster: Any, make_sweep: Callable[..., Any], stopping: list[Any], tmp_path: Path
) -> None:
    site = {"gres": "gpu:{gpus}", "mem": False, "mem-per-cpu": 300, "comment": COMMENT, "nice": 7}
    sweep = make_sweep(
        tmp_path / "results",
        seeds=1,
        n_tokens=2e4,
        slurm={"gpus_per_run": 0, "sbatch": {**read_site_options(site), "gres": False}},
    )
    launcher = sweep.start_launcher()
    stopping.append(launcher)
    said, _ = launcher.communicate(timeout=300)
    assert set(sweep.statuses().values()) == {"done"}, said
    (note,) = (sweep.results.sweep(sweep.name) / "intents").glob("*/job.json")
    job = cluster.command("scontrol", "show", "job", str(json.loads(note.read_text())["job_id"]))
    assert f"Comment={COMMENT}" in map(str.strip, job.splitlines())
    assert "MinMemoryCPU=300M" in job
    assert "Nice=7" in job


@ONE_CLUSTER
@pytest.mark.parametrize("option", ["constraint=nowhere", "reservation=none"])
def test_what_the_controller_refuses_is_an_error_with_its_words(
    cluster: Any,
    make_sweep: Callable[..., Any],
    stopping: list[Any],
    tmp_path: Path,
    option: str,
) -> None:
    name, _, value = option.partition("=")
    sweep = make_sweep(tmp_path / "results", seeds=1, n_tokens=2e4, slurm={"sbatch": {name: value}})
    launcher = sweep.start_launcher()
    stopping.append(launcher)
    said, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 1
    assert "a job that sbatch refuses" in said
    assert set(sweep.statuses().values()) == {"planned"}


@ONE_CLUSTER
def test_the_cluster_accepts_the_scripts_of_the_example_for_clusters(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "run", "sweeps/chinchilla.toml", "--dry-run", "--json", "--cpus", "1"]
    # The cluster of the tests has nodes with 2 GPUs.
    words += ["--gpus-per-run", "<1e19=1,>=1e19=4", "--gpus-per-node", "2", "--mem", "100M"]
    for option in ("gres=gpu:{gpus}", "exclusive", f"comment={COMMENT}"):
        words += ["--sbatch", option]
    assert main([*words, "--results", str(tmp_path)]) == 0
    jobs = json.loads(capsys.readouterr().out)["slurm"]
    assert jobs["site_check"] == "the installed sbatch has them"
    assert {array["gpus"] for array in jobs["arrays"]} == {1, 4}
    for array in jobs["arrays"]:
        script = tmp_path / "script.sh"
        script.write_text(array["script"])
        answer = subprocess.run(
            ["sbatch", "--test-only", str(script)], capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stderr
        assert "to start at" in answer.stderr
