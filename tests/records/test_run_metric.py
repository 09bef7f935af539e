"""The final value of a metric of a run, which `tune` and `sweep adaptive` read."""

import dataclasses
import math

import pytest

from scalelab.errors import UsageError
from scalelab.records.metric import parse_metric
from scalelab.records.run_metric import check_in_training, final_metric, fingerprints
from scalelab.records.types import EvalRow
from scalelab.sweep.run_spec import EvalSetRef

SETS = (
    EvalSetRef(name="code", fingerprint="c" * 16, n_tokens=4096),
    EvalSetRef(name="web", fingerprint="w" * 16, n_tokens=4096),
)


def row(step, name, loss, n_bytes=8192):
    return EvalRow(
        step=step, set=name, loss_nats=loss, stderr_nats=None, n_tokens=4096, n_bytes=n_bytes
    )


@pytest.fixture
def finished(run, record_of):
    """A finished run with two evaluation sets, evaluated half-way and at the end."""
    attempt = run.claim()
    rows = [row(170, "code", 9.0), row(340, "code", 2.0), row(340, "web", 3.0, None)]
    attempt.append_evals(rows)
    attempt.write_record(dataclasses.replace(record_of(attempt), bytes_per_token=2.0))
    assert attempt.accept()
    return run


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("heldout", 1.4375),
        ("code", 2.0),
        ("0.25*code+0.75*web", 2.75),
        ("0.5*heldout+0.5*code", 1.71875),
        ("bpb:code", 2.0 / 2 / math.log(2)),
        ("bpb:heldout", 1.4375 / 2 / math.log(2)),
        ("bpb:web", None),
        ("prose", None),
    ],
)
def test_a_metric_is_that_of_the_end_of_the_run(finished, metric, value):
    found = final_metric(finished, parse_metric(metric))
    assert found == (None if value is None else pytest.approx(value))


def test_a_diverged_run_is_infinite_and_an_unfinished_one_unknown(run, record_of):
    assert final_metric(run, parse_metric("code")) is None
    attempt = run.claim()
    attempt.write_record(record_of(attempt, loss_nats=None, status="diverged"))
    assert attempt.accept()
    assert final_metric(run, parse_metric("code")) == math.inf


def test_runs_that_do_not_evaluate_the_metric_are_refused(spec):
    planned = dataclasses.replace(spec, eval_sets=SETS)
    check_in_training(parse_metric("0.5*heldout+0.5*web"), [planned])
    with pytest.raises(UsageError, match=r"heldout, code, web.*Did you mean --metric code"):
        check_in_training(parse_metric("coed"), [planned])
    with pytest.raises(UsageError, match="--eval-set prose=PATH"):
        check_in_training(parse_metric("prose"), [spec])
    with pytest.raises(UsageError, match="measured after training"):
        check_in_training(parse_metric("task:arc"), [planned])


def test_runs_compare_if_they_share_the_text_of_the_metric(spec):
    planned = dataclasses.replace(spec, eval_sets=SETS)
    other = dataclasses.replace(planned, eval_sets=(SETS[0],))
    assert fingerprints(planned, parse_metric("code")) == fingerprints(other, parse_metric("code"))
    assert fingerprints(planned, parse_metric("web")) != fingerprints(other, parse_metric("web"))
