"""Which large libraries each command loads: ``python tests/benchmarks/imports.py``.

Runs each command in a process of its own and prints a Markdown table: the libraries that are loaded
at its end, the number of modules, and the CPU time of the process.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARIES = (
    "numpy", "scipy", "duckdb", "pyarrow", "pandas", "pydantic", "matplotlib", "plotly",
    "rich", "submitit", "optuna", "tokenizers", "tiktoken", "streamlit", "transformers", "torch",
)  # fmt: skip

CALL = """
import atexit, os, sys
def tell():
    loaded = [name for name in os.environ["LIBRARIES"].split() if name in sys.modules]
    with open(os.environ["TOLD"], "w") as file:
        file.write(f"{len(sys.modules)} {' '.join(loaded)}")
atexit.register(tell)
from scalelab.cli.main import run
sys.argv = ["scalelab", *sys.argv[1:]]
run()
"""


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        results = str(Path(folder) / "results")
        text = Path(folder) / "text.txt"
        text.write_text("".join(f"line {i} of a text, {i * i}\n" for i in range(20_000)))
        at = ["--results", results]
        small = ["--data", str(text), "--eval-tokens", "2000", *at]
        commands: list[tuple[str, list[str]]] = [
            ("--version", ["--version"]),
            ("--help", ["--help"]),
            ("fit --help", ["fit", "--help"]),
            ("tables", ["tables"]),
            ("status (no results)", ["status", *at]),
            ("data prepare", ["data", "prepare", str(text), "--eval-tokens", "2000", *at]),
            ("data prepare --tokenizer bpe:400",
             ["data", "prepare", str(text), "--tokenizer", "bpe:400", "--eval-tokens", "2K", *at]),
            ("sweep grid --dry-run",
             ["sweep", "grid", "--n-params", "20K", "--n-tokens", "100K", "--dry-run", *small]),
            ("sweep grid (trains in a worker)",
             ["sweep", "grid", "--n-params", "20K", "--n-tokens", "200K", "--yes", *small]),
            ("collect", ["collect", *at]),
            ("status", ["status", *at]),
            ("export", ["export", *at]),
            ("fit --from public:chinchilla", ["fit", "--from", "public:chinchilla"]),
            ("fit --plot",
             ["fit", "--from", "public:chinchilla", "--plot", str(Path(folder) / "a.svg")]),
            ("predict C=1e24", ["predict", "C=1e24", "--from", "public:chinchilla"]),
            ("decide", ["decide", "--from", "public:chinchilla", "--flops", "1e23"]),
            ("report",
             ["report", "--from", "public:chinchilla", "--out", str(Path(folder) / "r.html")]),
            ("doctor", ["doctor", *at]),
        ]  # fmt: skip
        print("| command | modules | CPU, s | loads |\n|---|---|---|---|")
        for name, words in commands:
            print(line(name, words, Path(folder)), flush=True)


def line(name: str, words: list[str], folder: Path) -> str:
    """Return a line of the table; a command that fails says so."""
    told = folder / "told"
    told.unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", CALL, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "LIBRARIES": " ".join(LIBRARIES), "TOLD": str(told)},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    n_modules, *loaded = told.read_text().split()
    problem = "" if done.returncode == 0 else f" (exit {done.returncode})"
    return f"| `{name}`{problem} | {n_modules} | {cpu:.2f} | {', '.join(loaded) or 'none'} |"


if __name__ == "__main__":
    main()
