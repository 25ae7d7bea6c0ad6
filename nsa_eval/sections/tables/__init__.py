"""Tables in the layout that the run's config names, a paper's for instance."""

from __future__ import annotations

from dataclasses import dataclass

from nsa_eval.material import Material
from nsa_eval.sections import Section
from nsa_eval.tables import FilledTable, fill_tables
from nsa_reports import Anchor, SectionData


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One table as the template places it."""

    id: str
    table: FilledTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables(SectionData):
    """What the section shows."""

    tables: tuple[FilledTable, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The tables with their ids."""
        return tuple(Part(id=f"layout{index}", table=table) for index, table in enumerate(self.tables))

    def anchors(self) -> tuple[Anchor, ...]:
        """One per table."""
        return tuple(Anchor(id=part.id, title=part.table.title) for part in self.parts)


def build(material: Material) -> Tables | None:
    """Every table that the config lays out."""
    tables = fill_tables(material)
    return Tables(tables=tables) if tables else None


SECTION = Section(title="Tables", order=25, build=build)
