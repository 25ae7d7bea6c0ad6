"""LongBench v2: multiple-choice questions over long texts. See README.md in this folder."""

from nsa_tasks.longbench2.family import FAMILY

__all__ = ["FAMILY"]
