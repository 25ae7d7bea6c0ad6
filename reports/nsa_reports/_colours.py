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


def plotly_scale(colours: tuple[str, ...]) -> list[list[float | str]]:
    """Evenly spaced `[position, colour]` stops as plotly wants them."""
    return [[index / (len(colours) - 1), colour] for index, colour in enumerate(colours)]


def css_gradient(colours: tuple[str, ...]) -> str:
    """A left-to-right CSS gradient through the same colours."""
    return f"linear-gradient(90deg, {', '.join(colours)})"


def ink_on(colours: tuple[str, ...], position: float) -> str:
    """Black or white, whichever reads better on the colour at `position` (0..1) of the map.

    Contrast by relative luminance as WCAG 2 defines it.
    """
    scaled = min(max(position, 0.0), 1.0) * (len(colours) - 1)
    left = min(int(scaled), len(colours) - 2)
    mix = scaled - left
    channels = []
    for offset in (1, 3, 5):
        low = int(colours[left][offset : offset + 2], 16)
        high = int(colours[left + 1][offset : offset + 2], 16)
        value = (low + (high - low) * mix) / 255
        channels.append(value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
    luminance = 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]
    # (L + 0.05) / 0.05 against black equals 1.05 / (L + 0.05) against white at L = 0.179
    return "#111111" if luminance > 0.179 else "#ffffff"
