"""Checks of ``scalelab doctor`` for accelerators and SLURM.

Each function runs other programs with a time limit and does not raise.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scalelab.cli.machine import MISSING, OK, PROBLEM, Check

SLURM_COMMANDS = ("sbatch", "squeue", "sacct", "scancel")
COMMAND_TIMEOUT_S = 20.0
PROBE_TIMEOUT_S = 120.0

# Runs as a file in a separate process: importing torch is slow, a broken driver can crash the
# process, and Triton compiles only functions whose source file it can read.
_PROBE = """
import json

report = {}
try:
    import torch

    report["built_for"] = torch.version.cuda or torch.version.hip
    report["devices"] = [
        (d.name, d.total_memory, d.major, d.minor)
        for d in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]
except Exception as error:
    report["torch_error"] = f"{type(error).__name__}: {error}"
if report.get("devices"):
    try:
        import triton
        import triton.language as tl

        @triton.jit
        def double(source, target, n, BLOCK: tl.constexpr):
            places = tl.arange(0, BLOCK)
            values = tl.load(source + places, mask=places < n)
            tl.store(target + places, 2 * values, mask=places < n)

        source = torch.arange(50.0, device="cuda")
        target = torch.empty_like(source)
        double[(1,)](source, target, 50, BLOCK=64)
        if not torch.equal(target, 2 * source):
            raise RuntimeError("a kernel that doubles numbers gave other numbers")
    except Exception as error:
        report["triton_error"] = f"{type(error).__name__}: {error}"
print(json.dumps(report))
"""


def check_accelerator(*, has_torch: bool, has_triton: bool) -> list[Check]:
    """Check that torch sees the GPUs, and that Triton can compile and run a kernel."""
    use = "training on GPUs"
    gpus = _lines_of(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]) or []
    if not has_torch:
        found = f"{len(gpus)} x {gpus[0]}" if gpus else "not checked"
        do = "Install torch first: pip install 'scalelab[train]'"
        return [Check(name="gpu", status=MISSING, found=found, needed_for=use, do=do)]
    report = _probe()
    devices = report.get("devices", [])
    error = report.get("torch_error")
    if error is not None:
        status, found, use = PROBLEM, f"torch cannot be imported: {error}", "training"
        do = "Reinstall torch: pip install --force-reinstall 'scalelab[train]'"
    elif devices:
        status, do = OK, ""
        found = ", ".join(
            f"{name} ({size / 2**30:.0f} GiB, sm_{major}{minor})"
            for name, size, major, minor in devices
        )
    elif gpus:
        status = PROBLEM
        found = f"nvidia-smi lists {len(gpus)} x {gpus[0]}, but torch finds no GPU"
        do = "This torch is the CPU build. Install the CUDA build from pytorch.org."
        if built_for := report.get("built_for"):
            do = f"torch is built for CUDA {built_for}. Check the driver and CUDA_VISIBLE_DEVICES."
    else:
        status, found = MISSING, "none; runs train on CPU cores"
        do = "Nothing to do on a machine without a GPU."
    gpu = Check(name="gpu", status=status, found=found, needed_for=use, do=do)
    return [gpu, _triton_check(report, has_triton=has_triton, has_gpu=bool(devices))]


def _triton_check(report: dict[str, Any], *, has_triton: bool, has_gpu: bool) -> Check:
    use = "fused kernels on GPUs"
    error = report.get("triton_error")
    if not has_triton:
        status, found, do = MISSING, "not installed", "pip install 'scalelab[train]' (Linux only)"
    elif not has_gpu:
        status, found, do = OK, "installed, not tested (no GPU)", ""
    elif error is not None:
        status, found = PROBLEM, f"cannot run a kernel: {error.splitlines()[0][:200]}"
        do = "Triton needs a C compiler and the Python headers: install gcc and python3-dev."
    else:
        status, found, do = OK, "compiled and ran a kernel", ""
    return Check(name="triton kernels", status=status, found=found, needed_for=use, do=do)


def _probe() -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "accelerator_probe.py")
        script.write_text(_PROBE, encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", str(script)],
                capture_output=True,
                text=True,
                timeout=PROBE_TIMEOUT_S,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"torch_error": f"no answer within {PROBE_TIMEOUT_S:.0f} s"}
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"torch_error": last[:200]}


def check_slurm() -> Check:
    """Check that SLURM's commands exist, its controller answers, and accounting works."""
    status = PROBLEM
    absent = [command for command in SLURM_COMMANDS if not shutil.which(command)]
    if len(absent) == len(SLURM_COMMANDS):
        status, found = MISSING, "no SLURM commands"
        do = "On a cluster, run scalelab on a login node. Elsewhere, ignore this line."
    elif absent:
        found, do = f"no {', '.join(absent)}", "Add all SLURM client commands to PATH."
    elif _lines_of(["squeue", "--noheader", "--me"]) is None:
        found = "squeue fails: the controller does not answer"
        do = "Check `scontrol ping` and SLURM_CONF, or ask the cluster's administrators."
    elif _lines_of(["sacct", "--noheader", "--allocations", "--starttime", "now"]) is None:
        found = "sacct fails: accounting is not available"
        do = "Job failures are detected late without it. Ask the administrators for slurmdbd."
    else:
        version = (_lines_of(["sbatch", "--version"]) or ["slurm"])[0]
        status, found, do = OK, f"{version}, controller and accounting up", ""
    return Check(name="slurm", status=status, found=found, needed_for="--launcher slurm", do=do)


def _lines_of(command: list[str]) -> list[str] | None:
    """Return the lines that a command prints; None if it is absent, fails or times out."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None
