"""Axis names and themes of the Plotly figures, with colour-blind-safe colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

PARAMS, TOKENS, FLOPS = "parameters N", "training tokens D", "training compute C, FLOP"
_VIRIDIS = (
    (0.0, (68, 1, 84)),
    (0.125, (71, 44, 122)),
    (0.25, (59, 81, 139)),
    (0.375, (44, 113, 142)),
    (0.5, (33, 144, 141)),
    (0.625, (39, 173, 129)),
    (0.75, (92, 200, 99)),
    (0.875, (170, 220, 50)),
    (1.0, (253, 231, 37)),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """The colours of a theme.

    Attributes
    ----------
    name : {"light", "dark"}
    ink, faint, grid, paper : str
        Text and main lines, secondary lines, grid lines, background.
    accent, second, third : str
        Vermilion, blue and green of Okabe and Ito 2008, for the answer, what it is compared with,
        and observations.
    ramp : tuple of float
        Range of viridis that is legible on this background.
    """

    name: Literal["light", "dark"]
    ink: str
    faint: str
    grid: str
    paper: str
    accent: str
    second: str
    third: str
    ramp: tuple[float, float]

    def shades(self, count: int) -> list[str]:
        """Return ``count`` colours in order of brightness."""
        at = np.linspace(*self.ramp, max(count, 2))[:count]
        return [_between(_VIRIDIS, float(x)) for x in at]

    def scale(self) -> list[list[Any]]:
        """Return the same ramp as a Plotly colour scale."""
        at = np.linspace(*self.ramp, 9)
        return [[i / 8, _between(_VIRIDIS, float(x))] for i, x in enumerate(at)]

    def with_alpha(self, colour: str, alpha: float) -> str:
        """Return a hex colour with transparency, for bands."""
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},{alpha})"


LIGHT = Look(
    name="light",
    ink="#1f2430",
    faint="#6b7280",
    grid="#e6e8ec",
    paper="#ffffff",
    accent="#c4460a",
    second="#0060a0",
    third="#007a5a",
    ramp=(0.02, 0.78),
)
DARK = Look(
    name="dark",
    ink="#e8eaf0",
    faint="#9aa3b2",
    grid="#2c3340",
    paper="#171614",
    accent="#f08a4b",
    second="#56b4e9",
    third="#35c79a",
    ramp=(0.45, 1.0),
)


def _between(ramp: tuple[tuple[float, tuple[int, int, int]], ...], at: float) -> str:
    stops = [stop for stop, _ in ramp]
    channels = [np.interp(at, stops, [colour[i] for _, colour in ramp]) for i in range(3)]
    return "#" + "".join(f"{round(float(channel)):02x}" for channel in channels)


def compared_colours(look: Look, count: int) -> list[str]:
    """Return the colours of compared sources, the reference first."""
    own = (look.accent, look.second, look.third, look.ink, look.faint)
    return [*own, *look.shades(max(2, count - len(own)))][:count]
