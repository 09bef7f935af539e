"""Reading many runs: the waits of a slow file system overlap, a fast one needs no threads."""

import threading
import time

from scalelab.records.overlapped import PROBED, THREADS, overlapped


def test_slow_calls_overlap_and_keep_their_order():
    at_once, most = 0, 0
    lock, are_many = threading.Lock(), threading.Event()
    probing = threading.get_ident()

    def slow(item):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
            if at_once > THREADS / 2:
                are_many.set()
        time.sleep(0.01)
        # A busy machine takes long to start the threads: those that have begun wait for the others.
        assert threading.get_ident() == probing or are_many.wait(60)
        with lock:
            at_once -= 1
        return item * item

    assert list(overlapped(slow, range(200))) == [item * item for item in range(200)]
    assert THREADS / 2 < most <= THREADS


def test_fast_calls_stay_in_this_thread(monkeypatch):
    # The calls are fast also where other processes take the processor in the middle of one.
    monkeypatch.setattr("scalelab.records.overlapped.LONG_WAIT_S", 0.5)
    threads = set(overlapped(lambda _: threading.get_ident(), range(500)))
    assert threads == {threading.get_ident()}


def test_an_exception_is_the_outcome_of_its_item_only():
    def call(item):
        if item % 50 == 3:
            time.sleep(0.05)
            raise OSError(item)
        return item

    found = list(overlapped(call, range(200)))
    assert [str(each) for each in found if isinstance(each, OSError)] == ["3", "53", "103", "153"]
    assert sum(isinstance(each, int) for each in found) == 196


def test_what_is_not_asked_for_is_not_read():
    read = []

    def slow(item):
        time.sleep(0.005)
        read.append(item)

    outcomes = overlapped(slow, range(10_000))
    for _ in range(PROBED + 1):
        next(outcomes)
    outcomes.close()
    assert len(read) <= PROBED + 1 + 3 * THREADS
