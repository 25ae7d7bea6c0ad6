"""Turns run directories and their comparison into the plain data that a report shows."""

from nsa_eval.view._build import build_view

__all__ = ["build_view"]
