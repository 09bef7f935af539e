"""The commands whose CPU time `speed_table` compares, and how it is measured."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CORPUS_BYTES = 150_000_000
N_RUNS = 10_000

YARDSTICK = """
import json, numpy as np
total = 0.0
for k in range(30):
    a = np.random.default_rng(k).standard_normal((120, 120))
    total += float(np.linalg.svd(a @ a.T, compute_uv=False)[0])
    text = json.dumps({str(i): [i, i / 7, str(i)] for i in range(4000)}, sort_keys=True)
    total += sum(len(key) for key in json.loads(text))
"""

FIT = """
import csv
import sys
import time
import numpy as np
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.parametric import fit_parametric
from scalelab.records.types import Observations
with open(sys.argv[1]) as file:
    rows = [row for row in csv.DictReader(file) if row["excluded_besiroglu"] == "0"]
names = ("n_params", "n_tokens", "flops", "loss")
N, D, C, loss = (np.array([float(row[name]) for row in rows]) for name in names)
data = Observations(n_params=N, n_tokens=D, flops=C, loss_nats=loss)
k, times = int(sys.argv[2]), []
for _ in range(int(sys.argv[3])):
    start = time.process_time()
    fit_parametric(data, bootstrap=BootstrapSpec(k=k))
    times.append(time.process_time() - start)
print(sorted(times)[len(times) // 2])
"""

PLAN = """
import time
from scalelab.sweep.plan import make_plan
from scalelab.sweep.planned_run import DataFacts
from scalelab.sweep.spec import sweep_from_mapping
facts = DataFacts(fingerprint="f" * 16, eval_fingerprint="e" * 16, tokenizer="bytes",
                  vocab_size=256, n_train_tokens=30_000_000, n_eval_tokens=262_144)
grid = {"kind": "grid", "n_params": [3e6 * 1.12**i for i in range(100)],
        "n_tokens": [1e8 * 1.05**i for i in range(100)]}
start = time.process_time()
plan = make_plan(sweep_from_mapping(grid, source="a benchmark"), facts, precision="fp32")
assert len({row.spec.run_id for row in plan.rows}) == 10_000
print(time.process_time() - start)
"""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One line of the table.

    Attributes
    ----------
    name, goal : str
    seconds : function
        From a Python executable to the CPU seconds of the work.
    turns : int
        Measurements of it.
    """

    name: str
    goal: str
    seconds: Callable[[str], float]
    turns: int = 5


ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PR_SET_CHILD_SUBREAPER = 36


def process_seconds(arguments: list[str], **options: Any) -> float:
    """Return the CPU seconds of a command and of all processes that it started.

    Workers of a launcher outlive the server that forks them: this process inherits and counts them.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        arguments, check=True, capture_output=True, env={**os.environ, **ONE_THREAD}, **options
    )
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def said_seconds(arguments: list[str]) -> float:
    """Return the seconds that a script prints."""
    done = subprocess.run(
        arguments, check=True, capture_output=True, text=True, env={**os.environ, **ONE_THREAD}
    )
    return float(done.stdout)


def light_works(folder: Path) -> Iterator[Work]:
    """Yield the lines that need no large input."""
    import scalelab

    table = Path(scalelab.__file__).parent / "public_tables" / "chinchilla" / "data.csv"

    def command(*words: str) -> Callable[[str], float]:
        return lambda python: process_seconds([python, "-m", "scalelab", *words])

    def fit(n_replicates: int, times: int) -> Callable[[str], float]:
        given = [str(table), str(n_replicates), str(times)]
        return lambda python: said_seconds([python, "-c", FIT, *given])

    yield Work(name="full fit, 240 rows", goal="0.05 s", seconds=fit(0, 15))
    yield Work(name="full fit with 4,000 replicates", goal="0.5 s", seconds=fit(4000, 3))
    yield Work(
        name="scalelab fit, 240 rows, whole process",
        goal="0.7 s",
        seconds=command("fit", "--from", "public:chinchilla"),
    )
    yield Work(
        name="scalelab fit --predict C=1e24, whole process",
        goal="2 s",
        seconds=command("fit", "--from", "public:chinchilla", "--predict", "C=1e24"),
    )
    yield Work(
        name="plan of 10,000 runs",
        goal="1 s",
        seconds=lambda python: said_seconds([python, "-c", PLAN]),
    )
    yield Work(name="scalelab --help", goal="", seconds=command("--help"))
    yield Work(name="scalelab tables", goal="", seconds=command("tables"))
    yield Work(
        name="scalelab sweep isoflop --dry-run",
        goal="",
        seconds=command(
            "sweep", "isoflop", "--budgets", "1e18..1e20", "--dry-run", "--results",
            str(folder / "planned"),
        ),
        turns=3,
    )  # fmt: skip


def heavy_works(folder: Path) -> Iterator[Work]:
    """Yield the lines on 150 MB of text and on 10,000 runs, which are written to ``folder``."""
    from scalelab.store.live import LIVE_FILE, SNAPSHOT_FILE

    corpus, n_bytes = write_corpus(folder / "corpus")
    lines = folder / "corpus.jsonl"
    with lines.open("w", encoding="utf-8") as file:
        for path in sorted(corpus.iterdir()):
            file.write(json.dumps({"text": path.read_text(encoding="utf-8")}) + "\n")
    if n_bytes < CORPUS_BYTES:
        print(f"Only {n_bytes / 1e6:.0f} MB of text were found.", file=sys.stderr)

    def prepare(text: Path, tokenizer: str) -> Callable[[str], float]:
        def seconds(python: str) -> float:
            results = folder / "prepared"
            shutil.rmtree(results, ignore_errors=True)
            return process_seconds(
                [python, "-m", "scalelab", "data", "prepare", str(text), "--tokenizer", tokenizer,
                 "--results", str(results)]
            )  # fmt: skip

        return seconds

    yield Work(
        name="data prepare --tokenizer bpe:32000, 150 MB in small files",
        goal="a sixth of 125 s: 21 s",
        seconds=prepare(corpus, "bpe:32000"),
        turns=2,
    )
    yield Work(
        name="data prepare --tokenizer bytes, the same files",
        goal="150 MB/s: 1 s",
        seconds=prepare(corpus, "bytes"),
        turns=3,
    )
    yield Work(
        name="data prepare --tokenizer bytes, the same text in a file of JSON Lines",
        goal="150 MB/s: 1 s",
        seconds=prepare(lines, "bytes"),
        turns=3,
    )
    runs = folder / "runs"
    write_runs(runs)

    def collect(python: str) -> float:
        for name in (LIVE_FILE, SNAPSHOT_FILE):
            (runs / name).unlink(missing_ok=True)
        return process_seconds([python, "-m", "scalelab", "collect", "--results", str(runs)])

    def to_parquet(python: str) -> float:
        warehouse = folder / "warehouse"
        shutil.rmtree(warehouse, ignore_errors=True)
        words = ["collect", "--results", str(runs), "--to", "parquet", str(warehouse)]
        return process_seconds([python, "-m", "scalelab", *words])

    yield Work(
        name=f"scalelab collect, {N_RUNS:,} records, whole process", goal="0.7 s", seconds=collect
    )
    yield Work(
        name=f"scalelab collect --to parquet, {N_RUNS:,} collected runs",
        goal="",
        seconds=to_parquet,
        turns=3,
    )


def write_corpus(folder: Path) -> tuple[Path, int]:
    """Write up to `CORPUS_BYTES` of the text files of this Python and its packages."""
    folder.mkdir()
    endings = {".py", ".html", ".md", ".txt", ".json", ".rst", ".h", ".hpp", ".js", ".pyi"}
    roots = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/usr/share"]
    total = 0
    for path in (p for root in roots for p in sorted(Path(root).rglob("*"))):
        if total >= CORPUS_BYTES or path.suffix not in endings or not path.is_file():
            continue
        try:
            content = path.read_bytes()
            content.decode()
        except (OSError, UnicodeDecodeError):
            continue
        if content.strip() and b"\0" not in content:
            (folder / f"{total}.txt").write_bytes(content)
            total += len(content)
    return folder, total


def write_runs(results: Path) -> None:
    """Write the folders of `N_RUNS` finished runs without curves."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.store.conftest import BASE, Maker
    from tests.store.test_collect_speed import write_many

    results.mkdir()
    write_many(Maker(results), BASE, 0)
