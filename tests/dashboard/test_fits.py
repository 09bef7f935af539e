"""The worker for fits: it lives as long as the server, and no longer."""

import subprocess
import sys
import time
from pathlib import Path

SERVER = """
import os, time
from scalelab_dashboard.fits import Fits

# Any work does; this asks the worker who it is.
print(Fits()._submit(os.path.realpath, "/proc/self").result(), flush=True)
time.sleep(300)
"""
PATIENCE_S = 120


def lives(worker: str) -> bool:
    """Say whether a process of /proc runs; one that has ended stays there until it is noticed."""
    try:
        return Path(worker, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_server_takes_its_worker_along():
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    with server.stdout:
        worker = server.stdout.readline().strip()
        assert lives(worker)
        server.kill()
        server.wait()
    deadline = time.monotonic() + PATIENCE_S
    while lives(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not lives(worker)
