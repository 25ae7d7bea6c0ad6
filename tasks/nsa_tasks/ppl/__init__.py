"""Perplexity by position: how well a text is predicted, near its start and far into it. See README.md."""

from nsa_tasks.ppl.family import FAMILY

__all__ = ["FAMILY"]
