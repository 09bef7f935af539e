from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.corpus.drawing import BLOCK, drawn, n_drawn

WEIGHTS = st.lists(st.integers(0, 1000), min_size=1, max_size=6).filter(any)


@settings(max_examples=60, deadline=None)
@given(parts=WEIGHTS, n=st.integers(1, 2500))
def test_any_prefix_has_the_proportions(parts: list[int], n: int) -> None:
    weights = tuple(part / sum(parts) for part in parts)
    sources, _ = drawn(weights, 0, n)
    counts = np.bincount(sources, minlength=len(weights))
    assert counts.tolist() == n_drawn(weights, n).tolist()
    assert counts.sum() == n
    shares = np.array(weights)
    assert (np.abs(counts - n * shares) <= 0.5 + shares * len(shares) / 2 + 0.01).all()
    assert (counts[np.array(weights) == 0] == 0).all()


@settings(max_examples=60, deadline=None)
@given(parts=WEIGHTS, first=st.integers(0, 2 * BLOCK), n=st.integers(1, BLOCK), far=st.booleans())
def test_a_part_of_the_order_is_that_part_of_the_whole(
    parts: list[int], first: int, n: int, far: bool
) -> None:
    weights = tuple(part / sum(parts) for part in parts)
    start = 10**9 * far
    sources, ranks = drawn(weights, start, start + first + n)
    part_sources, part_ranks = drawn(weights, start + first, start + first + n)
    assert part_sources.tolist() == sources[first:].tolist()
    assert part_ranks.tolist() == ranks[first:].tolist()
    for source in range(len(weights)):
        of_source = ranks[sources == source]
        assert (np.diff(of_source) == 1).all()


def test_the_order_is_the_same_on_every_machine() -> None:
    sources, ranks = drawn((0.5, 0.3, 0.2), 0, 12)
    assert sources.tolist() == [0, 1, 2, 0, 0, 1, 0, 2, 1, 0, 0, 1]
    assert ranks.tolist() == [0, 0, 0, 1, 2, 1, 3, 1, 2, 4, 5, 3]


@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.7000001, 0.2999999)])
def test_weights_that_hash_alike_draw_alike(weights: tuple[float, ...]) -> None:
    assert n_drawn(weights, 10_000_019).tolist() == n_drawn((0.7, 0.3), 10_000_019).tolist()
