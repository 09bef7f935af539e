from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.corpus.split import (
    SHARES,
    SPREAD_UP_TO,
    WINDOW_TOKENS,
    digest,
    is_enough,
    smallest_window,
    window,
)

lengths = st.lists(st.integers(1, 20_000), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(lengths=lengths, share=st.floats(0.001, 1))
def test_the_window_is_the_smallest_that_gives_enough(lengths: list[int], share: float) -> None:
    wanted = max(1, int(share * sum(lengths)))
    found = smallest_window(lengths, wanted)
    assert sum(min(length, found) for length in lengths) >= wanted
    assert sum(min(length, found - 1) for length in lengths) < wanted


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(1, 200),
    length=st.integers(1, 300),
    low=st.integers(0, 2**64 - 1),
)
def test_a_window_is_a_run_of_the_document(n: int, length: int, low: int) -> None:
    found = window(np.arange(n), length, low)
    assert len(found) == min(n, length)
    np.testing.assert_array_equal(np.diff(found), np.ones(len(found) - 1))


def test_windows_start_anywhere() -> None:
    starts = {int(window(np.arange(30), 10, low)[0]) for low in range(100)}
    assert starts == set(range(21))


@settings(max_examples=100, deadline=None)
@given(lengths=lengths, more=lengths, share=st.sampled_from(SHARES), wanted=st.integers(1, 10**5))
def test_more_documents_never_need_a_larger_share(
    lengths: list[int], more: list[int], share: float, wanted: int
) -> None:
    assert is_enough([*lengths, *more], share, wanted) >= is_enough(lengths, share, wanted)


def test_one_long_document_does_not_stand_for_a_large_corpus() -> None:
    wanted = 10 * WINDOW_TOKENS
    assert not is_enough([100 * wanted], SPREAD_UP_TO, wanted)
    assert is_enough([WINDOW_TOKENS + k for k in range(10)], SPREAD_UP_TO, wanted)
    assert is_enough([100 * wanted], 2 * SPREAD_UP_TO, wanted)


def test_documents_fall_evenly_over_the_hashes() -> None:
    high = [int.from_bytes(digest(f"text {i}".encode())[:8], "big") / 2**64 for i in range(4000)]
    counts, _ = np.histogram(high, bins=16, range=(0, 1))
    # Poisson with mean 250: five standard deviations.
    assert np.abs(counts - 250).max() < 5 * np.sqrt(250)
