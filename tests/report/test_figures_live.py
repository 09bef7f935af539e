"""The figure of a sweep that runs: what is done, running, silent, waiting and lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scalelab.report.figures_live import MAX_BUDGETS, filling
from scalelab.report.look import DARK, LIGHT
from scalelab.store.run_status import Expected, Outlook, RunStatus

END = Expected(loss_nats=3.1, low_nats=2.95, high_nats=3.3)


def run(n: int, state: str, budget: float = 3e18, **more: Any) -> RunStatus:
    return RunStatus(run_id=f"r{n}", state=state, budget_flops=budget, n_params=n, **more)


def traces(figure: Any, panel: str) -> list[Any]:
    return [each for each in figure.data if each.yaxis == panel and np.isfinite(each.y).any()]


def test_every_run_has_the_marker_of_its_state_in_the_row_of_its_budget() -> None:
    outlook = Outlook(recent_loss_nats=3.4, now=None, end=END)
    runs = [
        run(7_000_000, "done", loss_nats=3.5),
        run(13_000_000, "done", loss_nats=3.2),
        run(29_000_000, "running", outlook=outlook, silent_s=5.0),
        run(51_000_000, "running", budget=7e18, silent_s=300.0),
        run(77_000_000, "failed", budget=7e18),
        run(90_000_000, "planned", budget=7e18),
    ]
    figure = filling(runs)
    rows = {each.name: (each.y[0], list(each.x)) for each in traces(figure, "y2")}
    assert rows == {
        "done": (0, [7e6, 13e6]),
        "running": (0, [29e6]),
        "silent": (1, [51e6]),
        "waiting": (1, [90e6]),
        "without a result": (1, [77e6]),
    }
    points = [each for each in traces(figure, "y") if each.mode == "markers"]
    assert [(list(each.x), list(each.y)) for each in points] == [
        ([7e6, 13e6], [3.5, 3.2]),
        ([29e6], [3.1]),
    ]
    bar = points[1].error_y
    assert bar.array[0] == pytest.approx(0.2)
    assert bar.arrayminus[0] == pytest.approx(0.15)
    assert figure.layout.yaxis2.ticktext == ("3e18", "7e18")
    assert "2 done, 1 running, 1 silent, 1 waiting, 1 without a result" in figure.layout.meta["alt"]


@pytest.mark.parametrize("look", [LIGHT, DARK])
def test_before_the_first_loss_the_states_are_there_and_the_losses_say_so(look: Any) -> None:
    figure = filling([run(7_000_000, "running"), run(19_000_000, "planned")], look)
    assert [each.name for each in traces(figure, "y2")] == ["running", "waiting"]
    assert "first loss" in figure.layout.annotations[0].text


def test_runs_of_one_size_are_joined_at_their_mean() -> None:
    runs = [run(5_000_000, "done", loss_nats=loss) for loss in (3.0, 3.4)]
    figure = filling([*runs, run(9_000_000, "done", loss_nats=3.1)])
    line = next(each for each in traces(figure, "y") if each.mode == "lines")
    assert list(line.y) == pytest.approx([3.2, 3.1])


def test_a_sweep_of_many_budgets_has_losses_only_and_one_without_budgets_says_so() -> None:
    budgets = np.geomspace(1e18, 1e21, MAX_BUDGETS + 1)
    many = [run(5_000_000 + i, "done", b, loss_nats=3.0) for i, b in enumerate(budgets)]
    assert traces(filling(many), "y2") == []
    assert "no budgets" in filling([RunStatus(run_id="a", state="done")]).layout.meta["alt"]
