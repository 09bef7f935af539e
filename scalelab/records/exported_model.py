"""What `scalelab export-model` wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedModel:
    """A written model.

    Attributes
    ----------
    run_id : str
    folder : Path
    class_name : str
        Class of transformers, such as ``LlamaForCausalLM``.
    dtype : str
        Of the tensors.
    n_bytes : int
        Size of the tensors' file.
    has_tokenizer : bool
    warnings : tuple of str
        What the folder does not have, or where the exported model differs from ours.
    max_logit_difference : float or None
        Largest absolute difference of a logit from ours, of a check with transformers; None
        without one.
    """

    run_id: str
    folder: Path
    class_name: str
    dtype: str
    n_bytes: int
    has_tokenizer: bool
    warnings: tuple[str, ...]
    max_logit_difference: float | None = None
