"""CPU time of scalelab's commands: ``python tests/benchmarks/speed_table.py [--against PYTHON]``.

Each work runs in processes of its own, in turn with a yardstick (a fixed load of Python and NumPy).
Its figure is the median of its CPU time, user and system; its ratio is the median of CPU time over
that of the yardstick of the same turn, which depends less on the machine. ``--against`` measures a
second installation, such as an older version, in the same turns. Commands run with compiled modules
(bytecode), as after an installation.

``--commit`` writes the ratios and the table of results/tables/speed.md after each line, so a run
that is stopped keeps the lines that it has measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

COMMITTED = Path(__file__).with_name("speed_ratios.json")
CORPUS_BYTES = 150_000_000
N_RUNS = 10_000
SLACK = 1.2
MINUTES = 20.0
"""Time after which no other line is started."""
TABLE = Path(__file__).parents[2] / "results" / "tables" / "speed.md"
START, END = "<!-- speed_table.py: start -->", "<!-- speed_table.py: end -->"
ELSEWHERE = """
Lines with a benchmark of their own: the page and the Overview of 100,000 runs in
[dashboard](dashboard.md), the CPU step in [training speed](training_speed.md), `make demo` in
`tests/benchmarks/demo_baseline.py`.
"""

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


Found = dict[str, dict[str, dict[str, float]]]
"""Seconds and ratio by work and installation."""
WARM_TURNS = 5
"""Works of as many turns have another one first, which does not count."""


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


def process_seconds(arguments: list[str], **environment: str) -> float:
    """Return the CPU seconds of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        arguments, check=True, capture_output=True, env={**os.environ, **ONE_THREAD, **environment}
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


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


def measure(
    pythons: Mapping[str, str],
    folder: Path,
    *,
    is_light: bool = False,
    minutes: float = MINUTES,
    after_line: Callable[[Found, list[str]], None] = lambda found, lines: None,
) -> Found:
    """Return seconds and ratio by work and installation; print each line when it is known.

    ``after_line`` is called with all results and lines so far. After ``minutes`` no other line is
    started.
    """
    start = time.monotonic()
    # Without bytecode every process compiles each module again, which no installed command does.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    found: Found = {}
    lines: list[str] = []
    for work in itertools.chain(light_works(folder), () if is_light else heavy_works(folder)):
        if time.monotonic() - start > 60 * minutes:
            print(f"Stopped after {minutes:g} minutes, before: {work.name}", file=sys.stderr)
            break
        if work.turns >= WARM_TURNS:
            for python in pythons.values():
                work.seconds(python)  # compiles the modules
        turns: dict[str, list[tuple[float, float]]] = {name: [] for name in pythons}
        for _ in range(work.turns):
            for name, python in pythons.items():
                unit = process_seconds([sys.executable, "-c", YARDSTICK])
                turns[name].append((work.seconds(python), unit))
        found[work.name] = {
            name: {
                "seconds": statistics.median(seconds for seconds, _ in each),
                "ratio": statistics.median(seconds / unit for seconds, unit in each),
            }
            for name, each in turns.items()
        }
        lines.append(line(work, found[work.name]))
        print(lines[-1], flush=True)
        after_line(found, lines)
    return found


def has_amx() -> bool:
    """Return whether this CPU multiplies bf16 matrices by AMX."""
    facts = Path("/proc/cpuinfo")
    return facts.exists() and "amx_bf16" in facts.read_text()


def write_table(head: str, lines: list[str]) -> None:
    """Replace the generated part of `TABLE`, or add it at the end."""
    amx = "has AMX: see `scalelab bench`" if has_amx() else "has no AMX (probe of /proc/cpuinfo)"
    part = (
        f"{START}\n{date.today()}, {os.cpu_count()} cores, `python tests/benchmarks/speed_table.py "
        f"--commit`.\n\n{head}\n"
        + "\n".join(lines)
        + f"\n\nThe step in bf16: this machine {amx}.\n"
        f"{ELSEWHERE}{END}"
    )
    text = TABLE.read_text()
    if START in text:
        before, rest = text.split(START, 1)
        TABLE.write_text(before + part + rest.split(END, 1)[1])
    else:
        TABLE.write_text(f"{text.rstrip()}\n\n## Latest table\n\n{part}\n")


def line(work: Work, found: Mapping[str, Mapping[str, float]]) -> str:
    """Return a line of the Markdown table."""
    cells = [f"{each['seconds']:.3g} s | {each['ratio']:.3g}" for each in found.values()]
    return f"| {work.name} | {work.goal} | {' | '.join(cells)} |"


def behind(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Return the works whose ratio is more than 20 % above the committed one."""
    committed = json.loads(COMMITTED.read_text())
    return [
        f"{name}: ratio {each['here']['ratio']:.3g}, committed {committed[name]:.3g}"
        for name, each in found.items()
        if name in committed and each["here"]["ratio"] > SLACK * committed[name]
    ]


def main() -> None:
    """Print the table; with ``--commit`` write the ratios that later runs are compared with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", metavar="PYTHON", help="Python of another installation")
    parser.add_argument("--commit", action="store_true", help=f"write {COMMITTED.name}")
    parser.add_argument("--light", action="store_true", help="only lines without large inputs")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="start no line after this time"
    )
    arguments = parser.parse_args()
    pythons = {"here": sys.executable}
    if arguments.against:
        pythons["before"] = arguments.against
    heads = "".join(f" {name} | ratio |" for name in pythons)
    head = f"| work | goal |{heads}\n|---|---|{len(pythons) * '---|---|'}"
    print(head, flush=True)

    def save(found: Found, lines: list[str]) -> None:
        if not arguments.commit:
            return
        ratios = json.loads(COMMITTED.read_text()) if COMMITTED.exists() else {}
        ratios |= {name: round(each["here"]["ratio"], 3) for name, each in found.items()}
        COMMITTED.write_text(json.dumps(ratios, indent=1) + "\n")
        write_table(head, lines)

    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            pythons,
            Path(folder),
            is_light=arguments.light,
            minutes=arguments.minutes,
            after_line=save,
        )
    if not arguments.commit and (slower := behind(found)):
        sys.exit("\n".join(slower))


if __name__ == "__main__":
    main()
