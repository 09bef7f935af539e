"""Input and output types that all launchers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from scalelab.records.sweep_dir import Results
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchRequest:
    """Runs to train until each has an accepted record.

    Attributes
    ----------
    results : Results
        The results folder.
    sweep : str
        Name of the sweep, for its launcher lock.
    run_ids : tuple of str
        In the order in which to start them.
    execution : ExecutionSpec
        How to execute each run.
    n_workers : int
        Runs at once.
    retry_failed : bool
        Whether to start runs again that failed before.
    batched_runs : Mapping[str, int]
        Largest number of runs in one step, by run_id; default 1.
    qualify : tuple of RunSpec
        Runs at whose shapes a worker qualifies its GPU; empty uses the shape of the run.
    stop_hopeless : bool
        Whether to stop runs whose predicted final loss the finished runs rule out.
    """

    results: Results
    sweep: str
    run_ids: tuple[str, ...]
    execution: ExecutionSpec
    n_workers: int
    retry_failed: bool = False
    batched_runs: Mapping[str, int] = field(default_factory=dict)
    qualify: tuple[RunSpec, ...] = ()
    stop_hopeless: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchView:
    """The state of a launch at one time, as passed to a `Watcher`.

    Attributes
    ----------
    statuses : Mapping[str, str]
        Status of every run of the request.
    running : tuple of str
        run_ids in training, oldest first.
    started_s : float
        Unix time at which the launch began.
    note : str
        The latest event in words; may be empty.
    """

    statuses: Mapping[str, str]
    running: tuple[str, ...]
    started_s: float
    note: str = ""


Watcher = Callable[[LaunchView], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchReport:
    """How a launch ended.

    Attributes
    ----------
    statuses : Mapping[str, str]
        Final status of every run of the request.
    n_started : int
        Attempts that this launch started.
    wall_s : float
        Duration of the launch, seconds.
    is_interrupted : bool
        Whether Ctrl-C stopped the launch.
    forecast : str
        What became of the forecast of the largest runs, in words; empty if none was due.
    """

    statuses: Mapping[str, str]
    n_started: int
    wall_s: float
    is_interrupted: bool = False
    forecast: str = ""

    def count(self, status: str) -> int:
        """Return how many runs ended in a status."""
        return sum(found == status for found in self.statuses.values())
