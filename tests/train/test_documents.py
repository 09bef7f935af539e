"""Attention that stays inside a document: a packed sequence equals its documents run alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from scalelab.corpus.tokenizer_names import END_TOKEN
from scalelab.errors import UsageError
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.train.engine import Engine
from scalelab.train.model import starts_of

LENGTHS = (5, 1, 9, 7)


@pytest.fixture
def packed() -> tuple[torch.Tensor, list[slice]]:
    """Return two sequences of four documents and a begun one, and the documents' positions."""
    torch.manual_seed(0)
    tokens = torch.randint(1, 61, (2, 25))
    ends = np.cumsum(LENGTHS)
    tokens[:, ends - 1] = END_TOKEN
    edges = [0, *ends.tolist(), 24]
    return tokens, [slice(a, b) for a, b in itertools.pairwise(edges)]


def engine_of(spec: RunSpec, execution: ExecutionSpec) -> Engine:
    engine = Engine([spec], execution)
    engine.initialize(0)
    return engine


def test_a_document_starts_after_the_end_token_of_the_one_before() -> None:
    tokens = torch.tensor([[7, 0, 3, 3, 0, 0, 5], [0, 1, 1, 1, 1, 1, 1]])
    assert starts_of(tokens).tolist() == [[0, 0, 2, 2, 2, 5, 6], [0, 1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    "way", [{"attention": "explicit"}, {"attention": "sdpa"}, {"step": "direct"}]
)
def test_losses_equal_those_of_the_documents_alone(
    spec: RunSpec,
    execution: ExecutionSpec,
    packed: tuple[torch.Tensor, list[slice]],
    way: dict[str, str],
) -> None:
    tokens, documents = packed
    masked = engine_of(replace(spec, is_document_masked=True), replace(execution, **way))
    plain = engine_of(spec, execution)
    found = masked.gradients.token_losses(0, tokens)
    for place in documents:
        alone = plain.gradients.token_losses(0, tokens[:, place.start : place.stop + 1])
        torch.testing.assert_close(found[:, place], alone, rtol=1e-5, atol=1e-6)
    whole = plain.gradients.token_losses(0, tokens)
    assert float((whole - found).abs().max()) > 1e-2


@pytest.mark.parametrize(
    "way",
    [{}, {"micro_batch_seqs": 1}, {"step": "direct"}, {"step": "direct", "micro_batch_seqs": 1}],
)
def test_gradients_are_the_sums_over_the_documents_alone(
    spec: RunSpec,
    execution: ExecutionSpec,
    packed: tuple[torch.Tensor, list[slice]],
    way: dict[str, Any],
) -> None:
    tokens, documents = packed
    run = replace(spec, batch_seqs=2, is_document_masked=True, z_loss=1e-3, logit_softcap=1.5)
    masked = engine_of(run, replace(execution, **way))
    loss, _ = masked.gradients.take(tokens)
    total_loss, total_grad = torch.zeros(1), torch.zeros_like(masked.grad)
    for place in documents:
        length = place.stop - place.start
        plain = engine_of(replace(run, is_document_masked=False, seq_len=length), execution)
        part, _ = plain.gradients.take(tokens[:, place.start : place.stop + 1])
        total_loss += part * length / run.seq_len
        total_grad += plain.grad * length / run.seq_len
    torch.testing.assert_close(loss, total_loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(masked.grad, total_grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("step", ["eager", "direct"])
def test_batched_runs_equal_separate_runs(
    spec: RunSpec, execution: ExecutionSpec, packed: tuple[torch.Tensor, list[slice]], step: str
) -> None:
    tokens, _ = packed
    execution = replace(execution, step=step)
    own = replace(spec, batch_seqs=2, is_document_masked=True, logit_softcap=2.0)
    specs = [own, replace(own, seed=9)]
    batched = Engine(specs, execution)
    for run in range(2):
        batched.initialize(run)
    pair = torch.stack((tokens, tokens.flip(1)))
    losses, _ = batched.gradients.take(pair)
    for run, single in enumerate(specs):
        alone, _ = engine_of(single, execution).gradients.take(pair[run])
        torch.testing.assert_close(losses[run : run + 1], alone, rtol=1e-6, atol=0)
    with pytest.raises(UsageError, match="is_document_masked"):
        Engine([own, replace(own, is_document_masked=False)], execution)


def test_a_cap_of_the_logits_is_that_of_plain_torch(
    spec: RunSpec, execution: ExecutionSpec, packed: tuple[torch.Tensor, list[slice]]
) -> None:
    tokens, _ = packed
    cap, z = 0.7, 1e-2
    run = replace(spec, batch_seqs=2, logit_softcap=cap, z_loss=z)
    engine = engine_of(run, execution)
    model = engine.gradients.model  # type: ignore[union-attr]
    hidden, _ = model.hidden(tokens[:, :-1])
    raw = hidden @ model.weights["head"][:61].T
    logits = cap * torch.tanh(raw / cap)
    targets = tokens[:, 1:].flatten()
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
    penalty = z * torch.logsumexp(logits, -1).square().sum()
    expected = torch.autograd.grad((each.sum() + penalty) / targets.numel(), model.weights["head"])
    engine.gradients.take(tokens)
    head = engine.layout.views(engine.grad)["head"]
    torch.testing.assert_close(head, expected[0] * targets.numel() / run.tokens_per_step)
    # The evaluation reports the cross-entropy of the capped logits, without the z-loss.
    found = engine.gradients.token_losses(0, tokens)
    torch.testing.assert_close(found.flatten(), each.detach(), rtol=1e-6, atol=1e-6)
    assert float((logits - raw).detach().abs().max()) > 0.01


@pytest.mark.parametrize(
    ("fields", "way", "problem"),
    [
        ({"logit_softcap": 30.0}, {"kernels": "triton"}, "kernels = triton with logit_softcap"),
        ({"is_document_masked": True}, {"attention": "flash"}, "attention = .?flash"),
        ({"is_document_masked": True}, {"attention": "cudnn"}, "attention = .?cudnn"),
    ],
)
def test_a_way_that_cannot_compute_the_loss_is_refused(
    spec: RunSpec,
    execution: ExecutionSpec,
    fields: dict[str, Any],
    way: dict[str, Any],
    problem: str,
) -> None:
    with pytest.raises(UsageError, match=problem):
        Engine([replace(spec, precision="fp32", **fields)], replace(execution, **way))


def test_a_stopped_run_resumes_bit_for_bit(
    make_run: Callable[..., RunDir], attempt_at: Callable[..., str]
) -> None:
    from tests.train.outcome import result

    fields = {"is_document_masked": True, "logit_softcap": 5.0, "z_loss": 1e-4}
    whole, parts = make_run("whole", **fields), make_run("parts", **fields)
    attempt_at(whole)
    attempt_at(parts, stop_at=12)
    attempt_at(parts)
    assert result(parts).loss_nats == result(whole).loss_nats
