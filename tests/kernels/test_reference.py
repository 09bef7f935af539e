from __future__ import annotations

import pytest
import torch
from scalelab_kernels import reference


@pytest.mark.parametrize("n_runs", [1, 2])
def test_hand_written_gradients_equal_those_of_the_formula(n_runs):
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    shape = (n_runs, 6) if n_runs > 1 else (6,)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(reference.rms_norm, (x, weight))
    cos, sin = reference.rope_tables(3, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: reference.apply_rope(x, cos, sin), (x,))


def test_rope_makes_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 8, dtype=torch.float64)
    cos, sin = reference.rope_tables(9, 8, dtype=torch.float64)
    turned = [reference.apply_rope(t.expand(9, 8), cos, sin) for t in (q, k)]
    scores = turned[0] @ turned[1].T
    for distance in range(9):
        along = scores.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along))


def test_document_starts():
    ids = torch.tensor([[4, 4, 1, 1, 1, 4], [7, 7, 7, 7, 7, 7]])
    assert reference.document_starts(ids).tolist() == [[0, 0, 2, 2, 2, 5], [0] * 6]


@pytest.mark.parametrize("lead", [(), (2,), (3, 2)])
def test_both_paths_of_attention_agree_with_repeated_heads(lead):
    q = torch.randn(*lead, 4, 7, 6, dtype=torch.float64)
    k, v = (torch.randn(*lead, 2, 7, 6, dtype=torch.float64) for _ in range(2))
    wide = [t.repeat_interleave(2, -3) for t in (k, v)]
    hidden = torch.ones(7, 7).triu(1).bool()
    scores = (q @ wide[0].transpose(-1, -2) / 6**0.5).masked_fill(hidden, float("-inf"))
    expected = scores.softmax(-1) @ wide[1]
    torch.testing.assert_close(reference.causal_attention(q, k, v), expected)
    if lead:
        torch.testing.assert_close(reference.causal_attention(q, k, v, path="sdpa"), expected)
