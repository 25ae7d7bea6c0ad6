"""RULER: 13 tasks of retrieval, tracing, counting and question answering. See README.md in this folder."""

from nsa_tasks.ruler.family import FAMILY

__all__ = ["FAMILY"]
