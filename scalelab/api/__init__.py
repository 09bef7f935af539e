"""The verbs, for the command line, the dashboard and notebooks: what they say can never differ.

pandas in and out::

    from scalelab import api

    runs = api.load("runs.csv", mapping={"loss_nats": "val_loss"})
    report = api.fit(runs, form="chinchilla")
    api.predict(report, "N=7e9", "C=1e24")

Nothing heavy is imported before a verb is called.
"""

from scalelab.api.adaptive import adapt, replay_adaptive
from scalelab.api.decisions import decide
from scalelab.api.fits import AUTO_FORM, Selection, compare, fit, load, predict, score
from scalelab.api.sweeps import launch, plan, propose, resume
from scalelab.api.tuning import check_lr, tune, tune_law

__all__ = [
    "AUTO_FORM",
    "Selection",
    "adapt",
    "check_lr",
    "compare",
    "decide",
    "fit",
    "launch",
    "load",
    "plan",
    "predict",
    "propose",
    "replay_adaptive",
    "resume",
    "score",
    "tune",
    "tune_law",
]
