"""Speed, power, memory and price of named devices, and of electricity, each with its source.

Peaks are dense bf16 (fp16 where a device has no bf16) without sparsity, from the maker's data
sheet. Prices are the on-demand prices of one named cloud on one day. Other clouds ask a third to
three times as much, so every command accepts another price. Without a published price list, the
price is an assumption, as its source states. Nothing is looked up at run time.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from scalelab.errors import UnknownHardwareError, did_you_mean

STATED_UTILISATION = 0.40
UTILISATION_SOURCE = "assumes 40 % of peak, typical of well-tuned dense training"
CPU_CORE_USD_PER_HOUR = 0.04
CPU_PRICE_SOURCE = f"assumes ${CPU_CORE_USD_PER_HOUR:g} per core-hour"
CPU_CORE_WATTS = 12.0
CPU_POWER_SOURCE = (
    "12 W a core, what Green Algorithms takes for a CPU it does not know "
    "(Lannelongue et al. 2021, doi.org/10.1002/advs.202100707, data/latest/TDP_cpu.csv)"
)
WORLD_GRAMS_PER_KWH = 458.0
"""Carbon intensity of electricity, g CO2-equivalent per kWh generated, over its life cycle."""
GRID_SOURCE = "world mean of 2025, Ember, Global Electricity Review 2026"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """One kind of device.

    Attributes
    ----------
    name : str
        Short name, for options.
    peak_flops_per_s : float
        Dense bf16 FLOP/s.
    watts : float
        Board power limit.
    memory_bytes : float
        Device memory.
    usd_per_hour : float
        On-demand price of one device.
    source : str
        Where peak, power and memory come from.
    price_source : str
        Where the price comes from.
    memory_bytes_per_s : float
        Memory bandwidth of the data sheet.
    fp32_flops_per_s : float
        FLOP/s in fp32 outside the matrix units.
    fp8_flops_per_s : float or None
        Dense FLOP/s in fp8; None if the device has none.
    n_multiprocessors : int
        Multiprocessors (compute units of an AMD device).
    shared_memory_bytes : int
        Most shared memory that one block can use.
    matmul_share, memory_share : float
        Sustained share of the peak in large matrix products, and of the bandwidth in streaming
        kernels.
    share_source : str
        Where the two shares come from.
    matches : tuple of str
        Lower-case fragments of the name that a driver reports.
    """

    name: str
    peak_flops_per_s: float
    watts: float
    memory_bytes: float
    usd_per_hour: float
    source: str
    price_source: str
    matches: tuple[str, ...]
    memory_bytes_per_s: float
    fp32_flops_per_s: float
    n_multiprocessors: int
    shared_memory_bytes: int
    matmul_share: float
    memory_share: float
    share_source: str
    fp8_flops_per_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """A constant of the roofline that no data sheet states, with its source."""

    value: float
    source: str


_TABLES = tomllib.loads(Path(__file__).with_name("hardware.toml").read_text(encoding="utf-8"))
CALIBRATION = {name: Constant(**entry) for name, entry in _TABLES.pop("calibration").items()}
"""Constants of `scalelab.theory.roofline` by name."""
HARDWARE = {
    name: Hardware(name=name, **{**entry, "matches": tuple(entry["matches"])})
    for name, entry in _TABLES.items()
}


def find_hardware(name: str) -> Hardware:
    """Return the device of this short name.

    Raises
    ------
    UnknownHardwareError
        If it is not in the table.
    """
    if name.lower() not in HARDWARE:
        raise UnknownHardwareError(
            f"device {name!r}",
            f"one of {', '.join(sorted(HARDWARE))}",
            f"{did_you_mean(name, HARDWARE)}Name the nearest one, such as --gpu a100. scalelab "
            "decide also takes --usd-per-hour.",
        )
    return HARDWARE[name.lower()]


def match_hardware(reported: str) -> Hardware | None:
    """Return the device whose name a driver reports as ``reported``; None if it is not known."""
    lowered = reported.lower()
    for item in HARDWARE.values():
        if any(fragment in lowered for fragment in item.matches):
            return item
    return None


def seconds_on(flops: float, hardware: Hardware, utilisation: float = STATED_UTILISATION) -> float:
    """Return the device-seconds that ``flops`` take at this share of the device's peak."""
    return flops / (hardware.peak_flops_per_s * utilisation)
