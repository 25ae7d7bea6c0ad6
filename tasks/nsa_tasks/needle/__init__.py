"""Needle in a haystack: single, multi-key, multi-value and multi-query. See README.md in this folder."""

from nsa_tasks.needle.parameters import estimate, parameters, resolve

__all__ = ["estimate", "parameters", "resolve"]
