"""The two colour maps, once, for the page and for the paper figures.

Scores run through ColorBrewer's YlGnBu from dark (0 %) to pale (100 %): like viridis it stays ordered in
grey print and under every common colour vision deficiency, but a grid that is all 100 % stays calm and the
failures are what stands out. Its palest stop is left out, so that no cell looks like the paper. Differences
are blue where the candidate is ahead and orange where the baseline is, after ColorBrewer's PuOr, with light
grey in the middle.
"""

from __future__ import annotations

SCORE = ("#081d58", "#253494", "#225ea8", "#1d91c0", "#41b6c4", "#7fcdbb", "#c7e9b4", "#edf8b1")
DIFFERENCE = (
    "#7f3b08",
    "#b35806",
    "#e08214",
    "#fdb863",
    "#ececec",
    "#92b4dc",
    "#4a83c0",
    "#1f5a9e",
    "#08306b",
)


_BLACK, _WHITE = "#000000", "#ffffff"


def css_gradient(colours: tuple[str, ...]) -> str:
    """A left-to-right CSS gradient through the same colours."""
    return f"linear-gradient(90deg, {', '.join(colours)})"


def colour_at(colours: tuple[str, ...], position: float) -> str:
    """The colour at `position` (0..1) of a map, between its stops in proportion: `#1d91c0`."""
    scaled = min(max(position, 0.0), 1.0) * (len(colours) - 1)
    left = min(int(scaled), len(colours) - 2)
    pairs = zip(_channels(colours[left]), _channels(colours[left + 1]), strict=True)
    return "#" + "".join(f"{round(low + (high - low) * (scaled - left)):02x}" for low, high in pairs)


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21, as WCAG 2 defines it; text wants 4.5."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on a colour: a contrast of at least 4.58 on any."""
    return max((_BLACK, _WHITE), key=lambda ink: contrast(ink, colour))


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _luminance(colour: str) -> float:
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in _channels(colour))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
