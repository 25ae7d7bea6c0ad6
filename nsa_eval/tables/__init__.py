"""Tables as files: every score of a run, and layouts that its config names."""

from nsa_eval.tables._fill import FilledCell, FilledColumn, FilledRow, FilledTable, fill_tables
from nsa_eval.tables._scores import SCORES, scores_csv, scores_markdown, write_scores
from nsa_eval.tables._written import write_table, written_table

__all__ = [
    "SCORES",
    "FilledCell",
    "FilledColumn",
    "FilledRow",
    "FilledTable",
    "fill_tables",
    "scores_csv",
    "scores_markdown",
    "write_scores",
    "write_table",
    "written_table",
]
