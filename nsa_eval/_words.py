"""Counts, sizes, times and errors in sentences."""


def counted(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun: `1 task`, `2 tasks`, `1,000 replies`.

    Args:
        number: How many.
        singular: The noun for one.
        plural: The noun for any other number, where it isn't `singular` with an s.
    """
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def bytes_text(value: float) -> str:
    """Bytes as people read them: 512 B, 3.4 KiB, 12 MiB, 1.25 GiB."""
    for unit, one in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= one:
            return f"{value / one:.3g} {unit}" if value / one < 1000 else f"{value / one:,.0f} {unit}"
    return f"{value:.0f} B"


def seconds_text(value: float) -> str:
    """`3 ms`, `1.2 s`, `150 s`."""
    if value >= 100:
        return f"{value:,.0f} s"
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def said(error: BaseException) -> str:
    """An error's type and text, on one line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def sentence(error: BaseException) -> str:
    """An error's first line, or its type where it says nothing, with a full stop: others may follow."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0].strip().rstrip('.')}."
