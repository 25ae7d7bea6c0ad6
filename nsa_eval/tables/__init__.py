"""Tables in a layout that the config names: rows are models, columns tasks, groups and their means."""

from nsa_eval.tables._fill import FilledCell, FilledColumn, FilledRow, FilledTable, fill_tables
from nsa_eval.tables._written import write_table, written_table

__all__ = [
    "FilledCell",
    "FilledColumn",
    "FilledRow",
    "FilledTable",
    "fill_tables",
    "write_table",
    "written_table",
]
