"""Fixtures for every room: tables of real runs, and simulated runs on a known law."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from scalelab.records.types import Observations
from scalelab.store import public_tables
from scalelab.theory.laws import Chinchilla

# The same examples in every run. `make test-long` draws other and many more ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("thorough", max_examples=1_000, deadline=None)
settings.load_profile("repeatable")

TABLES = Path(__file__).parent / "golden" / "tables"
"""Tables that only tests read; the public ones are part of the package."""

SYSTEM_FOLDERS = tuple(Path(__file__).parent / name for name in ("slurm", "browser"))
INTERPRETED_KERNELS = Path(__file__).parent / "kernels"
INTERPRET = "TRITON_INTERPRET"
BEFORE = "TESTS_TRITON_INTERPRET"
if "PYTEST_XDIST_WORKER" not in os.environ:
    # The processes of a parallel run inherit the value that is set below.
    os.environ[BEFORE] = os.environ.get(INTERPRET, "")
INTERPRET_BEFORE = os.environ[BEFORE] or None
# Triton reads it when it is imported, and the collection of any test may import Triton.
os.environ.setdefault(INTERPRET, "1")
INTERPRETING = (INTERPRETED_KERNELS, Path(__file__).parent / "train" / "test_capture.py")
"""Tests that run with TRITON_INTERPRET."""
REQUIRE_SYSTEM = "SCALELAB_REQUIRE_SYSTEM"
"""Set where `make system` succeeded: a missing SLURM or browser is then a failure, not a skip."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a SLURM or a browser, and those that coverage slows 20 times."""
    for item in items:
        if item.path.parent == INTERPRETED_KERNELS:
            item.add_marker(pytest.mark.no_cover)
        if item.path.parent in SYSTEM_FOLDERS:
            item.add_marker(pytest.mark.system)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Interpret kernels only in the tests that want it: elsewhere, workers would qualify them."""
    is_wanted = any(item.path.is_relative_to(place) for place in INTERPRETING)
    value = INTERPRET_BEFORE or ("1" if is_wanted else None)
    if value is None:
        os.environ.pop(INTERPRET, None)
    else:
        os.environ[INTERPRET] = value


@pytest.fixture(autouse=True)
def wide_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print as into a pipe: processes of a parallel test run inherit a width of 80 columns."""
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def give_up() -> Callable[[str], None]:
    """Return the function that skips or fails a test without SLURM or browser (see above)."""

    def end(reason: str) -> None:
        if os.environ.get(REQUIRE_SYSTEM):
            pytest.fail(reason)
        pytest.skip(reason)

    return end


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache folder that all launches share, so that the speed is measured once.

    The processes of a parallel run share it too: their folders lie in one folder of the run.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


NARROW_OUTLIERS = (14, 36, 49)
"""Rows of `narrow_runs` whose loss is too high."""
NARROW_LAW = Chinchilla(E=1.69, A=406.0, alpha=0.34, B=411.0, beta=0.28)


@pytest.fixture(scope="session")
def narrow_runs() -> Callable[..., Observations]:
    """Return a maker of narrow isoFLOP sweeps whose centre drifts away from the optimum.

    Ten sizes over a factor of four at each of five budgets. The centre is the best size at the
    first budget and ``drift`` times it at the last, so small sizes are missing there. The losses
    of three runs are 5 % too high: inside the second and the fourth budget, and at the end of the
    last.
    """

    def make(
        *, noise: float = 0.002, drift: float = 3.0, has_outliers: bool = True, seed: int = 0
    ) -> Observations:
        sizes, budgets = 10, np.geomspace(1e18, 1e20, 5)
        rng = np.random.default_rng(seed)
        best = np.array([NARROW_LAW.optimal(budget)[0] for budget in budgets])
        centres = best * np.geomspace(1.0, drift, len(budgets))
        n_params = (centres[:, None] * np.geomspace(0.5, 2.0, sizes)).ravel()
        flops = np.repeat(budgets, sizes)
        n_tokens = flops / (6 * n_params)
        loss = NARROW_LAW.loss({"n_params": n_params, "n_tokens": n_tokens})
        loss *= np.exp(noise * rng.standard_normal(len(loss)))
        if has_outliers:
            loss[list(NARROW_OUTLIERS)] *= 1.05
        return Observations(
            n_params=n_params,
            n_tokens=n_tokens,
            loss_nats=loss,
            flops=flops,
            budget=flops,
            flop_convention="6nd",
            names=np.array([f"run-{i:02}" for i in range(len(loss))]),
        )

    return make


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder with every table of real runs: the package's and the tests' own."""
    folder = tmp_path_factory.mktemp("tables")
    for source in (*public_tables.FOLDER.iterdir(), *TABLES.iterdir()):
        (folder / source.name).symlink_to(source)
    return folder


@pytest.fixture(scope="session")
def isoflop_runs() -> Callable[..., Observations]:
    """Return a maker of isoFLOP runs on L = E + A N^-alpha + B D^-beta with log-normal noise."""

    def make(
        *,
        A: float = 482.0,
        B: float = 2085.0,
        E: float = 1.82,
        alpha: float = 0.348,
        beta: float = 0.366,
        budgets: tuple[float, ...] = (1e18, 3e18, 1e19, 3e19, 1e20),
        sizes: int = 9,
        half_width: float = 6.0,
        noise: float = 0.003,
        seed: int = 7,
    ) -> Observations:
        rng = np.random.default_rng(seed)
        flops = np.repeat(budgets, sizes)
        G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
        best = G * (flops / 6) ** (beta / (alpha + beta))
        spread = np.tile(np.linspace(-1, 1, sizes), len(budgets))
        n_params = best * np.exp(np.log(half_width) * spread)
        n_tokens = flops / (6 * n_params)
        loss = E + A * n_params**-alpha + B * n_tokens**-beta
        return Observations(
            n_params=n_params,
            n_tokens=n_tokens,
            loss_nats=loss * np.exp(noise * rng.standard_normal(len(loss))),
            flops=flops,
            budget=flops,
            flop_convention="6nd",
        )

    return make
