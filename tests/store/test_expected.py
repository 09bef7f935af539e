"""Expected losses match known laws, and unusual runs are reported."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from scalelab.records.run_dir import RunDir
from scalelab.store.expected import MIN_FINISHED, expect, hopeless, loss_about, surprising
from scalelab.store.run_status import RunStatus
from scalelab.store.status import read_status


def truth(places, exponents=(0.34, 0.28)):
    """Losses of Hoffmann et al. 2022, arXiv:2203.15556, section 3.3: other exponents than ours."""
    n, d = np.asarray(places, float).T
    return 1.69 + 406.4 / n ** exponents[0] + 410.7 / d ** exponents[1]


PLACES = np.asarray([(n, c / 6 / n) for c in (1e18, 3e18, 1e19) for n in (4e7, 9e7, 2e8, 5e8)])


def finished(noise=0.003, seed=3):
    losses = truth(PLACES) + noise * np.random.default_rng(seed).standard_normal(len(PLACES))
    return [
        RunStatus(
            run_id=f"r{i}", state="done", n_params=int(n), n_tokens=int(d), n_steps=100,
            loss_nats=loss, step=100,
        )
        for i, ((n, d), loss) in enumerate(zip(PLACES, losses, strict=True))
    ]  # fmt: skip


@pytest.mark.parametrize("at", [(1.5e8, 2e9), (3e8, 5e9)])
def test_the_interval_has_its_nominal_coverage(at):
    at = np.asarray(at)
    hits = []
    for seed in range(300):
        noise = 0.02 * np.random.default_rng(seed).standard_normal(len(PLACES) + 1)
        found = expect(PLACES, truth(PLACES) + noise[1:], at=at)
        hits.append(found.low_nats <= truth([at])[0] + noise[0] <= found.high_nats)
    # 300 draws at 0.9: a standard error of 0.017.
    assert 0.84 <= np.mean(hits) <= 0.96


def test_nothing_is_expected_where_the_runs_do_not_identify_it():
    losses = truth(PLACES)
    at = PLACES[0]
    assert expect(PLACES[: MIN_FINISHED - 1], losses[: MIN_FINISHED - 1], at=at) is None
    one_size = np.column_stack([np.full(8, 1e8), np.geomspace(1e8, 1e9, 8)])
    assert expect(one_size, truth(one_size), at=np.asarray([2e8, 5e8])) is None
    assert expect(one_size, truth(one_size), at=np.asarray([1e8, 5e8])) is not None
    one_ratio = np.column_stack([np.geomspace(1e7, 1e8, 8), np.geomspace(1e8, 1e9, 8)])
    assert expect(one_ratio, truth(one_ratio), at=np.asarray([2e7, 2e9])) is None


@pytest.mark.parametrize("off", [0.1, -0.1])
def test_a_run_outside_the_range_of_the_others_is_reported(off):
    runs = finished()
    assert surprising(runs) == ()
    runs[5] = replace(runs[5], loss_nats=runs[5].loss_nats + off)
    ((run, expected),) = surprising(runs)
    assert run.run_id == "r5"
    assert (run.loss_nats > expected.high_nats) == (off > 0)


def test_normal_sweeps_rarely_report_a_run():
    alarms = [bool(surprising(finished(seed=seed))) for seed in range(100)]
    assert np.mean(alarms) <= 0.05


class TestHopeless:
    """Runs of Hoffmann's law whose training loss is 30 % above their final one at the start."""

    def found(self, monkeypatch, *, excess=0.0, seed=0, fraction=0.5, at=(1.5e8, 2e9), n_done=12):
        runs = finished(seed=seed)[:n_done]
        finals = {run.run_id: run.loss_nats for run in runs}
        finals["new"] = truth([at])[0] * (1 + excess)
        noise = 0.003 * np.random.default_rng(seed).standard_normal(len(finals))
        wobble = dict(zip(finals, noise, strict=True))

        def about(folder, share, n_steps):
            run_id = folder.rsplit("/", 1)[1]
            return finals[run_id] * (1 + 0.3 * (1 - share)) + wobble[run_id]

        monkeypatch.setattr("scalelab.store.expected.loss_about", about)
        new = RunStatus(
            run_id="new", state="running", n_params=int(at[0]), n_tokens=int(at[1]), n_steps=1000,
            step=round(1000 * fraction),
        )  # fmt: skip
        return [(run.run_id, why) for run, why in hopeless([*runs, new], "/results/runs")]

    def test_a_run_far_above_the_others_is_found_with_its_predicted_loss(self, monkeypatch):
        ((run_id, why),) = self.found(monkeypatch, excess=0.12)
        assert run_id == "new"
        assert why.startswith("at 50% of its steps its predicted final loss is ")
        predicted = float(why.split(" is ")[1].split(",")[0])
        # The excess of 12 % is measured on a loss 15 % above the final one.
        assert predicted == pytest.approx(truth([(1.5e8, 2e9)])[0] * (1 + 0.12 * 1.15), abs=0.02)

    @pytest.mark.parametrize(
        "changes",
        [
            {"excess": 0.03},  # worse than the others, but not hopeless
            {"fraction": 0.2},
            {"at": (5e9, 2e10)},  # far from the others: the form is no law
            {"n_done": MIN_FINISHED - 1},
        ],
        ids=lambda changes: str(changes),
    )
    def test_others_are_left_alone(self, monkeypatch, changes):
        assert self.found(monkeypatch, **{"excess": 0.12, **changes}) == []

    def test_healthy_runs_are_never_found(self, monkeypatch):
        for seed in range(100):
            for at in ((1.5e8, 2e9), (4e7, 4e9), (9e8, 3e9), (2e7, 1e9)):
                assert self.found(monkeypatch, seed=seed, at=at, fraction=0.3) == []


class TestOutlook:
    def write_curve(self, make, run: RunDir, scale: float, steps, n_steps=340):
        (attempt,) = run.attempts()
        rows = [
            asdict(replace(make.row(step), loss_nats=scale * (3 + n_steps / (step + 30))))
            for step in steps
        ]
        attempt.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def sweep(self, make, own_scale):
        """Six finished runs of one shape of curve, whose level falls with the size, and another."""
        runs = []
        for seed, d_model in enumerate((48, 64, 96, 128, 160, 192)):
            run = make.run(seed, d_model)
            attempt = make.attempt(run, [])
            make.finish(attempt, loss=2.0 + 10 / d_model)
            self.write_curve(make, run, 1 + 1 / d_model, range(1, 341))
            runs.append(run)
        running = make.run(9, 112)
        make.attempt(running, [])
        self.write_curve(make, running, own_scale * (1 + 1 / 112), range(1, 171))
        make.sweep("s", [*runs, running])
        return running

    def outlook(self, make, monkeypatch):
        monkeypatch.setattr("scalelab.store.status._is_gone", lambda note: False)
        (running,) = [r for r in read_status(make.path, "s").runs if r.state == "running"]
        return running.outlook

    def test_it_is_compared_with_finished_runs_at_the_same_place(self, make, monkeypatch):
        self.sweep(make, 1.0)
        outlook = self.outlook(make, monkeypatch)
        middle = np.mean([3 + 340 / (step + 30) for step in range(154, 171)]) * (1 + 1 / 112)
        assert outlook.recent_loss_nats == pytest.approx(middle)
        assert outlook.now.low_nats < outlook.recent_loss_nats < outlook.now.high_nats
        assert outlook.now.loss_nats == pytest.approx(middle, rel=1e-3)
        assert outlook.end.low_nats < 2.0 + 10 / 112 < outlook.end.high_nats
        assert not outlook.is_high

    def test_a_run_that_learns_badly_lies_above(self, make, monkeypatch):
        self.sweep(make, 1.05)
        assert self.outlook(make, monkeypatch).is_high

    def test_with_few_finished_runs_nothing_is_expected(self, make, monkeypatch):
        runs = [make.done(seed) for seed in range(MIN_FINISHED - 1)]
        running = make.run(9)
        make.attempt(running, range(1, 100))
        make.sweep("s", [*runs, running])
        outlook = self.outlook(make, monkeypatch)
        assert (outlook.now, outlook.end) == (None, None)
        assert outlook.recent_loss_nats is not None

    def test_a_resumed_curve_is_put_together(self, make):
        run = make.run()
        first = make.attempt(run, range(10, 101, 10))
        make.end(first)
        make.finish(make.attempt(run, range(60, 341, 10), resumed=(1, 50)))
        # Rows say 10 x attempt + 1 / step: up to step 50 the first attempt's count.
        assert loss_about(str(run.path), 50 / 340, 340) == pytest.approx(10 + 1 / 45, abs=0.01)
        assert loss_about(str(run.path), 100 / 340, 340) == pytest.approx(20, abs=0.1)
        assert loss_about(str(run.path), 1 / 340, 340) is None
