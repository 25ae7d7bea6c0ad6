"""The colours of a page's maps as CSS classes: a pair is written once, not in every cell that has it."""

from __future__ import annotations

from nsa_reports.panels import Panel
from nsa_reports.view import Cell


class Shades:
    """Classes for grounds and inks of one page's cells, named in the order in which they are asked for."""

    def __init__(self) -> None:
        """Knows none yet."""
        self._names: dict[str, str] = {}

    def __call__(self, panel: Panel, cell: Cell) -> str:
        """The class of a cell that has a value."""
        return self._names.setdefault(panel.cell_style(cell), f"k{len(self._names)}")

    @property
    def style(self) -> str:
        """The rules of all classes that were asked for."""
        return "".join(f".{name}{{{rule}}}\n" for rule, name in self._names.items())
