"""The verbs, which the command line, the dashboard and notebooks share, and their types.

`scalelab` has the same names. Tables come in as DataFrames and go out as DataFrames::

    import scalelab as sl

    runs = sl.load("runs.csv", mapping={"loss_nats": "val_loss"})
    report = sl.fit(runs, form="chinchilla")
    sl.predict(report, "N=7e9", "C=1e24")

Nothing heavy is imported before a verb is called or a type is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from scalelab.api.adaptive import AdaptReport, ProgressCallbacks, adapt
from scalelab.api.backtests import BacktestReport, backtest
from scalelab.api.decisions import decide
from scalelab.api.evaluations import evaluate
from scalelab.api.fits import AUTO_FORM, compare, fit, load
from scalelab.api.folders import archive, disk_usage, merge, remove, restore
from scalelab.api.forecasts import predict
from scalelab.api.laws import list_laws, load_law, save_law
from scalelab.api.metrics import fit_metrics, list_metrics
from scalelab.api.mixtures import best_mixture, fit_mixture
from scalelab.api.predictions import ScoresReport, register, scores
from scalelab.api.programs import ProgramCheck, check_program, probe_program
from scalelab.api.replay import ReplayReport, replay_adaptive
from scalelab.api.saved_sweeps import cancel, keep_pruned, replace_diverged
from scalelab.api.sweeps import launch, plan, propose, resume
from scalelab.api.tuning import check_lr, tune, tune_law
from scalelab.api.tuning_reports import Tuning, TuningAnswer
from scalelab.api.weights import export_model
from scalelab.errors import (
    DataError,
    NotIdentifiedError,
    RunsFailedError,
    ScalelabError,
    UsageError,
)

if TYPE_CHECKING:
    from scalelab.api.reports import Comparison, Decision, FitReport, MetricComparison
    from scalelab.api.sweep_reports import LaunchReport, Plan, Proposal
    from scalelab.fit.best_mixing import BestWeights
    from scalelab.fit.bootstrap import BootstrapSpec
    from scalelab.fit.intervals import Interval
    from scalelab.fit.mixing import MixtureFit
    from scalelab.fit.mixing_goal import MixtureLimits
    from scalelab.fit.objective import Objective
    from scalelab.fit.outcome import FitWarning, ParametricFit
    from scalelab.forecast.adaptive import Target
    from scalelab.forecast.allocate import Forecast
    from scalelab.forecast.decision import Candidate, Deployment, Limits
    from scalelab.forecast.fit_report import Holdout
    from scalelab.forecast.law_file import SavedLaw
    from scalelab.launch.base import LaunchView
    from scalelab.launch.cancel import CancelReport
    from scalelab.records.archive import ArchiveReport
    from scalelab.records.evaluation_report import EvaluationReport
    from scalelab.records.exported_model import ExportedModel
    from scalelab.records.merge import MergePlan
    from scalelab.records.removal import RemovalPlan
    from scalelab.records.space import DiskUsage
    from scalelab.records.sweep_dir import SavedPlan
    from scalelab.records.types import Observations
    from scalelab.store.reading import Reading
    from scalelab.store.table_read import TableRead
    from scalelab.sweep.spec import SweepSpec
    from scalelab.tune.lr_check import Verdict
    from scalelab.tune.spec import TuneSpec

_TYPES = {
    "scalelab.api.reports": "Comparison Decision FitReport MetricComparison",
    "scalelab.api.sweep_reports": "LaunchReport Plan Proposal",
    "scalelab.fit.best_mixing": "BestWeights",
    "scalelab.fit.bootstrap": "BootstrapSpec",
    "scalelab.fit.intervals": "Interval",
    "scalelab.fit.mixing": "MixtureFit",
    "scalelab.fit.mixing_goal": "MixtureLimits",
    "scalelab.fit.objective": "Objective",
    "scalelab.fit.outcome": "FitWarning ParametricFit",
    "scalelab.forecast.adaptive": "Target",
    "scalelab.forecast.allocate": "Forecast",
    "scalelab.forecast.decision": "Candidate Deployment Limits",
    "scalelab.forecast.fit_report": "Holdout",
    "scalelab.forecast.law_file": "SavedLaw",
    "scalelab.launch.base": "LaunchView",
    "scalelab.launch.cancel": "CancelReport",
    "scalelab.records.archive": "ArchiveReport",
    "scalelab.records.merge": "MergePlan",
    "scalelab.records.removal": "RemovalPlan",
    "scalelab.records.space": "DiskUsage",
    "scalelab.records.sweep_dir": "SavedPlan",
    "scalelab.records.types": "Observations",
    "scalelab.store.reading": "Reading",
    "scalelab.store.table_read": "TableRead",
    "scalelab.sweep.spec": "SweepSpec",
    "scalelab.records.evaluation_report": "EvaluationReport",
    "scalelab.records.exported_model": "ExportedModel",
    "scalelab.tune.lr_check": "Verdict",
    "scalelab.tune.spec": "TuneSpec",
}
"""Modules of the types, which are imported at their first use."""
_HOMES = {name: module for module, names in _TYPES.items() for name in names.split()}

__all__ = [
    "AUTO_FORM",
    "adapt",
    "archive",
    "backtest",
    "best_mixture",
    "cancel",
    "check_lr",
    "check_program",
    "compare",
    "decide",
    "disk_usage",
    "evaluate",
    "export_model",
    "fit",
    "fit_metrics",
    "fit_mixture",
    "keep_pruned",
    "launch",
    "list_laws",
    "list_metrics",
    "load",
    "load_law",
    "merge",
]
__all__ += [
    "plan",
    "predict",
    "probe_program",
    "propose",
    "register",
    "remove",
    "replace_diverged",
    "replay_adaptive",
]
__all__ += ["restore", "resume", "save_law", "scores", "tune", "tune_law"]
# What they take.
__all__ += ["BootstrapSpec", "Candidate", "Deployment", "Limits", "Objective", "Observations"]
__all__ += ["MixtureLimits", "ProgressCallbacks", "Reading", "SweepSpec", "Target", "TuneSpec"]
# What they return.
__all__ += [
    "AdaptReport",
    "ArchiveReport",
    "BacktestReport",
    "BestWeights",
    "CancelReport",
    "Comparison",
    "Decision",
    "DiskUsage",
    "EvaluationReport",
    "ExportedModel",
    "FitReport",
    "FitWarning",
]
__all__ += [
    "Forecast",
    "Holdout",
    "Interval",
    "LaunchReport",
    "LaunchView",
    "MergePlan",
    "MetricComparison",
    "MixtureFit",
    "ParametricFit",
]
__all__ += [
    "Plan",
    "ProgramCheck",
    "Proposal",
    "RemovalPlan",
    "ReplayReport",
    "SavedLaw",
    "SavedPlan",
    "ScoresReport",
]
__all__ += ["TableRead", "Tuning", "TuningAnswer", "Verdict"]
# What they raise.
__all__ += ["DataError", "NotIdentifiedError", "RunsFailedError", "ScalelabError", "UsageError"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
