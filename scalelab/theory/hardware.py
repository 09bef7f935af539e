"""Peak speed, power, memory and price of named devices, and of electricity, each with its source.

Peaks are dense bf16 (fp16 where a device has no bf16) without sparsity, from the maker's data
sheet. Prices are what one named cloud asked on demand on one day: others ask a third or three times
as much, so every command lets the user replace them. Where no price list was found, the price is an
assumption and its source says so. Nothing is looked up at run time.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalelab.errors import UnknownHardwareError

STATED_UTILISATION = 0.40
UTILISATION_SOURCE = "40 % of peak, what well-kept dense training reaches (stated, not measured)"
CPU_CORE_USD_PER_HOUR = 0.04
CPU_PRICE_SOURCE = "an assumption, near what clouds ask for a CPU core: give your own price"
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
        Short name that options take.
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


_LAMBDA = "Lambda on demand, 8 GPUs, lambda.ai/instances, read 2026-09-20"
_RUNPOD = "RunPod on demand, runpod.io/pricing, read 2026-10-07"
_EC2_T4 = "Amazon EC2 g4dn.xlarge on demand, us-east-1, vantage.sh, read 2026-08-26"
_ASSUMED = "an assumption, from no price list: give your own price"

HARDWARE = {
    item.name: item
    for item in (
        Hardware(
            name="h100",
            peak_flops_per_s=989e12,
            watts=700,
            memory_bytes=80e9,
            usd_per_hour=3.99,
            source="NVIDIA H100 SXM data sheet",
            price_source=_LAMBDA,
            matches=("h100",),
        ),
        Hardware(
            name="h200",
            peak_flops_per_s=989e12,
            watts=700,
            memory_bytes=141e9,
            usd_per_hour=4.59,
            source="NVIDIA H200 SXM data sheet",
            price_source=_RUNPOD,
            matches=("h200",),
        ),
        Hardware(
            name="b200",
            peak_flops_per_s=2250e12,
            watts=1000,
            memory_bytes=180e9,
            usd_per_hour=6.69,
            source="NVIDIA DGX B200 data sheet",
            price_source=_LAMBDA,
            matches=("b200",),
        ),
        Hardware(
            name="a100",
            peak_flops_per_s=312e12,
            watts=400,
            memory_bytes=80e9,
            usd_per_hour=2.79,
            source="NVIDIA A100 SXM 80 GB data sheet",
            price_source=_LAMBDA,
            matches=("a100",),
        ),
        Hardware(
            name="l4",
            peak_flops_per_s=121e12,
            watts=72,
            memory_bytes=24e9,
            usd_per_hour=0.7,
            source="NVIDIA L4 data sheet (242 TFLOP/s with sparsity)",
            price_source=_ASSUMED,
            matches=("nvidia l4",),
        ),
        Hardware(
            name="rtx4090",
            peak_flops_per_s=165e12,
            watts=450,
            memory_bytes=24e9,
            usd_per_hour=0.5,
            source="NVIDIA Ada GPU architecture white paper, bf16 with fp32 accumulation",
            price_source=_ASSUMED,
            matches=("rtx 4090",),
        ),
        Hardware(
            name="v100",
            peak_flops_per_s=125e12,
            watts=300,
            memory_bytes=32e9,
            usd_per_hour=0.79,
            source="NVIDIA V100 SXM2 data sheet, fp16",
            price_source=f"{_LAMBDA} (16 GB)",
            matches=("v100",),
        ),
        Hardware(
            name="t4",
            peak_flops_per_s=65e12,
            watts=70,
            memory_bytes=16e9,
            usd_per_hour=0.526,
            source="NVIDIA T4 data sheet, fp16",
            price_source=_EC2_T4,
            matches=("tesla t4", "nvidia t4"),
        ),
        Hardware(
            name="mi300x",
            peak_flops_per_s=1307e12,
            watts=750,
            memory_bytes=192e9,
            usd_per_hour=3.0,
            source="AMD Instinct MI300X data sheet",
            price_source=_ASSUMED,
            matches=("mi300x",),
        ),
    )
}


def find_hardware(name: str) -> Hardware:
    """Return the device of this short name.

    Raises
    ------
    UnknownHardwareError
        When it is not in the table.
    """
    if name.lower() not in HARDWARE:
        raise UnknownHardwareError(
            f"device {name!r}",
            f"one of {', '.join(sorted(HARDWARE))}",
            "Name one of them, or add yours to scalelab/theory/hardware.py with its source.",
        )
    return HARDWARE[name.lower()]


def match_hardware(reported: str) -> Hardware | None:
    """Return the device whose name a driver reports as ``reported``; None when it is not known."""
    lowered = reported.lower()
    for item in HARDWARE.values():
        if any(fragment in lowered for fragment in item.matches):
            return item
    return None


def seconds_on(flops: float, hardware: Hardware, utilisation: float = STATED_UTILISATION) -> float:
    """Return the device-seconds that ``flops`` take at this share of the device's peak."""
    return flops / (hardware.peak_flops_per_s * utilisation)
