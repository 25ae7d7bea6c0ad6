"""Counts in sentences."""


def counted(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun: `1 task`, `2 tasks`, `1,000 replies`.

    Args:
        number: How many.
        singular: The noun for one.
        plural: The noun for any other number, where it isn't `singular` with an s.
    """
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"
