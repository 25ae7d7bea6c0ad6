"""Numbers as people read them. Every function takes None (or NaN) and returns a dash."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

MISSING = "\u2013"
MINUS = "\u2212"
_JOINT = re.compile(r"(?<=[+@=,_/-])(?=[^+@=,_/\s-])")


def finite(value: float | None) -> float | None:
    """The value, or None when it is missing, NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None


def _signed(text: str) -> str:
    return text.replace("-", MINUS)


def _decimals(value: float) -> int:
    """Decimals of a plain score: a fixed number per size, so that an interval lines up with its score."""
    return next((places for size, places in ((1000, 0), (100, 1), (1, 2)) if abs(value) >= size), 3)


def _small(value: float, digits: int) -> str:
    """A number so small that fixed decimals would show 0: `0.0017`, `5.4e-5`."""
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def _fixed(value: float, *, sign: str = "") -> str:
    if 0 < abs(value) < 0.01:
        return ("+" if sign and value > 0 else "") + _small(value, 2)
    return f"{value:{sign}.{_decimals(value)}f}"


def brief(value: float, *, signed: bool = False) -> str:
    """A plain number short enough for the cell of a map: `12`, `3.4`, `0.52`, `0.002`, `5e-5`."""
    size = abs(value)
    if 0 < size < 0.0095:
        text = _small(value, 1)
    else:
        text = f"{value:.0f}" if size >= 99.5 else f"{value:.1f}" if size >= 9.95 else f"{value:.2f}"
    if float(text) == 0:
        return text.lstrip("-")
    return ("+" if signed and value > 0 else "") + _signed(text)


def score(value: float | None, *, percent: bool = True, unit: bool = True) -> str:
    """`0.934` as `93.4 %`, or as `0.934` for scores that are no fractions."""
    if finite(value) is None or value is None:
        return MISSING
    if percent:
        return _signed(f"{100 * value:.1f}") + (" %" if unit else "")
    return _signed(_fixed(value))


def difference(value: float | None, *, percent: bool = True, unit: bool = True) -> str:
    """`0.025` as `+2.5 pp` (percentage points); a difference that rounds to 0 has no sign."""
    if finite(value) is None or value is None:
        return MISSING
    text = f"{100 * value:+.1f}" if percent else _fixed(value, sign="+")
    if float(text) == 0:
        text = text.lstrip("+-")
    return _signed(text) + (" pp" if percent and unit else "")


def interval(low: float | None, high: float | None, *, percent: bool = True, signed: bool = False) -> str:
    """`[91.2, 96.0]`, or an empty string when either end is missing."""
    if finite(low) is None or finite(high) is None:
        return ""
    one = difference if signed else score
    return f"[{one(low, percent=percent, unit=False)}, {one(high, percent=percent, unit=False)}]"


def p_value(value: float | None) -> str:
    """Three decimals, and `< 0.001` below that."""
    if finite(value) is None or value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def tokens(length: int) -> str:
    """Context lengths as the field writes them: 512, 1k, 64k (k = 1024); 3000 stays 3,000."""
    if length >= 1024 * 1024 and length % (1024 * 1024) == 0:
        return f"{length // (1024 * 1024)}M"
    if length >= 1024 and length % 1024 == 0:
        return f"{length // 1024}k"
    return f"{length:,}"


def depth(value: float) -> str:
    """A depth in percent without a trailing `.0`."""
    return f"{value:.1f}".removesuffix(".0")


def count(value: int | None) -> str:
    """`12,345`."""
    return MISSING if value is None else f"{value:,}"


def parameters(value: int | None) -> str:
    """`6,123,456` as `6.1 M`."""
    if value is None:
        return MISSING
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {suffix}"
    return str(value)


def level(confidence: float) -> str:
    """`0.95` as `95 %`."""
    return f"{100 * confidence:g} %"


def shorten(text: str, limit: int) -> str:
    """A long name with its middle cut out: both the family at the start and the step at the end stay."""
    head = limit // 2
    return text if len(text) <= limit else f"{text[:head].rstrip()}…{text[head + 1 - limit :].lstrip()}"


def short_names(names: Sequence[str], limit: int = 26) -> dict[str, str]:
    """Shortened names for column heads; full ones where shortening would make two of them equal."""
    short = {name: shorten(name, limit) for name in names}
    clear = len(set(short.values())) == len(short)
    return short if clear else {name: name for name in names}


def joints(name: str) -> list[str]:
    """A name cut where it may be broken: `dense+quest@2560` as `dense+`, `quest@`, `2560`."""
    return _JOINT.split(name)
