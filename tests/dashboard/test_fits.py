"""The worker for fits: it lives as long as the server, and no longer."""

import os
import subprocess
import sys
import time

SERVER = """
import os, time
from scalelab_dashboard.fits import Fits

# Any work does; this asks the worker who it is.
print(Fits()._submit(os.path.realpath, "/proc/self").result(), flush=True)
time.sleep(300)
"""
PATIENCE_S = 30


def test_a_killed_server_takes_its_worker_along():
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    with server.stdout:
        worker = server.stdout.readline().strip()
        assert os.path.isdir(worker)
        server.kill()
        server.wait()
    deadline = time.monotonic() + PATIENCE_S
    while os.path.isdir(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not os.path.isdir(worker)
