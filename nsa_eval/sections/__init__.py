"""The sections of a report, each in a folder of its own, found by that folder.

A folder `NAME/` has an `__init__.py` with the section's data class, its builder and `SECTION`, a template
`section.html.j2`, and a `section.css` and `section.js` where it needs them (`nsa_reports.page` says what a
template and a script get). Nothing else names a section.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from types import ModuleType

from nsa_eval._titles import default_title
from nsa_eval.material import Material
from nsa_reports import Page, SectionData, SectionView


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """How a section gets onto the page."""

    title: str
    """What the page's navigation calls it."""
    order: int
    """Its place: smaller numbers stand further up. The result has 20, the notes 80."""
    build: Callable[[Material], SectionData | None]
    """What it shows of a run; None where it has nothing to show, and then it isn't there."""


def sections() -> dict[str, Section]:
    """Every section by the name of its folder, in the page's order.

    Raises:
        TypeError: A folder without a `SECTION`.
    """
    found: dict[str, Section] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.ispkg:
            section = getattr(_module(module.name), "SECTION", None)
            if not isinstance(section, Section):
                raise TypeError(f"section {module.name}: its __init__.py needs SECTION = Section(...)")
            found[module.name] = section
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


def build_page(material: Material, *, title: str | None = None) -> Page:
    """Everything a report shows.

    Args:
        material: The runs and what was found out about them.
        title: Heading; by default the run's name, or its models and tasks where that is a hash.
    """
    shown = []
    for name, section in sections().items():
        data = section.build(material)
        if data is not None:
            folder = resources.files(_module(name))
            shown.append(SectionView(id=name, title=section.title, folder=folder, data=data))
    return Page(
        title=title or default_title(material),
        models=tuple(material.models),
        sections=tuple(shown),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        confidence=material.figures.confidence,
    )


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
