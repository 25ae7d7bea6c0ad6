"""LongBench v1: 21 datasets, 13 of them also as LongBench-E. See README.md in this folder."""

from nsa_tasks.longbench.family import FAMILY

__all__ = ["FAMILY"]
