"""An environment like that of a GPU machine: torch, Triton and NumPy, not scalelab's other needs.

Also for the processes that the first one starts.
"""

from __future__ import annotations

import os
from pathlib import Path

ABSENT = ("duckdb", "matplotlib", "optuna", "pandas", "plotly", "pyarrow", "pydantic")
ABSENT += ("pydantic_core", "rich", "scipy", "streamlit", "submitit", "tokenizers", "typer")
ABSENT += ("sentencepiece", "tiktoken")
HIDE = f"""
import importlib.machinery as machinery

find = machinery.PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.split(".")[0] in {ABSENT} else find(name, path, target)

machinery.PathFinder.find_spec = find_spec
"""


def bare_environment(folder: Path, *paths: Path) -> dict[str, str]:
    """Return variables with which Python does not find `ABSENT`.

    Parameters
    ----------
    folder : Path
        Empty folder; gets the module that hides the packages.
    paths : Path
        More folders to import from.
    """
    (folder / "sitecustomize.py").write_text(HIDE)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (folder, *paths)))}
