"""Tests that need a CUDA device; `make gpu` runs them with TRITON_INTERPRET=0.

``SCALELAB_GPU_TINY=1`` runs them at toy sizes on a CPU with interpreted kernels, to check on a
machine without a GPU that they run. They then test nothing about a GPU, and tests of features that
only a GPU has are skipped.
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
        pytest.fail("torch finds no CUDA device, so nothing can be measured")
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        pytest.fail("TRITON_INTERPRET is set: the kernels would run on the CPU")
