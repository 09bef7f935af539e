"""Inputs of the Decide view: as typed, as command options, and as API arguments."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scalelab.api import decisions as api_decide
from scalelab.forecast.decision import Deployment, Limits
from scalelab.theory.hardware import HARDWARE, STATED_UTILISATION, WORLD_GRAMS_PER_KWH
from scalelab.units import parse_quantity

if TYPE_CHECKING:
    from scalelab.forecast.decision import Decision
    from scalelab.forecast.fit_report import FitReport

CHINCHILLA_FLOPS = "5.76e23"
"""The budget of Chinchilla and Gopher, arXiv:2203.15556."""
USUAL_DAYS = 30.0
SECONDS_PER_DAY = 86400.0
# Name of the limit, label, option, factor of its unit, example.
LIMITS = (
    ("flops", "Training compute, FLOP", "--flops", 1.0, CHINCHILLA_FLOPS),
    ("gpu_hours", "GPU-hours of training", "--gpu-hours", 1.0, "400K"),
    ("days", "Days of training", "--max-days", 1.0, "30"),
    ("usd", "Money, US dollars", "--max-usd", 1.0, "2M"),
    ("kwh", "Energy, kWh", "--max-kwh", 1.0, "500K"),
    ("kg_co2", "CO2, kg", "--max-co2-kg", 1.0, "100K"),
    ("unique_tokens", "Unique tokens", "--unique-tokens", 1.0, "1T"),
    ("serving_bytes", "Serving memory, GB", "--serving-gb", 1e9, "80"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The inputs as text, in the form of the command line.

    Attributes
    ----------
    limits : tuple of (str, str)
        Name and value of each given limit.
    gpu : str
    count, share : float
        Number of devices, and the share of their peak FLOP/s.
    served, price, grid : str
        Tokens served, US dollars per device-hour, g CO2 per kWh; empty: the default.
    named : tuple of str
        Candidates, for example ``7B:2T``.
    """

    limits: tuple[tuple[str, str], ...]
    gpu: str
    count: float
    share: float
    served: str
    price: str
    grid: str
    named: tuple[str, ...]

    @property
    def hardware(self) -> str:
        """Return the devices, such as ``8 x h100``, or ``one h100``."""
        return f"{'one' if self.count == 1 else f'{self.count:g} x'} {self.gpu}"

    def options(self) -> list[str]:
        """Return the options of the command that gives the same answer."""
        given = dict(self.limits)
        pairs = [(option, given[name]) for name, _, option, *_ in LIMITS if name in given]
        pairs += [("--candidate", text) for text in self.named]
        if self.served:
            pairs.append(("--inference-tokens", self.served))
        pairs += [("--gpu", self.gpu), ("--gpus", f"{self.count:g}")]
        if self.share != STATED_UTILISATION:
            pairs.append(("--utilisation", f"{self.share:g}"))
        if self.price:
            pairs.append(("--usd-per-hour", f"{self.usd_per_hour:g}"))
        if self.grid:
            pairs.append(("--grid", f"{self.grams_per_kwh:g}"))
        return [word for pair in pairs for word in pair]

    @property
    def usd_per_hour(self) -> float:
        """Price of a device-hour: the input, or else the hardware table."""
        if not self.price:
            return HARDWARE[self.gpu].usd_per_hour
        return _rate(self.price.lstrip("$"), "price of a device-hour")

    @property
    def grams_per_kwh(self) -> float:
        """Carbon intensity: the input, or else the world mean."""
        if not self.grid:
            return WORLD_GRAMS_PER_KWH
        return _rate(self.grid, "g CO2 per kWh")

    def decide(self, source: FitReport | str) -> Decision:
        """Return the answer of ``scalelab decide``.

        Raises
        ------
        ScalelabError
            If an input is not a quantity, or no model is within the limits.
        """
        limits = {name: check_limit(name, text) for name, text in self.limits}
        deployment = Deployment(
            gpu=self.gpu,
            n_devices=self.count,
            utilisation=self.share,
            usd_per_hour=self.usd_per_hour,
            grams_per_kwh=self.grams_per_kwh,
            inference_tokens=parse_quantity(self.served, what="served tokens")
            if self.served
            else 0.0,
        )
        return api_decide.decide(source, Limits(**limits), deployment, candidates=self.named)


def usual_count(flops: float, gpu: str, share: float) -> int:
    """Return the devices, a power of two, with which training takes at most `USUAL_DAYS`."""
    per_day = SECONDS_PER_DAY * HARDWARE[gpu].peak_flops_per_s * share
    return int(2 ** max(0, math.ceil(math.log2(flops / per_day / USUAL_DAYS))))


def check_limit(name: str, text: str) -> float:
    """Return a limit in its unit.

    Raises
    ------
    UsageError
        If the text is not a quantity above zero.
    """
    scale = {each: factor for each, _, _, factor, _ in LIMITS}
    value = parse_quantity(text.lstrip("$"), what=name.replace("_", " ")) * scale[name]
    Limits(**{name: value})
    return value


def check_rate(text: str) -> float:
    """Return a price or an intensity; raise UsageError if the text is none."""
    return _rate(text.lstrip("$"), "price or intensity")


def _rate(text: str, what: str) -> float:
    """Return a price or an intensity, which may be zero."""
    return 0.0 if re.fullmatch(r"0+(\.0*)?", text) else parse_quantity(text, what=what)
