"""What the values of metrics are counted in, where they are no shares of 1."""

UNITS = {"nll": "nats a token", "bits_per_byte": "bits a byte"}
"""By metric; others go without."""


def named_unit(metric: str) -> str:
    """A metric with its unit, for axes and legends: `nll (nats a token)`."""
    return f"{metric} ({UNITS[metric]})" if metric in UNITS else metric
