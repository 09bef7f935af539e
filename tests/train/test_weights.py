"""The kept weights of a run: read back, refused with a reason, and the model that they make."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scalelab.errors import DataError, UsageError
from scalelab.train import checkpoint
from scalelab.train.weights import WeightsModel, load_weights
from scalelab.train.worker import run_batched
from tests.train.outcome import result


def test_kept_weights_give_the_recorded_loss(make_run, attempt_at, dataset):
    run = make_run(ema_decay=0.9)
    assert attempt_at(run, keeps_weights=True) == "done"
    record = result(run)
    for is_average, recorded in ((False, record.loss_nats), (True, record.ema_loss_nats)):
        weights = load_weights(run, average=is_average)
        model = WeightsModel(weights, "cpu")
        tokens = torch.from_numpy(dataset.eval_sequences(weights.spec.seq_len))
        losses = model.target_losses(tokens, torch.ones_like(tokens[:, 1:], dtype=torch.bool))
        assert losses.double().mean().item() == pytest.approx(recorded, rel=1e-6)
        logits = model.logits(tokens[:2, :-1]).double()
        expected = -torch.log_softmax(logits, -1).gather(-1, tokens[:2, 1:, None]).flatten()
        assert np.allclose(losses[: expected.numel()], expected, atol=1e-5)


def test_only_chosen_targets_are_returned_in_order(make_run, attempt_at, dataset):
    run = make_run(n_steps=4, warmup_steps=1)
    assert attempt_at(run, keeps_weights=True) == "done"
    model = WeightsModel(load_weights(run), "cpu")
    tokens = torch.from_numpy(dataset.eval_sequences(12)[:3])
    whole = model.target_losses(tokens, torch.ones(3, 12, dtype=torch.bool)).view(3, 12)
    chosen = torch.zeros(3, 12, dtype=torch.bool)
    chosen[0, 3] = chosen[2, 9:] = True
    assert torch.equal(model.target_losses(tokens, chosen), whole[chosen])


def test_batched_runs_keep_the_weights_of_each(make_run, dataset, execution):
    runs = [make_run(seed=seed) for seed in (1, 2)]
    found = replace(execution, keeps_weights=True)
    assert run_batched([run.path for run in runs], dataset.folder, found) == ("done", "done")
    for run in runs:
        model = WeightsModel(load_weights(run), "cpu")
        losses = model.sequence_losses(dataset.eval_sequences(model.spec.seq_len), print)
        assert np.mean(losses) == pytest.approx(result(run).loss_nats, rel=1e-6)


def test_a_finished_run_keeps_the_checkpoint_of_its_last_step_only(make_run, attempt_at):
    run = make_run()
    attempt_at(run, stop_at=12, checkpoint_interval_s=0.0)
    assert attempt_at(run, keeps_weights=True, checkpoint_interval_s=0.0) == "done"
    assert [(c.attempt, c.step) for c in run.checkpoints()] == [(2, 30)]


def test_weights_that_are_not_there_are_an_error_that_says_how_to_keep_them(
    make_run, attempt_at, dataset
):
    run = make_run()
    with pytest.raises(DataError, match="which is planned"):
        load_weights(run)
    assert attempt_at(run) == "done"
    with pytest.raises(DataError, match="were not kept") as caught:
        load_weights(run)
    assert "--keep-weights" in caught.value.do
    with pytest.raises(UsageError, match="kept no average"):
        load_weights(run, average=True)


def test_damaged_weights_are_not_read(make_run, attempt_at):
    run = make_run(n_steps=4, warmup_steps=1)
    assert attempt_at(run, keeps_weights=True) == "done"
    (found,) = run.checkpoints()
    file = found.path / checkpoint.STATE_FILE
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="are damaged"):
        load_weights(run)


def test_half_precision_weights_are_rounded_as_in_training(make_run, attempt_at, dataset):
    run = make_run(precision="bf16", n_steps=8, warmup_steps=1)
    assert attempt_at(run, keeps_weights=True) == "done"
    weights = load_weights(run)
    tokens = torch.from_numpy(dataset.eval_sequences(weights.spec.seq_len))
    chosen = torch.ones_like(tokens[:, 1:], dtype=torch.bool)
    loss = WeightsModel(weights, "cpu").target_losses(tokens, chosen).double().mean()
    assert loss.item() == pytest.approx(result(run).loss_nats, rel=2e-4)
    exact = replace(weights, spec=replace(weights.spec, precision="fp32"))
    other = WeightsModel(exact, "cpu").target_losses(tokens, chosen).double().mean()
    assert abs(other - loss) < 0.02
