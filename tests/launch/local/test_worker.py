"""Workers of the local pool start fast, isolated from the current folder and from Ctrl-C."""

import json
import os
import signal
import subprocess
import sys

import pytest

# A separate process: the first user of a fork server decides what it preloads.
LAUNCHER = """
import json
from scalelab.launch.local.worker import worker_context

TELL = '''
import resource, sys
usage = resource.getrusage(resource.RUSAGE_SELF)
sender.send((sorted(sys.modules), usage.ru_utime + usage.ru_stime))
'''
if __name__ == "__main__":
    context, found = worker_context(), []
    for _ in range(3):
        receiver, sender = context.Pipe(duplex=False)
        # exec of a string: importing this module would load the modules that the test looks for.
        process = context.Process(target=exec, args=(TELL, {"sender": sender}))
        process.start()
        found.append(receiver.recv())
        process.join()
    print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_worker_is_forked_with_all_loaded_in_less_than_a_tenth_of_a_second():
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER], check=True, stdout=subprocess.PIPE, text=True
    )
    found = json.loads(done.stdout)
    for modules, _ in found:
        assert {"scalelab.launch.local.worker", "scalelab.train.worker", "torch"} <= set(modules)
    assert min(seconds for _, seconds in found) < 0.1


# Preloads the modules that it is given, then starts a worker.
STARTER = """
import sys
from scalelab.launch.local.worker import start_isolated, worker_context

if __name__ == "__main__":
    context = worker_context()
    context.set_forkserver_preload(sys.argv[1:])
    try:
        process = context.Process(target=exec, args=("import random, queue; print('works')",))
        start_isolated(process)
        process.join()
    except KeyboardInterrupt:
        print("stopped")
"""


def test_a_worker_imports_nothing_from_the_current_folder(tmp_path):
    for name in ("random", "queue", "tokenize", "selectors", "socket", "site_of_the_user"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the current folder')")
    (tmp_path / "elsewhere").mkdir()
    program = tmp_path / "elsewhere" / "starter.py"
    program.write_text(STARTER)
    done = subprocess.run(
        [sys.executable, str(program), "scalelab.launch.local.worker"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_ctrl_c_while_the_server_imports_leaves_no_traceback_of_it(tmp_path):
    was_sent = tmp_path / "sent"
    (tmp_path / "slow_import.py").write_text(
        "import os, time\nprint('importing', flush=True)\n"
        f"while not os.path.exists({str(was_sent)!r}):\n    time.sleep(0.01)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, "slow_import"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "importing\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    was_sent.touch()
    out, err = process.communicate(timeout=300)
    assert err == ""
    assert "stopped" in out
