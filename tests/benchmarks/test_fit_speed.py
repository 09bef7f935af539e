"""The fitting engine beside SciPy's published grid and the PyPI package `chinchilla`, in one run.

Run with ``pytest -m bench tests/benchmarks/test_fit_speed.py`` on a quiet machine with 2 cores.
"""

import json
import subprocess
import sys
import time
from functools import partial

import duckdb
import numpy as np
import pytest
from scipy.optimize import minimize

from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.parametric import fit_parametric
from scalelab.records.types import Observations

pytestmark = [pytest.mark.bench, pytest.mark.timeout(0)]

N_PUBLISHED_STARTS = 4500
N_TIMED_STARTS = 45
SPEED_UP = 500


@pytest.fixture(scope="session")
def chinchilla_240(tables):
    table = duckdb.sql(
        f"select n_params, n_tokens, flops, loss from '{tables}/chinchilla/data.csv' "
        "where excluded_besiroglu = 0"
    ).fetchnumpy()
    N, D, C, loss = (
        np.asarray(table[name], dtype=float) for name in ("n_params", "n_tokens", "flops", "loss")
    )
    return Observations(n_params=N, n_tokens=D, flops=C, loss_nats=loss)


def best_of(call, times):
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def full_fit(rows):
    return fit_parametric(rows, bootstrap=BootstrapSpec(k=0))


def test_full_fit(chinchilla_240):
    full_fit(chinchilla_240)
    seconds = best_of(lambda: full_fit(chinchilla_240), 5)
    print(f"full fit of 240 rows: {seconds:.3f} s")
    assert seconds <= 0.1


def test_4000_replicates(chinchilla_240):
    def refit():
        fit_parametric(chinchilla_240, bootstrap=BootstrapSpec(k=4000))

    refit()
    seconds = best_of(refit, 3) - best_of(lambda: full_fit(chinchilla_240), 3)
    print(f"4000 replicates: {seconds:.2f} s")
    assert seconds <= 1.5


def test_against_the_published_grid(chinchilla_240):
    """SciPy's L-BFGS-B from the 4,500 starts of Besiroglu et al. 2024; every 100th is timed."""
    x, y = np.log(chinchilla_240.n_params), np.log(chinchilla_240.n_tokens)
    log_loss = np.log(chinchilla_240.loss_nats)

    def objective(theta):
        a, b, e, alpha, beta = theta
        terms = np.stack([a - alpha * x, b - beta * y, np.full_like(x, e)])
        r = log_loss - np.logaddexp.reduce(terms)
        size = np.abs(r)
        return np.sum(np.where(size <= 1e-3, 0.5 * r * r, 1e-3 * (size - 5e-4)))

    grid = np.stack(
        np.meshgrid(
            np.arange(0, 30, 5), np.arange(0, 30, 5), np.arange(-1, 1.5, 0.5),
            np.arange(0, 2.5, 0.5), np.arange(0, 2.5, 0.5),
        ),
        axis=-1,
    ).reshape(-1, 5)  # fmt: skip
    assert len(grid) == N_PUBLISHED_STARTS
    timed = grid[:: N_PUBLISHED_STARTS // N_TIMED_STARTS]
    start = time.perf_counter()
    best = min(minimize(objective, one, method="L-BFGS-B").fun for one in timed)
    theirs = (time.perf_counter() - start) * N_PUBLISHED_STARTS / len(timed)
    ours = best_of(lambda: full_fit(chinchilla_240), 5)
    value = full_fit(chinchilla_240).value
    print(
        f"grid {theirs:.0f} s, ours {ours:.3f} s: {theirs / ours:.0f} times; {best / value - 1:.1e}"
    )
    assert value <= best * (1 + 1e-9)
    assert theirs >= SPEED_UP * ours


@pytest.mark.filterwarnings("ignore")  # what the other program warns of is its own affair
def test_against_the_package_chinchilla(chinchilla_240, tmp_path, monkeypatch):
    """The PyPI package from the 5^5 starts of its documentation, same objective, all cores.

    Of the five values a parameter, the first, third and fifth are timed: 3^5 starts. Needs the
    extra ``bench``, as `make bench` installs it.
    """
    monkeypatch.setenv("MPLBACKEND", "Agg")
    import pandas as pd
    from chinchilla import Chinchilla as Peer
    from chinchilla._metrics import log_huber

    frame = pd.DataFrame(
        {
            "C": chinchilla_240.flops,
            "N": chinchilla_240.n_params,
            "D": chinchilla_240.n_tokens,
            "loss": chinchilla_240.loss_nats,
        }
    )
    peer = Peer(
        str(tmp_path),
        param_grid={
            "E": np.linspace(1, 2, 3),
            "a": np.linspace(1, 10, 3),
            "b": np.linspace(1, 10, 3),
            "alpha": np.linspace(0.1, 0.7, 3),
            "beta": np.linspace(0.1, 0.7, 3),
        },
        loss_fn=partial(log_huber, delta=1e-3),
        log_level=40,
    )
    peer.database.df = frame
    start = time.perf_counter()
    peer.fit()
    theirs = (time.perf_counter() - start) * 5**5 / 3**5
    ours = best_of(lambda: full_fit(chinchilla_240), 5)
    found = full_fit(chinchilla_240)
    predicted = peer.E + peer.A / frame.N**peer.alpha + peer.B / frame.D**peer.beta
    r = np.abs(np.log(predicted.astype(float)) - np.log(frame.loss))
    value = float(np.where(r <= 1e-3, r * r / 2, 1e-3 * (r - 5e-4)).sum())
    print(
        f"chinchilla {theirs:.1f} s, ours {ours:.3f} s: {theirs / ours:.0f} times; "
        f"it ends {value / found.value - 1:.1e} above"
    )
    assert found.value <= value * (1 + 1e-9)
    assert theirs >= SPEED_UP * ours


@pytest.mark.parametrize(("rows", "limit"), [(1000, 2.0), (100_000, 15.0)])
def test_the_whole_command(tmp_path, rows, limit):
    """``scalelab fit`` as a separate process, with its default of 1,000 replicates."""
    rng = np.random.default_rng(1)
    C = np.exp(rng.uniform(np.log(6e18), np.log(3e21), rows))
    N = np.sqrt(C / 120) * np.exp(rng.normal(0, 0.8, rows))
    D = C / (6 * N)
    loss = (1.817 + 482 * N**-0.3478 + 2085.4 * D**-0.3659) * np.exp(
        0.004 * rng.standard_normal(rows)
    )
    table = tmp_path / "runs.csv"
    np.savetxt(
        table, np.stack([N, D, C, loss], axis=1), fmt="%.17g", delimiter=",", comments="",
        header="n_params,n_tokens,flops,loss_nats",
    )  # fmt: skip
    command = [sys.executable, "-m", "scalelab", "fit", "--from", str(table), "--json"]

    def fit():
        said = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        assert (said["status"], said["bootstrap"]["k"]) == ("ok", 1000)

    seconds = best_of(fit, 3)
    print(f"scalelab fit, {rows} rows: {seconds:.2f} s")
    assert seconds <= limit
