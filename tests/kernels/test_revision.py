"""The revision names the source of the kernels, and costs no import of torch or Triton."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import scalelab_kernels

SOURCES = Path(scalelab_kernels.__file__).parent


def revision_of(folder):
    spec = importlib.util.spec_from_file_location("copied_kernels", folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.revision()


def test_a_copy_has_the_same_revision_until_a_file_changes(tmp_path):
    folder = shutil.copytree(SOURCES, tmp_path / "copy", ignore=lambda *_: {"__pycache__"})
    assert revision_of(folder) == scalelab_kernels.revision()
    with (folder / "configs.py").open("a") as file:
        file.write("\n")
    changed = revision_of(folder)
    assert changed != scalelab_kernels.revision()
    (folder / "configs.py").rename(folder / "tiles.py")
    assert revision_of(folder) not in (changed, scalelab_kernels.revision())


def test_the_revision_needs_neither_torch_nor_triton():
    code = (
        "import sys, scalelab_kernels; print(scalelab_kernels.revision());"
        "assert not {'torch', 'triton', 'numpy'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.strip() == scalelab_kernels.revision()
