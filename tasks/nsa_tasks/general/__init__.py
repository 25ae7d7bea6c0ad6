"""The NSA paper's nine general benchmarks, on lm-eval's own tasks. See README.md in this folder."""

from nsa_tasks.general.family import FAMILY

__all__ = ["FAMILY"]
