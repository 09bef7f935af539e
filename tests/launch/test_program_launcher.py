"""How torchrun and srun are put before a program's command."""

from __future__ import annotations

import sys

import pytest

from scalelab.launch.programs.launcher import Devices, devices_of, launched
from scalelab.sweep.program import ProgramExecution

ARGV = ("apptainer", "python", "train.py", "--text=a b;$(c)")


def how(launcher: str) -> ProgramExecution:
    return ProgramExecution(cwd="/", launcher=launcher, container=("apptainer",), python="python")


def test_a_single_program_is_started_as_it_is() -> None:
    devices = devices_of(8, {"SLURM_JOB_NUM_NODES": "1"})
    assert launched(ARGV, how("single"), devices, "token") == ARGV


def test_torchrun_of_one_node_starts_inside_the_container() -> None:
    assert launched(ARGV, how("torchrun"), devices_of(8, {}), "token") == (
        *("apptainer", "python", "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node=8", "--no-python", "python", "train.py", "--text=a b;$(c)"),
    )


@pytest.mark.parametrize(
    "own",
    [("/env/bin/torchrun", "train.py"), ("python", "-m", "torch.distributed.run", "train.py")],
)
def test_a_command_that_starts_torchrun_itself_is_left_as_it_is(own: tuple[str, ...]) -> None:
    argv = ("apptainer", *own)
    assert launched(argv, how("torchrun"), devices_of(8, {}), "token") == argv


def test_torchrun_of_several_nodes_is_one_task_on_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_GPUS_PER_NODE", "8")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")
    devices = devices_of(16, {"SLURM_JOB_NUM_NODES": "2"})
    words = launched(ARGV, how("torchrun"), devices, "token")
    assert words[0] == sys.executable
    options, argv = words[: words.index("--")], words[words.index("--") + 1 :]
    assert {"--nodes=2", "--tasks-per-node=1", "--gpus-per-task=8", "--cpus-per-task=64"} <= set(
        options
    )
    assert {"--nnodes=2", "--nproc-per-node=8", "--rdzv-id=token", "--no-python"} <= set(argv)
    assert argv[-2:] == ARGV[-2:]


def test_srun_starts_one_task_a_gpu_and_none_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_GPUS_PER_NODE", "8")
    words = launched(ARGV, how("srun"), Devices(n_devices=16, n_nodes=2), "token")
    assert {"--nodes=2", "--tasks-per-node=8", "--gpus-per-task=1"} <= set(words)
    assert words[-4:] == ARGV
    monkeypatch.delenv("SLURM_GPUS_PER_NODE")
    words = launched(ARGV, how("srun"), Devices(n_devices=1, n_nodes=1), "token")
    assert {"--nodes=1", "--tasks-per-node=1", "--gpus-per-task=0"} <= set(words)
