"""Reasoning: AIME, MATH-500 and GSM8K with several replies a problem. See README.md in this folder."""

from nsa_tasks.reasoning.family import FAMILY

__all__ = ["FAMILY"]
