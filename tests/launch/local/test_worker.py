"""A worker of the local pool starts fast: its modules are imported before the fork."""

import json
import subprocess
import sys

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


def test_a_worker_is_forked_with_all_loaded_in_less_than_a_tenth_of_a_second():
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER], check=True, stdout=subprocess.PIPE, text=True
    )
    found = json.loads(done.stdout)
    for modules, _ in found:
        assert {"scalelab.launch.local.worker", "scalelab.train.worker", "torch"} <= set(modules)
    assert min(seconds for _, seconds in found) < 0.1
