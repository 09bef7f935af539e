"""Compare an exported model in transformers with ours."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scalelab.corpus.dataset import Dataset
from scalelab.errors import DataError, UsageError
from scalelab.train.weights import Weights, WeightsModel

CHECKED_SEQUENCES = 4
TOLERANCE = 1e-4
"""Largest difference of a logit that rounding in fp32 explains."""


def max_logit_difference(folder: Path, weights: Weights, dataset: Dataset | None) -> float:
    """Return the largest absolute difference between the logits of an exported model and ours.

    Both compute in fp32 on the CPU, on `CHECKED_SEQUENCES` held-out sequences of the run, or on
    random tokens if its data is gone.

    Raises
    ------
    UsageError
        If transformers is not installed.
    DataError
        If transformers does not load the folder.
    """
    tokens = _tokens(weights, dataset)
    model = load(folder)
    with torch.no_grad():
        theirs = model(input_ids=tokens).logits.float()
    ours = WeightsModel(weights, "cpu", precision="fp32").logits(tokens)
    return float((ours - theirs).abs().max())


def load(folder: Path) -> Any:
    """Return the model of a folder in fp32, as transformers loads it without a network.

    Raises
    ------
    UsageError
        If transformers is not installed.
    DataError
        If it does not load the folder.
    """
    with _offline():
        try:
            transformers: Any = importlib.import_module("transformers")
        except ImportError as error:
            raise UsageError(
                "--check without the package transformers",
                "transformers 5 or newer; the export itself does not need it",
                "Run pip install 'transformers>=5', or remove --check.",
            ) from error
        transformers.utils.logging.disable_progress_bar()
        try:
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise DataError(
                f"{folder}, which transformers {transformers.__version__} does not load: {error}",
                "a model whose class this version of transformers has",
                "Upgrade transformers, for example: pip install -U transformers",
            ) from error
    problems = {name: sorted(map(str, found)) for name, found in info.items() if found}
    if problems:
        raise DataError(
            f"{folder}, in which transformers found {problems}",
            "tensors with the names of the class",
            "Report this as a bug, with config.json.",
        )
    return model.eval()


def _tokens(weights: Weights, dataset: Dataset | None) -> Tensor:
    spec = weights.spec
    vocab_size = spec.shape.vocab_size
    if dataset is None:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(vocab_size, (CHECKED_SEQUENCES, spec.seq_len), generator=generator)
    else:
        tokens = torch.from_numpy(dataset.eval_sequences(spec.seq_len)[:CHECKED_SEQUENCES, :-1])
    if not spec.is_document_masked:
        return tokens
    # Both models see the same earlier tokens in a sequence of one document.
    return torch.where(tokens == spec.end_token, (spec.end_token + 1) % vocab_size, tokens)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keep the libraries of Hugging Face from the network while they are imported and load."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
