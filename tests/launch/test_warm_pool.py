"""A worker of the local pool starts at once: all that it needs is loaded before it is forked."""

from scalelab.launch.local import worker_context

TELL = """
import resource, sys
sender.send((sorted(sys.modules), resource.getrusage(resource.RUSAGE_SELF)))
"""


def test_a_worker_is_forked_with_all_loaded_in_less_than_a_tenth_of_a_second():
    context = worker_context()
    seconds = []
    for _ in range(3):
        receiver, sender = context.Pipe(duplex=False)
        # Nothing of this module is sent: importing it would load what is looked for.
        process = context.Process(target=exec, args=(TELL, {"sender": sender}))
        process.start()
        modules, usage = receiver.recv()
        process.join()
        seconds.append(usage.ru_utime + usage.ru_stime)
        assert {"scalelab.launch.job", "scalelab.train.worker", "torch"} <= set(modules)
    assert min(seconds) < 0.1
