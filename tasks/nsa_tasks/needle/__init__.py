"""Needle in a haystack: single, multi-key, multi-value and multi-query. See README.md in this folder."""

from nsa_tasks.needle.family import FAMILY

__all__ = ["FAMILY"]
