"""The options of SLURM: a dry run without a cluster, words as SLURM's users write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scalelab.cli.main import main
from scalelab.cli.spec_options import SpecValues
from scalelab.cli.sweep_spec import sweep_of_file
from scalelab.errors import UsageError
from scalelab.launch.base import LaunchReport
from scalelab.launch.saved_options import changed_options
from scalelab.sweep.spec import SweepSpec, read_mapping, read_sweep_file
from scalelab.sweep.tables import LauncherTable, SlurmTable
from scalelab.sweep.values import parse_gigabytes, parse_minutes
from tests.launch.slurm.replayed import make_runs

FILE = """
kind = "isoflop"
budgets = "1e18,1e19"
sizes = 3

[train]
batch_seqs = 64

[launcher]
name = "slurm"

[launcher.slurm]
partition = "gpu"
gpu = "a100"
time_min = 600
setup = ["module load cuda"]
"""


@pytest.fixture
def sweep_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "big.toml"
    path.write_text(FILE)
    # No cluster: none of SLURM's programs can be found.
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return path


def test_a_dry_run_needs_no_cluster_and_shows_the_batch_script(
    sweep_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--partition", "a100,h100", "--time", "1-00:00:00", "--mem", "80G"]
    assert (
        main(["sweep", "run", str(sweep_file), "--dry-run", *words, "--setup", "ulimit -c 0"]) == 0
    )
    shown = capsys.readouterr().out
    for line in (
        "#SBATCH --partition=a100,h100",
        "#SBATCH --time=1440",
        "#SBATCH --mem=81920MB",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --signal=USR2@90",
        "#SBATCH --requeue",
        "ulimit -c 0",
        "srun --unbuffered",
    ):
        assert line in shown, line
    assert "GPU-hours" in shown
    assert "module load cuda" not in shown
    assert not (sweep_file.parent / "results").exists()


def test_site_options_of_flags_go_over_those_of_the_file(
    sweep_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_file.write_text(
        FILE + 'constraint = "v100"\nsbatch = {reservation = "spring", mem = 0, licenses = "a"}\n'
    )
    words = ["--sbatch", "constraint=a100&fast", "--sbatch", "exclusive", "--sbatch", "mem=false"]
    assert main(["sweep", "run", str(sweep_file), "--dry-run", *words]) == 0
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if line.startswith("#SBATCH")]
    for line in ("constraint='a100&fast'", "exclusive", "reservation=spring", "licenses=a"):
        assert f"#SBATCH --{line}" in lines
    assert "--mem" not in shown
    assert "site options: not checked, because no sbatch answers here" in shown
    assert main(["sweep", "run", str(sweep_file), "--dry-run", "--sbatch", "array=0-9"]) == 2
    assert "Use --array-parallelism" in capsys.readouterr().err
    assert main(["sweep", "run", str(sweep_file), "--dry-run", "--sbatch", "gres=gpu:2"]) == 2
    assert 'Write gres = "gpu:h100:{gpus}"' in capsys.readouterr().err


def test_site_options_of_settings_apply_and_resume_changes_them(
    sweep_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("scalelab.toml").write_text('sbatch = ["constraint=a100", "exclusive"]\n')
    sweep_file.write_text(FILE + 'sbatch = {constraint = "v100", hold = true}\n')
    assert main(["sweep", "run", str(sweep_file), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for line in ("constraint=v100", "exclusive", "hold"):
        assert f"#SBATCH --{line}\n" in shown
    saved = LauncherTable(name="slurm", slurm=SlurmTable(sbatch={"constraint": "v100", "nice": 3}))
    changed = changed_options(saved, {"slurm": {"sbatch": {"constraint": "a100"}}})
    assert changed.slurm.sbatch == {"constraint": "a100", "nice": 3}


def test_a_dry_run_as_json(sweep_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "run", str(sweep_file), "--dry-run", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    jobs = content["slurm"]
    assert jobs["n_arrays"] == len(jobs["arrays"]) == 2
    assert all(array["script"].startswith("#!/bin/bash") for array in jobs["arrays"])
    hours = sum(row["seconds"] for row in content["rows"]) / 3600
    assert jobs["gpu_hours"] == pytest.approx(hours)
    assert "a100" in content["totals"]["device"]


def test_a_cap_refuses_in_the_dry_run_already(
    sweep_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--max-usd", "--max-gpu-hours"):
        assert main(["sweep", "run", str(sweep_file), "--dry-run", option, "0.001"]) == 2
        assert option in capsys.readouterr().err


def changed_sweep(path: Path, **flags: Any) -> SweepSpec:
    """Return the sweep of a file with flags; ``launcher`` and SLURM's fields by their key."""
    paths = {name: ("launcher", "slurm", name) for name in flags}
    paths["launcher"] = ("launcher", "name")
    values = SpecValues(flags={paths[name]: value for name, value in flags.items()})
    return sweep_of_file(read_mapping(path), values, source=str(path))


def test_options_go_over_the_file_and_zero_is_a_number(sweep_file: Path) -> None:
    sweep = read_sweep_file(sweep_file)
    changed = changed_sweep(sweep_file, gpus_per_run="0")
    assert changed.launcher.slurm.gpus_per_run == 0
    assert changed.launcher.slurm.partition == "gpu"
    assert changed.science() == sweep.science()
    assert changed_sweep(sweep_file) == sweep
    assert changed_sweep(sweep_file, launcher="local").launcher.name == "local"
    with pytest.raises(UsageError, match="gpus_per_run = '-1' \\(--gpus-per-run\\)"):
        changed_sweep(sweep_file, gpus_per_run="-1")
    with pytest.raises(UsageError, match="tensor_parallel = 3 on 8 devices a run"):
        changed_sweep(sweep_file, gpus_per_run="8", tensor_parallel="3")


@pytest.mark.parametrize(
    ("gpus", "degree", "words"),
    [
        ("8", "4", None),
        ("128", "1", "64 sequences a batch over 128 devices"),
        ("64", "64", "n_kv_heads = "),
    ],
)
def test_a_dry_run_refuses_gpus_that_cannot_share_a_run(
    sweep_file: Path,
    capsys: pytest.CaptureFixture[str],
    gpus: str,
    degree: str,
    words: str | None,
) -> None:
    options = ["--dry-run", "--gpus-per-run", gpus, "--tensor-parallel", degree]
    code = main(["sweep", "run", str(sweep_file), *options])
    shown = capsys.readouterr()
    assert (code, "SBATCH" in shown.out) == ((0, True) if words is None else (2, False))
    assert (words or "") in shown.err


def test_what_only_slurm_understands_is_refused_on_this_machine(
    sweep_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="--snapshot, --mem with the local launcher"):
        changed_sweep(sweep_file, launcher="local", snapshot=True, mem_gb="16")
    capped = changed_sweep(sweep_file, launcher="local", max_usd="3")
    assert (capped.launcher.slurm.max_usd, capped.launcher.slurm.partition) == (3.0, "gpu")
    assert main(["sweep", "run", str(sweep_file), "--launcher", "local", "--detach"]) == 2
    assert "--detach with the local launcher" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("sweep", "isoflop", "--budgets", "1e10", "--sizes", "2"),
        ("sweep", "grid", "--n-params", "12K", "--n-tokens", "40K"),
        ("sweep", "ladder", "--n-params", "12K", "--n-tokens", "40K,80K"),
        ("sweep", "adaptive", "--target", "C=1e16", "--budget", "1e12"),
        ("tune", "--n-params", "12K", "--n-tokens", "40K"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_options_of_slurm_are_refused_where_they_are_given_and_not_where_they_are_settings(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("some text for a dry run. " * 40_000)
    (tmp_path / "scalelab.toml").write_text('partition = "gpu"\nsnapshot = true\n')
    command = [*words, "--dry-run", "--data", "text.txt"]
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--gpus-per-run", "2"]) == 2
    assert "error: --gpus-per-run with the local launcher" in capsys.readouterr().err


def test_settings_for_slurm_leave_a_sweep_that_is_resumed_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_runs(tmp_path / "results", 1)
    (tmp_path / "scalelab.toml").write_text('partition = "gpu"\nmax_usd = 2.5\n')
    monkeypatch.chdir(tmp_path)
    given = []

    def resume(name: str | None, **options: Any) -> LaunchReport:
        given.append(options["launch"])
        return LaunchReport(statuses={}, n_started=0, wall_s=0.0)

    monkeypatch.setattr("scalelab.api.sweeps.resume", resume)
    assert main(["resume"]) == 0
    assert given == [{"slurm": {"max_usd": 2.5}}]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("4:00:00", 240), ("1-12:00:00", 2160), ("0:00:30", 1), ("0:59:01", 60)],
)
def test_time_limits(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize(
    ("text", "gigabytes"), [("16", 16), ("16G", 16), ("500M", 500 / 1024), ("1.5TB", 1536)]
)
def test_memory(text: str, gigabytes: float) -> None:
    assert parse_gigabytes(text) == gigabytes


@pytest.mark.parametrize("text", ["", "4h", "1:00", "-5", "90;id"])
def test_words_that_are_no_amount_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_minutes(text)
    with pytest.raises(UsageError):
        parse_gigabytes(text + "x")
