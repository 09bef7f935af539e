"""Write the weights of a run as a folder that transformers loads without a network."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from scalelab.corpus.dataset import Dataset
from scalelab.errors import DataError, ScalelabError, UsageError, did_you_mean
from scalelab.records.exported_model import ExportedModel
from scalelab.train.huggingface.layouts import class_of, config_of, tensors_of
from scalelab.train.huggingface.tokenizer import tokenizer_files
from scalelab.train.weights import Weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHTS_FILE = "model.safetensors"
RUN_FILE = "scalelab.json"
"""The run that made the weights: its spec and which of its weights these are."""


def require_dtype(dtype: str) -> None:
    """Raise UsageError if tensors cannot be written in this dtype."""
    if dtype not in DTYPES:
        near = did_you_mean(dtype, DTYPES)
        raise UsageError(f"--dtype {dtype}", ", ".join(DTYPES), f"{near}Try --dtype float32.")


def export_huggingface(
    weights: Weights, dataset: Dataset | None, folder: Path, *, dtype: str = "float32"
) -> ExportedModel:
    """Write tensors, config and tokenizer of a model; the folder appears complete or not at all.

    Parameters
    ----------
    weights : Weights
        The weights.
    dataset : Dataset or None
        Data of the run, for its tokenizer; None if it is gone.
    folder : Path
        A folder that does not exist.
    dtype : str
        One of `DTYPES`.

    Raises
    ------
    UsageError
        If transformers has no class for the model, or the dtype or the folder is invalid.
    DataError
        If the folder cannot be written.
    """
    require_dtype(dtype)
    if folder.exists():
        raise UsageError(
            f"{folder}, which exists",
            "a folder that does not exist yet",
            f"Name another folder, for example {folder}-2, or remove this one.",
        )
    save_file = _safetensors()
    spec = weights.spec
    warnings = []
    files: dict[str, str] = {}
    end_token = None
    if dataset is None:
        warnings.append(
            f"no tokenizer: data {spec.data_fingerprint} of the run is not in the results folder"
        )
    else:
        end_token = dataset.end_token
        try:
            files, found = tokenizer_files(dataset, spec.seq_len)
            warnings += found
        except ScalelabError as error:
            warnings.append(f"no tokenizer: {error.given}. {error.do}")
    if spec.is_document_masked:
        warnings.append(
            "this run's attention stays inside a document; transformers attends to all earlier "
            "tokens, so the models agree on texts of one document"
        )
    config = config_of(spec, dtype, end_token)
    made_by = {
        "run_id": weights.run_id,
        "step": weights.step,
        "weights": "average" if weights.is_average else "final",
        "spec": asdict(spec),
    }
    files |= {"config.json": json.dumps(config, indent=1), RUN_FILE: json.dumps(made_by, indent=1)}
    tensors = {name: tensor.to(DTYPES[dtype]) for name, tensor in tensors_of(weights).items()}
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        save_file(tensors, partial / WEIGHTS_FILE, metadata={"format": "pt"})
        for name, content in files.items():
            (partial / name).write_text(content + "\n", encoding="utf-8")
        # The library writes a file that only its owner can read.
        shutil.copymode(partial / RUN_FILE, partial / WEIGHTS_FILE)
        n_bytes = (partial / WEIGHTS_FILE).stat().st_size
        partial.rename(folder)
    except OSError as error:
        raise DataError(
            f"{folder}, which cannot be written ({error.strerror or error})",
            "a new folder on a disk with free space, where you may write",
            "Name another folder, for example ~/models/" + folder.name,
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ExportedModel(
        run_id=weights.run_id,
        folder=folder,
        class_name=class_of(spec).name,
        dtype=dtype,
        n_bytes=n_bytes,
        has_tokenizer="tokenizer.json" in files,
        warnings=tuple(warnings),
    )


def _safetensors() -> Callable[..., None]:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise UsageError(
            "an export without the package safetensors",
            "the package safetensors, which writes the tensors",
            "Run pip install 'scalelab[train]'.",
        ) from error
    return save_file
