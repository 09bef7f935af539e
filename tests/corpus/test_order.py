from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.corpus.order import BLOCK, permuted, permuted_run


def whole(n: int, seed: int = 3, epoch: int = 0) -> np.ndarray:
    return permuted(np.arange(n, dtype=np.int64), n, seed=seed, epoch=epoch)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**40), epoch=st.integers(0, 5))
def test_every_place_gets_another_entry(n: int, seed: int, epoch: int) -> None:
    np.testing.assert_array_equal(np.sort(whole(n, seed, epoch)), np.arange(n))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 2**45), seed=st.integers(0, 2**31), data=st.data())
def test_an_entry_does_not_depend_on_the_places_asked_with_it(
    n: int, seed: int, data: st.DataObject
) -> None:
    places = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20, unique=True))
    together = permuted(np.array(places, dtype=np.int64), n, seed=seed, epoch=1)
    alone = [
        int(permuted(np.array([place], dtype=np.int64), n, seed=seed, epoch=1)[0])
        for place in places
    ]
    assert together.tolist() == alone
    assert len(set(alone)) == len(alone)
    assert min(alone) >= 0
    assert max(alone) < n


@pytest.mark.parametrize(("seed", "epoch"), [(4, 0), (3, 1)])
def test_another_seed_or_epoch_is_another_order(seed: int, epoch: int) -> None:
    n_same = int((whole(997) == whole(997, seed, epoch)).sum())
    # The number of matches of two random permutations is Poisson with mean 1: 8 or more: 1e-6.
    assert n_same < 8


@pytest.mark.parametrize("n", [5, 37, 1000])
def test_the_first_entry_is_uniform_over_seeds(n: int) -> None:
    n_seeds = 4000
    first = [
        int(permuted(np.zeros(1, dtype=np.int64), n, seed=seed, epoch=0)[0])
        for seed in range(n_seeds)
    ]
    bins = min(n, 20)
    counts, _ = np.histogram(np.array(first) * bins // n, bins=bins, range=(0, bins))
    shares = np.bincount(np.arange(n) * bins // n, minlength=bins) / n
    chi2 = float((((counts - n_seeds * shares) ** 2) / (n_seeds * shares)).sum())
    # Mean bins - 1, standard deviation sqrt(2 (bins - 1)); five of them.
    assert chi2 < bins - 1 + 5 * np.sqrt(2 * (bins - 1))


def test_neighbours_are_torn_apart() -> None:
    order = whole(10_000)
    correlation = np.corrcoef(order[:-1], order[1:])[0, 1]
    # Standard error 1 / sqrt(n) = 0.01.
    assert abs(correlation) < 0.05


def test_the_order_is_what_it_was() -> None:
    """A run is its seed: these numbers may change only with ``numerics_revision``."""
    assert whole(10, seed=7).tolist() == GOLDEN_SMALL
    places = np.array([0, 1, 123_456_789], dtype=np.int64)
    assert permuted(places, 1_000_000_007, seed=1, epoch=2).tolist() == GOLDEN_LARGE


GOLDEN_SMALL = [2, 7, 6, 3, 9, 5, 8, 4, 1, 0]
GOLDEN_LARGE = [525111083, 958007827, 244601460]


@given(
    n=st.integers(1, 3 * BLOCK),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 5),
)
def test_a_run_of_places_has_the_entries_of_its_places(n, ends, seed) -> None:
    start = int(min(ends) * (n - 1))
    stop = max(start + 1, int(max(ends) * n))
    found = permuted_run(start, stop, n, seed=seed, epoch=2)
    np.testing.assert_array_equal(found, whole(n, seed=seed, epoch=2)[start:stop])
