"""A copy of the kernels' package whose Triton operations are torch's, fast and easy to break.

The child process of a qualification imports the copy, because it comes first on its path. The
process of the tests keeps the real package.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import scalelab_kernels

from scalelab.sweep.execution import AUTO, ExecutionSpec
from scalelab.sweep.run_spec import RunSpec

MODULES = {
    "adamw": "from scalelab_kernels.reference_adamw import adamw_step_\n",
    "attention": "from scalelab_kernels.reference import causal_attention\n",
    "gram": "from scalelab_kernels.reference_gram import gram, gram_polynomial\n",
    "linear_cross_entropy": "from scalelab_kernels.reference import linear_cross_entropy\n"
    "from scalelab_kernels.reference import linear_cross_entropy_sum\n",
    "moe": "from scalelab_kernels.reference_moe import grouped_linear, permute, unpermute\n",
    "qk_norm_rope": "from scalelab_kernels.reference import qk_norm_rope\n",
    "rms_norm": "from scalelab_kernels.reference import add_rms_norm, rms_norm\n",
    "swiglu": "from scalelab_kernels.reference import swiglu\n",
}
AUTO_REQUEST = ExecutionSpec(step=AUTO, kernels=AUTO, attention=AUTO, metrics_interval_steps=4)


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that gives child processes kernels; text is added to some modules."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # No case is left out because the machine is slow.
    monkeypatch.setattr("scalelab.train.qualify.choose.LIMIT_S", 800.0)

    def make(changes: Mapping[str, str] = {}) -> None:
        folder = tmp_path / "package" / "scalelab_kernels"
        source = Path(scalelab_kernels.__file__).parent
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
        for name, text in MODULES.items():
            (folder / f"{name}.py").write_text(text + changes.get(name, ""))
        monkeypatch.syspath_prepend(folder.parent)

    return make


@pytest.fixture
def tiny(spec: RunSpec) -> RunSpec:
    """A run whose checks take a few milliseconds."""
    return replace(spec, shape=replace(spec.shape, n_layers=1), seq_len=8, batch_seqs=2, n_steps=8)
