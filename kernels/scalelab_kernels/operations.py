"""Select Triton or reference operations by name; the run's record keeps the name.

`get_operations` returns the operations of a training step. `get_attention` returns the attention,
which is a separate choice because torch has several fast ones. Both raise if the selection cannot
run on the device; they never fall back to another one.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from scalelab_kernels import flash, is_interpreting, reference, reference_gram, reference_moe
from scalelab_kernels.errors import KernelUnavailableError

Implementation = Literal["reference", "triton"]
AttentionPath = Literal["explicit", "sdpa", "flash", "triton", "cudnn"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("reference", "triton")
ATTENTION_PATHS: tuple[AttentionPath, ...] = ("explicit", "sdpa", "flash", "triton", "cudnn")
REPEATABLE_PATHS = ATTENTION_PATHS[:-1]
"""Paths with bitwise equal results each time. torch does not ask cuDNN for deterministic gradients
(aten/src/ATen/native/cudnn/MHA.cpp)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operations:
    """The operations of a training step; each field has the signature of its reference.

    Attributes
    ----------
    implementation : {"reference", "triton"}
        Name of the implementation, stored with the attempt.
    rms_norm, add_rms_norm, swiglu, qk_norm_rope : callable
        As in `scalelab_kernels.reference`.
    linear_cross_entropy, linear_cross_entropy_sum, adamw_step_ : callable
        As in `scalelab_kernels.reference`; only the reference head has a ``softcap``.
    permute, grouped_linear, unpermute : callable
        As in `scalelab_kernels.reference_moe`.
    gram, gram_polynomial : callable
        As in `scalelab_kernels.reference_gram`.
    """

    implementation: Implementation
    rms_norm: Callable[..., Tensor]
    add_rms_norm: Callable[..., tuple[Tensor, Tensor]]
    swiglu: Callable[..., Tensor]
    qk_norm_rope: Callable[..., tuple[Tensor, Tensor, Tensor]]
    linear_cross_entropy: Callable[..., Tensor]
    linear_cross_entropy_sum: Callable[..., Tensor]
    adamw_step_: Callable[..., Tensor]
    permute: Callable[..., Tensor]
    grouped_linear: Callable[..., Tensor]
    unpermute: Callable[..., Tensor]
    gram: Callable[..., Tensor]
    gram_polynomial: Callable[..., Tensor]


# Module of each Triton operation.
_FILES = {
    "rms_norm": "rms_norm",
    "add_rms_norm": "rms_norm",
    "swiglu": "swiglu",
    "qk_norm_rope": "qk_norm_rope",
    "linear_cross_entropy": "linear_cross_entropy",
    "linear_cross_entropy_sum": "linear_cross_entropy",
    "adamw_step_": "adamw",
    "permute": "moe",
    "grouped_linear": "moe",
    "unpermute": "moe",
    "gram": "gram",
    "gram_polynomial": "gram",
}
_REFERENCES = {"moe": reference_moe, "gram": reference_gram}
"""Reference modules of those modules that are not in `scalelab_kernels.reference`."""


def _check_triton(device: torch.device) -> None:
    """Raise if Triton is not installed or cannot run on the device."""
    if importlib.util.find_spec("triton") is None:
        raise KernelUnavailableError(
            "the implementation 'triton' without the package triton",
            "Triton 3.6 or newer, which exists for Linux",
            "Install scalelab[train] on Linux, or use kernels = reference.",
        )
    if device.type != "cuda" and not is_interpreting():
        raise KernelUnavailableError(
            f"the implementation 'triton' on the device {device}",
            "a CUDA device, or TRITON_INTERPRET=1 in the environment before Triton is imported",
            "Use kernels = reference on this device.",
        )


def _check_name(name: str, allowed: tuple[str, ...], what: str) -> None:
    if name not in allowed:
        raise KernelUnavailableError(
            f"the {what} {name!r}", " or ".join(map(repr, allowed)), f"Use {allowed[0]!r}."
        )


def get_operations(implementation: Implementation, device: torch.device | str) -> Operations:
    """Return the operations of one implementation for tensors on this device.

    Parameters
    ----------
    implementation : {"reference", "triton"}
        Plain torch, or the fused kernels.
    device : torch.device or str
        Device of the tensors.

    Raises
    ------
    KernelUnavailableError
        An unknown name, or kernels that cannot run on the device.
    """
    _check_name(implementation, IMPLEMENTATIONS, "implementation")
    if implementation == "triton":
        _check_triton(torch.device(device))
        found = {
            name: getattr(importlib.import_module(f"scalelab_kernels.{file}"), name)
            for name, file in _FILES.items()
        }
    else:
        found = {
            name: getattr(_REFERENCES.get(file, reference), name) for name, file in _FILES.items()
        }
    return Operations(implementation=implementation, **found)


def _sdpa_only(backend: Any, q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Tensor:
    with torch.nn.attention.sdpa_kernel(backend):
        return reference.causal_attention(q, k, v, path="sdpa", **settings)


def get_attention(path: AttentionPath, device: torch.device | str) -> Callable[..., Tensor]:
    """Return causal attention by one path: ``(q, k, v, *, scale, starts) -> out``.

    Parameters
    ----------
    path : {"explicit", "sdpa", "flash", "triton", "cudnn"}
        Two matmuls around a softmax; torch's SDPA, on a GPU with its math backend; torch's
        FlashAttention with deterministic gradients (`scalelab_kernels.flash`); the kernel of this
        package; or SDPA with its cuDNN backend, the only path that is not bitwise repeatable.
    device : torch.device or str
        Device of the tensors.

    Raises
    ------
    KernelUnavailableError
        An unknown name, or a path that cannot run on the device.
    """
    _check_name(path, ATTENTION_PATHS, "attention path")
    device = torch.device(device)
    if path == "triton":
        _check_triton(device)
        found: Callable[..., Tensor] = importlib.import_module(
            "scalelab_kernels.attention"
        ).causal_attention
        return found
    if path in ("cudnn", "flash") and device.type != "cuda":
        raise KernelUnavailableError(
            f"the attention path {path!r} on the device {device}",
            "a CUDA device",
            "Use attention = explicit or sdpa on this device.",
        )
    if path == "flash":
        return flash.causal_attention
    # With several backends allowed, torch may choose cuDNN, which is not repeatable.
    backends = torch.nn.attention.SDPBackend
    if path == "cudnn":
        return functools.partial(_sdpa_only, backends.CUDNN_ATTENTION)
    if path == "sdpa" and device.type == "cuda":
        return functools.partial(_sdpa_only, backends.MATH)
    return functools.partial(reference.causal_attention, path=path)
