"""Tasks of lm-evaluation-harness, on a run's weights exported for transformers.

https://github.com/EleutherAI/lm-evaluation-harness, version 0.4: ``lm_eval.simple_evaluate``. The
numbers are computed from its samples, so that they mean the same as for task files.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import math
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scalelab.corpus.dataset import Dataset
from scalelab.corpus.task_tokens import choice_bytes
from scalelab.corpus.tasks import CHOICES, TEXT
from scalelab.errors import DataError, UsageError
from scalelab.records.evaluations import Evaluation
from scalelab.train.huggingface.export import export_huggingface
from scalelab.train.weights import Weights

BATCH_SEQS = 32
"""Sequences in a forward pass of the harness."""
MAIN_METRICS = ("acc", "acc_norm", "exact_match", "f1")
"""Metrics of tasks that generate text, the first found is the accuracy."""


def set_name(task: str) -> str:
    """Return the name under which a task of the harness is stored."""
    return re.sub(r"[^a-z0-9_]", "_", task.lower())


def harness_fingerprint(task: str) -> str:
    """Return what a stored evaluation of this task must have to be the same.

    Raises
    ------
    UsageError
        If the harness is not installed.
    """
    require_harness()
    return f"lm_eval {importlib.metadata.version('lm_eval')} {task}"


def require_harness() -> Any:
    """Return the package lm_eval.

    Raises
    ------
    UsageError
        If it is not installed.
    """
    try:
        return importlib.import_module("lm_eval")
    except ImportError as error:
        raise UsageError(
            f"--tasks lm-eval:.. without lm-evaluation-harness ({error})",
            "an installation with the package lm_eval and transformers, or task files",
            "Run pip install 'lm_eval[hf]', or write the items to a JSONL file.",
        ) from error


def run_harness(
    weights: Weights,
    dataset: Dataset,
    tasks: Sequence[str],
    device: str,
    include: Path | None = None,
) -> list[Evaluation]:
    """Return the evaluations of tasks; a group of tasks has one for each of its tasks.

    Parameters
    ----------
    weights : Weights
    dataset : Dataset
        Of the run, for the tokenizer.
    tasks : sequence of str
        Names as the harness has them.
    device : str
        ``cpu`` or ``cuda``.
    include : Path or None
        Folder of further task definitions.

    Raises
    ------
    UsageError
        If the harness is not installed, or transformers has no class for the model.
    DataError
        If the model has no tokenizer for transformers, or the harness fails.
    """
    harness = require_harness()
    with tempfile.TemporaryDirectory() as folder:
        model = export_huggingface(weights, dataset, Path(folder) / "model")
        if not model.has_tokenizer:
            raise DataError(
                f"run {weights.run_id} for lm-evaluation-harness: {model.warnings[0]}",
                "a run whose tokenizer transformers can load",
                "Write the items to a JSONL file; those need no export.",
            )
        try:
            # The harness prints; standard output is for the answer.
            with contextlib.redirect_stdout(sys.stderr):
                found = harness.simple_evaluate(
                    model="hf",
                    model_args={"pretrained": str(model.folder), "dtype": "float32"},
                    tasks=list(tasks),
                    device=device,
                    batch_size=BATCH_SEQS,
                    task_manager=importlib.import_module("lm_eval.tasks").TaskManager(
                        include_path=None if include is None else str(include)
                    ),
                    log_samples=True,
                    bootstrap_iters=0,
                )
        except Exception as error:  # its tasks run code of many authors
            first = str(error).strip().split("\n", 1)[0]
            raise DataError(
                f"lm-evaluation-harness on {', '.join(tasks)}: {type(error).__name__}: {first}",
                "tasks that the harness knows, with their data on this machine or a network",
                "List its tasks with `lm-eval ls tasks`. Your own definitions need --include-path.",
            ) from error
    return [evaluation_of(name, found, weights.spec.n_steps) for name in sorted(found["samples"])]


def evaluation_of(task: str, found: Mapping[str, Any], step: int) -> Evaluation:
    """Return the evaluation of one task from what ``simple_evaluate`` returned."""
    samples, results = found["samples"][task], found["results"][task]
    output = found["configs"][task].get("output_type")
    common: dict[str, Any] = {
        "step": step,
        "set": set_name(task),
        "fingerprint": harness_fingerprint(task),
        "n_items": len(samples),
    }
    if output == "multiple_choice":
        return Evaluation(kind=CHOICES, **common, **_choices(samples))
    metrics = {name.partition(",")[0]: name for name in results if name.endswith(",none")}
    if output == "loglikelihood_rolling":
        bits = results.get(metrics.get("bits_per_byte", ""))
        return Evaluation(kind=TEXT, **common, bits_per_byte=_number(bits))
    metrics |= {n.partition(",")[0]: n for n in results if "," in n and "_stderr" not in n}
    main = next((name for name in MAIN_METRICS if name in metrics), None)
    accuracy = None if main is None else results[metrics[main]]
    error = None if main is None else results.get(metrics[main].replace(",", "_stderr,"))
    return Evaluation(kind=CHOICES, **common, accuracy=_number(accuracy), stderr=_number(error))


def _choices(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the numbers of items with choices, as `scalelab.train.task_scores.summarize` does."""
    is_right, bits, n_bytes = [], [], 0
    for sample in samples:
        sizes = [choice_bytes(str(choice)) for _, choice in sample["arguments"]]
        nats = [-float(response[0]) for response in sample["filtered_resps"]]
        right = sample["target"]
        answers = right if isinstance(right, list) else [right]
        best = int(np.argmin([own / size for own, size in zip(nats, sizes, strict=True)]))
        is_right.append(best in answers)
        bits.append(nats[answers[0]] / sizes[answers[0]] / math.log(2))
        n_bytes += sizes[answers[0]]
    n = len(is_right)
    return {
        "bits_per_byte": float(np.mean(bits)),
        "accuracy": float(np.mean(is_right)),
        "stderr": float(np.std(is_right, ddof=1) / math.sqrt(n)) if n > 1 else None,
        "n_bytes": n_bytes,
    }


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
