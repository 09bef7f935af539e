"""The limit of one BLAS thread holds for every library, also for one that loads inside the call."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
from threadpoolctl import ThreadpoolController
from scalelab.forecast.one_thread import on_one_thread

@on_one_thread
def threads():
    import numpy, scipy.linalg
    found = ThreadpoolController().select(user_api="blas").info()
    return [library["num_threads"] for library in found]

print(threads())
"""


def test_libraries_that_load_inside_the_call_use_one_thread() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"},
        timeout=300,
    )
    assert set(done.stdout.strip("[]\n").split(", ")) == {"1"}
