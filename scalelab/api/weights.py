"""The verbs about the kept weights of runs: `export_model`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.api.data import DEFAULT_RESULTS
from scalelab.api.folders import existing
from scalelab.errors import DataError, UsageError, did_you_mean

if TYPE_CHECKING:
    from scalelab.records.exported_model import ExportedModel

FORMATS = ("hf",)


def export_model(
    run: str,
    folder: str | Path | None = None,
    *,
    results: str | Path = DEFAULT_RESULTS,
    format: str = "hf",
    dtype: str = "float32",
    average: bool = False,
    check: bool = False,
) -> ExportedModel:
    """Write the kept weights of a run as a folder that transformers loads.

    Parameters
    ----------
    run : str
        A run ID, or its first characters.
    folder : str or Path, optional
        A new folder; default ``RUN-hf`` in the current folder.
    format : {"hf"}
        Format of the folder.
    dtype : {"float32", "bfloat16", "float16"}
        Of the tensors.
    average : bool
        Whether to write the moving average of the weights (``ema_decay``).
    check : bool
        Whether to load the folder with transformers and compare its logits with ours.

    Raises
    ------
    UsageError
        If an option is not valid, the run is unknown, transformers has no class for the model, or
        the folder exists.
    DataError
        If the run is not done or its weights were not kept, the folder cannot be written, or the
        check finds other logits.
    """
    from scalelab.launch.evaluation import first_dataset
    from scalelab.records.run_names import find_run

    if format not in FORMATS:
        raise UsageError(
            f"--format {format}", "hf", f"{did_you_mean(format, FORMATS)}Try --format hf."
        )
    place = find_run(existing(results), run)
    require_torch()
    from scalelab.train.huggingface.export import export_huggingface
    from scalelab.train.weights import load_weights

    weights = load_weights(place, average=average)
    dataset = first_dataset(Path(results), weights.spec.data_fingerprint)
    out = Path(folder) if folder is not None else Path(f"{place.run_id}-hf")
    model = export_huggingface(weights, dataset, out, dtype=dtype)
    if not check:
        return model
    from scalelab.train.huggingface.check import TOLERANCE, max_logit_difference

    difference = max_logit_difference(out, weights, dataset)
    if dtype == "float32" and not difference <= TOLERANCE:
        raise DataError(
            f"{out}, whose logits differ from ours by up to {difference:.2g}",
            f"differences up to {TOLERANCE:g}, which rounding explains",
            "Do not use this folder. Report this as a bug, with its config.json.",
        )
    return replace(model, max_logit_difference=difference)


def require_torch() -> None:
    """Raise UsageError if torch is not installed."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise UsageError(
            "weights without torch",
            "an installation with torch, which reads them",
            "Run pip install 'scalelab[train]'.",
        )
