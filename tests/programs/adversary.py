"""A tiny training program with every fault of real ones, each as an option; standard library only.

Its loss depends on every step, so a run that was resumed wrongly ends with another loss. It knows
nothing of scalelab: `report` is the text that the documentation gives users to copy.

    python adversary.py --steps 40 --seed 1 --metrics m.jsonl --out out --fault nan:20
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FAULTS = """
exit0:S      end with code 0 at step S, as after a graceful stop; not in a resumed run
crash:S      raise an exception at step S
kill:S       be killed by SIGKILL at step S; not in a resumed run
usage        end with code 2 before the first step
nothing      end with code 0 without a row
nan:S        report NaN from step S on
oom:S        end at step S with torch's message for memory
hang:S       write nothing more from step S on
orphan       leave a child in a session of its own, which writes a heartbeat
ignore_term  ignore SIGTERM
overlap      after a resume, report the five steps before the checkpoint again
raw          print without newlines, with colours and carriage returns
flood        print 200 kB a step
wrong_n      report twice the parameters
no_final     do not report the final loss
broken       write half a row and bytes that are no text
stuck        fail at the first step of every resumed run
""".strip()
ORPHAN = """
import pathlib, sys, time
path = pathlib.Path(sys.argv[1])
while True:
    path.write_text(str(time.time()))
    time.sleep(0.05)
"""


class Report:
    """Writes ``metrics.jsonl``; the five lines that the documentation shows."""

    def __init__(self, path: str, **header: Any) -> None:
        self.file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self(scalelab=1, **header)

    def __call__(self, **row: Any) -> None:
        self.file.write(json.dumps(row) + "\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(epilog=FAULTS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-tokens", type=int, default=128)
    parser.add_argument("--n-params", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--metrics", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--step-s", type=float, default=0.0)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--wait-for", type=Path, help="train only while this file exists")
    parser.add_argument("--fault", default="")
    parser.add_argument("--faults", default="", help="the fault of each seed, after commas")
    asked = parser.parse_args()
    if asked.faults:
        asked.fault = asked.faults.split(",")[asked.seed]
    return asked


def save(out: Path, step: int, state: float) -> None:
    """Save a checkpoint in one step, so that no reader sees half of it."""
    partial = out / f".ckpt_{step}.partial"
    partial.write_text(json.dumps({"step": step, "state": state}))
    partial.rename(out / f"ckpt_{step}.json")


def next_state(state: float, step: int, lr: float) -> float:
    """Return a state that depends on all states before it."""
    return math.fmod(state * 1.6180339887 + math.sin(step) + lr, 1.0)


def final_loss(seed: int, steps: int, lr: float) -> float:
    """Return the final loss of a run without faults."""
    state = seed / 100
    for step in range(1, steps + 1):
        state = next_state(state, step, lr)
    return 2.0 + state


def adversary_table(*more: str) -> dict[str, Any]:
    """Return the table ``[program]`` of a sweep that this file trains, with more arguments."""
    return {
        "command": [
            *("{python}", str(Path(__file__).resolve())),
            *("--steps={n_steps}", "--batch-tokens={batch_tokens}", "--seed={seed}"),
            *("--lr={lr}", "--metrics={metrics}", "--out={out_dir}", *more),
        ],
        "resume": ["--resume={checkpoint}"],
        "checkpoint": "{out_dir}/ckpt_{step}.json",
        "version": "1",
        "vocab_size": 256,
        "tokens_per_s": 1e4,
        "grace_s": 5.0,
        "size": {"by": "shape"},
    }


def main() -> None:
    asked = parsed()
    fault, _, at = asked.fault.partition(":")
    fault_step = int(at or 0)
    if fault == "usage":
        sys.exit(2)
    if fault == "nothing":
        return
    stop: list[int] = []
    signal.signal(
        signal.SIGTERM,
        signal.SIG_IGN if fault == "ignore_term" else lambda number, frame: stop.append(number),
    )
    asked.out.mkdir(parents=True, exist_ok=True)
    step, state = 0, asked.seed / 100
    if asked.resume:
        saved = json.loads(asked.resume.read_text())
        step, state = saved["step"], saved["state"]
        if fault == "stuck":
            sys.exit("this checkpoint cannot be read")
    n_params = asked.n_params * (2 if fault == "wrong_n" else 1)
    report = Report(asked.metrics, unit="nats", **({"n_params": n_params} if n_params else {}))
    if fault == "overlap" and step:
        for earlier in range(max(step - 5, 1), step + 1):
            report(step=earlier, tokens=earlier * asked.batch_tokens, loss=3.0)
    if fault == "orphan":
        heartbeat = str(asked.out / "heartbeat")
        subprocess.Popen([sys.executable, "-c", ORPHAN, heartbeat], start_new_session=True)
    while step < asked.steps:
        if stop:
            save(asked.out, step, state)
            print(f"stopped at step {step}", flush=True)
            return
        while asked.wait_for and not asked.wait_for.exists() and not stop:
            time.sleep(0.02)
        step += 1
        state = next_state(state, step, asked.lr)
        loss = 2.0 + 3.0 / math.sqrt(step) + 0.01 * state
        if fault_step and step >= fault_step:
            if fault == "exit0" and not asked.resume:
                save(asked.out, step, state)
                return
            if fault == "crash":
                raise RuntimeError(f"the data loader broke at step {step}")
            if fault == "kill" and not asked.resume:
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "nan":
                loss = math.nan
            if fault == "oom":
                print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")
                sys.exit(1)
            while fault == "hang" and not stop:
                time.sleep(0.05)
        report(step=step, tokens=step * asked.batch_tokens, loss=loss, lr=asked.lr)
        if fault == "broken":
            os.write(report.file.fileno(), b'{"step": 1, "lo\n\xff\xfe\x00\n')
        if fault == "raw":
            print(f"\x1b[32mstep {step}\x1b[0m\r", end="", flush=True)
        elif fault == "flood":
            print("x" * 200_000, flush=True)
        else:
            print(f"step {step} loss {loss:.4f}", flush=True)
        if step % asked.save_every == 0 and step < asked.steps:
            save(asked.out, step, state)
        time.sleep(asked.step_s)
    if fault == "no_final":
        return
    report(final=True, step=step, eval_loss=2.0 + state, eval_tokens=4096, loss_se=0.001)


if __name__ == "__main__":
    main()
