"""The batch rule that reads the noise scale of finished runs."""

import dataclasses
import json

import pytest

from scalelab.errors import NotIdentifiedError, UsageError
from scalelab.records.sweep_dir import Results
from scalelab.records.types import MetricRow, RunRecord
from scalelab.sweep.plan import make_plan
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.theory.noise_rule import fit_noise_rule
from scalelab.tune.noise import measured_rule, with_noise_rule
from tests.tune.test_rule import FACTS

K, Q = 0.9, 0.6


def grid(n_tokens="1M,4M", **train):
    content = {"kind": "grid", "name": "g", "n_params": "40K", "n_tokens": n_tokens}
    return sweep_from_mapping({**content, "train": train}, source="the test")


def finished(results, sweep, scale_of, *, status="done", is_measured=True):
    """Write finished runs whose noise scale doubles along the run to ``scale_of(D)`` at its end."""
    plan = make_plan(sweep, FACTS, precision="fp32")
    results.save_plan(plan, sweep.science(), extend=False)
    for row in plan.rows:
        run = results.run(row.spec.run_id)
        attempt = run.claim()
        scale = scale_of(row.spec.n_tokens)
        # The mean of the quotients of these two halves is not the quotient of the means.
        terms = [(0.1 * scale, 1.0)] * 4 + [(2 * scale, 4.0), (4 * scale, 2.0)] * 2
        rows = [
            MetricRow(
                **{field.name: 1.0 for field in dataclasses.fields(MetricRow)}
                | {"step": step, "noise_trace": trace, "noise_grad_sq": square}
            )
            for step, (trace, square) in enumerate(terms, start=1)
        ]
        if not is_measured:
            rows = [dataclasses.replace(r, noise_trace=None, noise_grad_sq=None) for r in rows]
        attempt.append_metrics(rows)
        with attempt.metrics_path.open("a") as file:
            file.write('{"step": 9, "noise_tr')
        values = {
            "run_id": run.run_id,
            "attempt": attempt.number,
            "token": attempt.token,
            "status": status,
            "loss_nats": 2.0,
            "loss_se_nats": None,
            "n_params": {"chinchilla": row.n_params},
            "flops": {"exact": row.flops},
            "n_tokens": row.spec.n_tokens,
            "unique_tokens": row.spec.n_tokens,
            "n_steps": row.spec.n_steps,
            "wall_s": 1.0,
        }
        attempt.write_record(RunRecord(**values))
        attempt.accept()
    return plan


def test_the_rule_is_the_power_law_of_the_runs(tmp_path):
    results = Results(tmp_path)
    finished(results, grid(), lambda n_tokens: K * n_tokens**Q)
    found = measured_rule(results, "g")
    assert (found.k, found.q) == (pytest.approx(K, rel=1e-6), pytest.approx(Q, rel=1e-6))
    assert found.n_runs == 2
    sweep = with_noise_rule(grid("16M", batch_rule="noise:g"), results)
    plan = make_plan(sweep, FACTS, precision="fp32")
    (row,) = plan.rows
    assert 0.7 < row.spec.tokens_per_step / (K * 16e6**Q) < 1.42
    assert plan.rules["batch"].startswith("noise:g: 0.9 D^0.6 tokens, the noise scale of 2 runs")
    assert sweep.science()["train"]["noise"]["q"] == pytest.approx(Q)
    json.dumps(sweep.science())


@pytest.mark.parametrize(
    ("tokens", "options", "problem"),
    [
        ("1M,4M", {"is_measured": False}, "2 finished, 0 with a noise scale"),
        ("1M,4M", {"status": "diverged"}, "0 finished"),
        ("4M", {}, "1 with a noise scale, at 1 number of tokens"),
    ],
)
def test_runs_that_do_not_determine_the_rule_are_refused_with_a_remedy(
    tmp_path, tokens, options, problem
):
    results = Results(tmp_path)
    finished(results, grid(tokens), lambda n_tokens: K * n_tokens**Q, **options)
    with pytest.raises(NotIdentifiedError, match=rf"{problem}(.|\n)*--micro-batch"):
        with_noise_rule(grid(batch_rule="noise:g"), results)


def test_an_unknown_sweep_is_refused(tmp_path):
    results = Results(tmp_path)
    finished(results, grid(), lambda n_tokens: 1000.0)
    with pytest.raises(UsageError, match="noise:g"):
        with_noise_rule(grid(batch_rule="noise:other"), results)


def test_the_fit_is_least_squares_in_logs():
    found = fit_noise_rule("x", [(1e6, 100.0), (1e6, 400.0), (4e6, 400.0)])
    # The two runs of 1e6 tokens average to 200 in logs; the slope to 400 over a factor 4 is 1/2.
    assert found.q == pytest.approx(0.5)
    assert found.k * 1e6**found.q == pytest.approx(200.0)
