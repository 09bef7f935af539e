"""What needs a CUDA device; `make gpu` runs it with TRITON_INTERPRET=0.

``SCALELAB_GPU_TINY=1`` runs the tests of this folder at toy sizes on a CPU with interpreted
kernels, so that a machine without a GPU can see that they run; what they say of a GPU is then
nothing, and what only a GPU has is skipped.
"""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _device(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") is None or os.environ.get("SCALELAB_GPU_TINY"):
        return
    if not torch.cuda.is_available():
        pytest.fail("torch sees no CUDA device: nothing is measured and nothing is claimed")
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        pytest.fail("TRITON_INTERPRET is set: the kernels would run on the CPU")
