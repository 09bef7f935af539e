"""Checks that a run's precision can be executed, made when it is planned and when it starts."""

from __future__ import annotations

from collections.abc import Iterable

from scalelab.errors import UsageError
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.hardware import match_hardware
from scalelab.theory.precision import FP8_GPUS, FP8_MULTIPLE, FP8_SIDE_MIN, fp8_weights


def require_precision(spec: RunSpec, device: str, gpus: Iterable[str] = ()) -> None:
    """Raise if a run cannot be computed in its precision: only fp8 has conditions.

    Parameters
    ----------
    spec : RunSpec
    device : str
        ``cpu`` or ``cuda``.
    gpus : iterable of str
        GPU names as the driver reports them. Unknown names are accepted; the worker asks the
        device itself.

    Raises
    ------
    UsageError
    """
    if spec.precision != "fp8":
        return
    able = ", ".join(FP8_GPUS)
    if device != "cuda":
        raise UsageError(
            f"precision = fp8 on {device}",
            f"fp32 or bf16 on {device}; fp8 on a GPU of compute capability 8.9 or higher ({able})",
            "Use --precision bf16, or --device cuda on such a machine.",
        )
    for name in gpus:
        hardware = match_hardware(name)
        if hardware is not None and hardware.name not in FP8_GPUS:
            raise UsageError(
                f"precision = fp8 on {name!r}",
                f"fp32 or bf16 there; fp8 on {able}",
                "Use --precision bf16, or another GPU.",
            )
    if not fp8_weights(spec.shape):
        raise UsageError(
            f"precision = fp8 with the shape {spec.shape.label()}, which has no product in fp8",
            f"a shape with a weight whose sides are multiples of {FP8_MULTIPLE} from "
            f"{FP8_SIDE_MIN}",
            f"Use --precision bf16, or shapes with d_model from {FP8_SIDE_MIN}.",
        )
