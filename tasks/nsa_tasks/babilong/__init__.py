"""BABILong: facts of a bAbI task hidden in long text. See README.md in this folder."""

from nsa_tasks.babilong.family import FAMILY

__all__ = ["FAMILY"]
