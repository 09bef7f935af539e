"""Speeds that a cost is computed with: of named devices, of an unmeasured CPU, of a calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scalelab.errors import DataError
from scalelab.sweep.cost import Speed, SpeedPoint
from scalelab.theory.accounting import TRAIN_TO_FORWARD
from scalelab.theory.hardware import (
    CPU_CORE_USD_PER_HOUR,
    CPU_PRICE_SOURCE,
    STATED_UTILISATION,
    Hardware,
    find_hardware,
    seconds_on,
)

UNMEASURED_CORE_FLOPS_PER_S = 20e9
COMPARED_HARDWARE = ("rtx4090", "a100", "h100")


def named_speed(hardware: Hardware, n_workers: int = 1, *, devices_each: int = 1) -> Speed:
    """Return the speed of workers on named devices, at the stated utilisation."""
    return Speed(
        device=hardware.name if devices_each == 1 else f"{devices_each} x {hardware.name}",
        n_workers=n_workers,
        points=(_flat_point(devices_each / seconds_on(1.0, hardware)),),
        usd_per_worker_hour=devices_each * hardware.usd_per_hour,
        watts_per_worker=devices_each * hardware.watts,
        is_measured=False,
        note=f"assumes {100 * STATED_UTILISATION:g} % of peak",
    )


def compared_speeds() -> list[Speed]:
    """Return the speeds of the devices that a plan is compared with."""
    return [named_speed(find_hardware(name)) for name in COMPARED_HARDWARE]


def unmeasured_cpu_speed(n_workers: int) -> Speed:
    """Return a rough speed for a CPU without calibration, marked as not measured."""
    return Speed(
        device="cpu",
        n_workers=n_workers,
        points=(_flat_point(UNMEASURED_CORE_FLOPS_PER_S),),
        usd_per_worker_hour=CPU_CORE_USD_PER_HOUR,
        watts_per_worker=None,
        is_measured=False,
        note=f"assumes {UNMEASURED_CORE_FLOPS_PER_S / 1e9:g} GFLOP/s per worker; measure it in a "
        "few seconds with `scalelab bench device`",
    )


def speed_from_calibration(
    content: Mapping[str, Any], n_workers: int, *, hardware: Hardware | None = None
) -> Speed:
    """Return the speed of a calibration.

    Parameters
    ----------
    content : Mapping
        ``device`` (description), ``points`` and ``exact``: lists of timed steps, each with
        ``d_model``, ``n_layers``, ``seq_len``, ``batch_seqs``, ``flops_per_s``, ``tokens_per_s``,
        ``eval_tokens_per_s`` and, if there are any, ``experts`` and ``batching_gains``.
    n_workers : int
        Runs trained at once.
    hardware : Hardware, optional
        Device, for price and power; default one CPU core.

    Raises
    ------
    DataError
        When the content is not a calibration.
    """
    try:
        points = [_read_point(point) for point in content["points"]]
        exact = tuple(_read_point(point) for point in content["exact"])
        device = str(content["device"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise DataError(
            f"a calibration without {error}",
            "a file of `scalelab bench device`",
            "Run `scalelab bench device` again.",
        ) from None
    if not points or any(point.flops_per_s <= 0 for point in points):
        raise DataError(
            "a calibration without speeds",
            "speeds above zero",
            "Run `scalelab bench device` again.",
        )
    price = CPU_PRICE_SOURCE if hardware is None else hardware.price_source
    return Speed(
        device=device,
        n_workers=n_workers,
        points=tuple(sorted(points, key=lambda point: point.d_model)),
        exact=exact,
        usd_per_worker_hour=CPU_CORE_USD_PER_HOUR if hardware is None else hardware.usd_per_hour,
        watts_per_worker=None if hardware is None else hardware.watts,
        is_measured=True,
        note=f"measured on this machine; price: {price}",
    )


def _flat_point(flops_per_s: float) -> SpeedPoint:
    return SpeedPoint(
        d_model=1,
        n_layers=1,
        seq_len=1,
        batch_seqs=1,
        flops_per_s=flops_per_s,
        eval_flops_per_s=flops_per_s,
    )


def _read_point(point: Mapping[str, Any]) -> SpeedPoint:
    flops_per_token = float(point["flops_per_s"]) / float(point["tokens_per_s"])
    return SpeedPoint(
        d_model=int(point["d_model"]),
        n_layers=int(point["n_layers"]),
        seq_len=int(point["seq_len"]),
        batch_seqs=int(point["batch_seqs"]),
        flops_per_s=float(point["flops_per_s"]),
        eval_flops_per_s=float(point["eval_tokens_per_s"]) * flops_per_token / TRAIN_TO_FORWARD,
        batching_gains=tuple(
            (int(k), float(gain)) for k, gain in point.get("batching_gains", {}).items()
        ),
        experts=tuple(int(number) for number in point.get("experts", ())),
        kind=str(point.get("kind", "")),
    )
