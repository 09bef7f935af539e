"""Check the GPU path and measure it: ``python tests/gpu/quick.py [--out DIR]``.

Needs torch, Triton, NumPy and a CUDA device; no installation and no network. Checks come first,
several at a time, then timings one at a time in the order of their value. Each case runs in a child
process with a time limit. After each, DIR/quick.json and DIR/quick.md are complete. Cases that do
not fit into the budget are not run.

``--long`` runs more cases with a larger budget (``make gpu``). ``--tiny`` runs all at toy sizes on
a CPU with interpreted kernels: it shows that the program works, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDERS = [str(folder) for folder in (ROOT, ROOT / "kernels", HERE)]
sys.path[:0] = FOLDERS

from gpu_cases import catalog  # noqa: E402
from gpu_cases.case import CHECK, TIME, Case, Goal  # noqa: E402
from gpu_cases.clocks import Sampler, fixed_facts  # noqa: E402
from gpu_cases.lanes import Lanes  # noqa: E402
from gpu_cases.report import Report  # noqa: E402

PUBLISHED = ROOT / "results" / "published" / "gpu"
PARTIAL = ROOT / "build" / "gpu"
"""Where a report goes that is not one to publish: of toy sizes, or of some cases only."""
BUDGET_S = {"quick": 530.0, "long": 3600.0, "tiny": 300.0}
CHECKS_END, COMPILE_END = 0.4, 0.55
"""Shares of the budget by which checks and compilations are stopped."""
LANES, TOY_LANES = 4, 2
NO_DEVICE = (
    "no device: nothing was measured, and an earlier report was kept.\n"
    "expected a CUDA GPU, and a Python with torch, Triton and NumPy\n"
    "Try `make gpu-quick PYTHON=/path/to/python`, with a Python that has torch."
)
TOY_ENVIRONMENT = {
    "TRITON_INTERPRET": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
}


def main(
    words: Sequence[str] | None = None,
    cases: Callable[[str], list[Case]] | None = None,
    goals: Sequence[Goal] = catalog.GOALS,
) -> int:
    """Run the cases; return 0 if every check passed.

    Parameters
    ----------
    words : sequence of str, optional
        Command line; default ``sys.argv``.
    cases : callable, optional
        Returns the cases for an output folder, default those of the catalog. If the first fails,
        the others do not run.
    goals : sequence of Goal
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the report: results/published/gpu, or build/gpu with --only or --tiny",
    )
    parser.add_argument("--budget-s", type=float, help="seconds for everything (default 530)")
    parser.add_argument("--long", action="store_true", help="more cases, within an hour")
    parser.add_argument("--tiny", action="store_true", help="toy sizes on a CPU")
    parser.add_argument("--only", nargs="*", default=[], help="cases whose names contain a word")
    options = parser.parse_args(words)
    is_tiny = options.tiny or bool(os.environ.get("SCALELAB_GPU_TINY"))
    started_s = time.monotonic()
    name = "long" if options.long else "quick"
    budget_s = options.budget_s or BUDGET_S["tiny" if is_tiny else name]
    out = options.out or (PARTIAL if options.only or is_tiny else PUBLISHED)
    out.mkdir(parents=True, exist_ok=True)
    make = cases or (catalog.long if options.long else catalog.quick)
    first, *others = make(str(out.resolve()))
    words = options.only or [""]
    chosen = [case for case in others if any(word in case.name for word in words)]
    facts = {
        "facts": {**fixed_facts(), "command": " ".join(sys.argv), "python": sys.version.split()[0]},
        "is_tiny": is_tiny,
        "budget_s": budget_s,
        "began": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    report = Report(out / name, facts, goals)
    sampler = Sampler()

    def add(case: Case, answer: dict) -> None:
        now = time.monotonic()
        report.add(case, answer, sampler.between(now - answer["wall_s"], now))
        row = report.content["cases"][case.name]
        said = row.get("reason") or row.get("figures", {}).get("says", "")
        print(f"{now - started_s:4.0f} s  {row['status']:9} {case.name}: {said}"[:220], flush=True)

    checks = [case for case in chosen if case.kind == CHECK]
    timings = [case for case in chosen if case.kind == TIME]
    ends = {share: started_s + share * budget_s for share in (CHECKS_END, COMPILE_END, 1.0)}
    n_lanes = TOY_LANES if is_tiny else LANES
    try:
        with Lanes(
            out, n_lanes, add, environment=environment(is_tiny=is_tiny), is_tiny=is_tiny
        ) as lanes:
            lanes.run([first], ends[1.0])
            if report.failed_checks:
                print(NO_DEVICE, file=sys.stderr)
                return 1
            lanes.run(checks, ends[CHECKS_END if timings else 1.0])
            # Toy sizes are not timed: nothing is compiled, and they share the machine.
            if not is_tiny:
                lanes.run(catalog.compilations(timings), ends[COMPILE_END])
            lanes.run(timings, ends[1.0], is_alone=not is_tiny)
    finally:
        sampler.stop()
        report.save()
    print(report.table())
    if report.failed_checks:
        print(f"failed checks: {', '.join(report.failed_checks)}", file=sys.stderr)
    return 1 if report.failed_checks else 0


def environment(*, is_tiny: bool) -> dict[str, str]:
    """Return the variables of the child processes."""
    paths = [*FOLDERS, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    own = {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "TRITON_INTERPRET": "0",
    }
    return {**os.environ, **own, **(TOY_ENVIRONMENT if is_tiny else {})}


if __name__ == "__main__":
    sys.exit(main())
