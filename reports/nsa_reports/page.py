"""A page: its title, its models, and sections in order, each with its template and the data it shows.

A section's data is a frozen dataclass over `SectionData`, of plain values and the pieces of
`nsa_reports.view`. Its template, `section.html.j2` in the section's folder, sees it as `data`; `section.css`
and `section.js` beside it are optional. What else a section brings (samples, figures, links of the
navigation) it says by overriding the methods of `SectionData`; the page itself knows no section.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources.abc import Traversable

from nsa_reports.view import (
    CurveGroup,
    HeatmapGroup,
    LengthRow,
    ScoreRow,
    ShownDifference,
    ShownSample,
    ShownScore,
)

TEMPLATE = "section.html.j2"
STYLE = "section.css"
SCRIPT = "section.js"
ALL = "all"
"""Key of samples that form one list, not the cells of a grid."""

# An id stands in HTML attributes, links and names of templates.
_ID = re.compile(r"[A-Za-z][\w-]*")


def check_distinct(what: str, ids: Iterable[str]) -> None:
    """Check that sections, which don't know each other, chose different ids.

    Raises:
        ValueError: an id comes twice.
    """
    twice = [key for key, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"the page has two of a {what} called {twice[0]!r}; rename one")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A place that the page's navigation links to."""

    id: str
    """The HTML id of an element of the section's template."""
    title: str


class SectionData:
    """What one section shows. Every method has an answer for a section that brings nothing of the kind."""

    __slots__ = ()

    def anchors(self) -> tuple[Anchor, ...]:
        """The navigation's links to parts of the section; none: one link to the section by its title."""
        return ()

    def samples(self) -> Mapping[str, Mapping[str, Sequence[ShownSample]]]:
        """Samples by list (an id) and by place in it: "row,column" of a grid, or `ALL` where it is one list.

        The page embeds as many as fit. A `<details class="browser" data-samples="ID">` with a
        `<div class="samples">` in it shows a list of `ALL`; for others a section's script calls
        `report.showSamples`.
        """
        return {}

    def grids(self) -> tuple[HeatmapGroup, ...]:
        """Grids that are drawn as figures for papers; the template gets links to them as `figures`."""
        return ()

    def curves(self) -> tuple[CurveGroup, ...]:
        """Curves that are drawn as figures for papers; their links follow those of the grids in `figures`."""
        return ()

    def script(self) -> object:
        """What the section's script gets, as JSON has it."""
        return None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SectionView:
    """One section of a page."""

    id: str
    """Distinct within the page: letters, digits, `_` and `-`."""
    title: str
    folder: Traversable
    """Where its template, and style and script if it has any, are."""
    data: SectionData

    def __post_init__(self) -> None:
        """Check the id.

        Raises:
            ValueError: it is no id.
        """
        if not _ID.fullmatch(self.id):
            raise ValueError(f"a section's id is made of letters, digits, _ and -, got {self.id!r}")

    @property
    def anchors(self) -> tuple[Anchor, ...]:
        """The links to it."""
        return self.data.anchors() or (Anchor(id=self.id, title=self.title),)

    def asset(self, name: str) -> str:
        """The text of one of its optional files, or nothing."""
        file = self.folder.joinpath(name)
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def template(self) -> str:
        """The text of its template.

        Raises:
            FileNotFoundError: it has none.
        """
        return self.folder.joinpath(TEMPLATE).read_text(encoding="utf-8")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Everything one report shows."""

    title: str
    models: tuple[str, ...]
    """Names, in the order of every per-model tuple and column."""
    sections: tuple[SectionView, ...] = ()
    """From top to bottom."""
    subtitle: str = ""
    created: str = ""
    """Date and time as it is to be shown, e.g. "2025-11-03 14:20 UTC"."""
    confidence: float = 0.95
    """Level of all intervals."""

    def __post_init__(self) -> None:
        """Check names, ids and per-model tuples of all sections.

        Raises:
            ValueError: no models, repeated or unknown names, a per-model tuple of another length, or an id
                that two parts of the page want.
        """
        if not self.models or len(set(self.models)) != len(self.models):
            raise ValueError(f"a report needs models with distinct names, got {list(self.models)}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}")
        for section in self.sections:
            self._check(section.data, section.id)
        for what, ids in (
            ("section", [section.id for section in self.sections]),
            ("link target", [anchor.id for section in self.sections for anchor in section.anchors]),
            ("list of samples", [key for section in self.sections for key in section.data.samples()]),
        ):
            check_distinct(what, ids)

    def _check(self, value: object, where: str) -> None:
        """Check everything of `nsa_reports.view` in a section's data, however deep."""
        match value:
            case ScoreRow():
                self._check_scores(value.task, value.scores, value.comparisons)
            case HeatmapGroup():
                for row in value.by_length:
                    self._check_scores(f"{value.task} at {row.length}", row.scores, row.comparisons)
                self._check_names(value.task, (grid.model for grid in value.maps))
                pairs = ((grid.candidate, grid.baseline) for grid in value.differences)
                self._check_names(value.task, (name for pair in pairs for name in pair))
                self._check(value.samples, value.task)
            case CurveGroup():
                for row in value.rows:
                    self._check_scores(f"{value.task} up to {row.length}", row.scores, row.comparisons)
                self._check_names(value.task, (curve.model for curve in value.curves))
                named = ((curve.candidate, curve.baseline) for curve in value.differences)
                self._check_names(value.task, (name for pair in named for name in pair))
            case LengthRow():
                self._check_scores(f"{where} at {value.length}", value.scores, value.comparisons)
            case ShownSample():
                self._check_names(f"sample {value.id!r}", (reply.model for reply in value.replies))
            case tuple() | list():
                for item in value:
                    self._check(item, where)
            case Mapping():
                self._check(tuple(value.values()), where)
            case _ if dataclasses.is_dataclass(value):
                for field in dataclasses.fields(value):
                    self._check(getattr(value, field.name), where)

    def _check_scores(
        self, where: str, scores: tuple[ShownScore | None, ...], pairs: tuple[ShownDifference, ...]
    ) -> None:
        if len(scores) != len(self.models):
            raise ValueError(
                f"{where}: {len(scores)} scores for {len(self.models)} models; "
                "give one per model, None if missing"
            )
        self._check_names(where, (name for pair in pairs for name in (pair.candidate, pair.baseline)))

    def _check_names(self, where: str, names: Iterable[str]) -> None:
        unknown = sorted(set(names) - set(self.models))
        if unknown:
            raise ValueError(
                f"{where}: unknown model {unknown[0]!r}; the report's models are {sorted(self.models)}"
            )
