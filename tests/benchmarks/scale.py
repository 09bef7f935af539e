"""Collect many runs and rows: ``python tests/benchmarks/scale.py --runs 10000 --rows 100``.

Writes a results folder of finished runs, collects it, collects again, writes Parquet, and times the
queries of the page's Overview. ``--latency-ms 5`` adds this time to each stat, open and listing of
the run folders, in all processes, as a parallel file system has it.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SLOW = """
import builtins, io, os, time
pause, marked = float(os.environ["SLOW_FILES_S"]), os.environ["SLOW_FILES_UNDER"]
def slowed(call):
    def slow(path, *rest, **named):
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(marked):
            time.sleep(pause)
        return call(path, *rest, **named)
    return slow
for name in ("stat", "lstat", "open", "scandir", "listdir"):
    setattr(os, name, slowed(getattr(os, name)))
builtins.open = io.open = slowed(io.open)
"""


def main() -> None:
    """Print one line for each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--folder", help="where the results are written; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measure(Path(folder), arguments.runs, arguments.rows, arguments.latency_ms / 1e3)


def measure(folder: Path, n_runs: int, n_rows: int, latency_s: float) -> None:
    """Write the folders, then time the commands."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.store import test_collect_speed as written
    from tests.store.conftest import BASE, Maker

    results, site = folder / "results", folder / "site"
    results.mkdir()
    site.mkdir()
    written.N_RUNS = n_runs
    started = time.perf_counter()
    written.write_many(Maker(results), BASE, n_rows)
    print(f"{n_runs:,} runs x {n_rows:,} rows written in {time.perf_counter() - started:.0f} s")
    slow = {}
    if latency_s:
        (site / "sitecustomize.py").write_text(SLOW)
        slow = {
            "PYTHONPATH": str(site),
            "SLOW_FILES_S": str(latency_s),
            "SLOW_FILES_UNDER": str(results / "runs"),
        }
    collect = [sys.executable, "-m", "scalelab", "collect", "--results", str(results)]
    report("collect", collect, slow)
    size = (results / "scalelab.duckdb").stat().st_size
    print(f"database {size / 1e6:.0f} MB, {size / max(1, n_runs * n_rows):.0f} bytes a row")
    report("collect again", collect, slow)
    report("collect --to parquet", [*collect, "--to", "parquet", str(folder / "parquet")], slow)
    shutil.rmtree(folder / "parquet", ignore_errors=True)
    export = [sys.executable, "-m", "scalelab", "export", "--results", str(results)]
    report("export runs", [*export, "--out", str(folder / "runs.parquet")], slow)


def report(name: str, command: list[str], environment: dict[str, str]) -> None:
    """Run a command; print its time, CPU time, and the largest memory of a process so far."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})
    taken = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{name}: {taken:.1f} s, {cpu:.1f} s of CPU, peak memory {after.ru_maxrss / 1e3:.0f} MB",
        flush=True,
    )


if __name__ == "__main__":
    main()
