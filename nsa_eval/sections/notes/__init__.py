"""Notes: what was done to prompts, what was assumed, and what is to be said of the comparison."""

from __future__ import annotations

from dataclasses import dataclass

from nsa_eval.audit import KINDS, kind_of, page_notes
from nsa_eval.material import Material
from nsa_eval.results import ModelRun
from nsa_eval.sections import Section
from nsa_reports import SectionData


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditNote:
    """One kind of event that a reader of the scores has to know about, with its count."""

    title: str
    """Such as "Prompts truncated"."""
    count: int
    """0 is worth giving: the page then says "none"."""
    total: int | None = None
    """Out of how many."""
    unit: str = ""
    """What is counted, where the title doesn't say: models, each of which may have several events."""
    details: tuple[str, ...] = ()
    """One line per model, task or event; the page folds long lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes(SectionData):
    """What the section shows. It is there without notes too, and says so."""

    notes: tuple[AuditNote, ...] = ()


def build(material: Material) -> Notes:
    """Events of the audit, then remarks on the comparison."""
    return Notes(notes=(*_audit(material), *_remarks(material)))


def _audit(material: Material) -> list[AuditNote]:
    """One note per kind of event, "none" included; a note for models whose requests were not recorded."""
    models = material.models
    recorded = {label: model for label, model in models.items() if model.run_config is not None}
    notes = []
    if recorded:
        events = [(label, event) for label, model in recorded.items() for event in model.audit]
        met = {str(event.get("kind")) for _, event in events}
        known = [kind for kind, about in KINDS.items() if about.always_shown or kind in met]
        documents = sum(_documents(model) for model in recorded.values())
        for kind in [*known, *sorted(met - set(KINDS))]:
            found = [(label, event) for label, event in events if str(event.get("kind")) == kind]
            about = kind_of(kind)
            notes.append(
                AuditNote(
                    title=about.title,
                    count=len({label for label, _ in found}) if about.of_model else len(found),
                    total=len(recorded) if about.of_model else documents,
                    unit="models" if about.of_model and not about.title.startswith("Models") else "",
                    details=page_notes(found),
                )
            )
    missing = tuple(label for label in models if label not in recorded)
    if missing:
        title = "Models not run by nsa-eval: cut prompts were not recorded"
        notes.append(AuditNote(title=title, count=len(missing), total=len(models), details=missing))
    return notes


def _remarks(material: Material) -> list[AuditNote]:
    comparison, refusal = material.comparison, material.refusal
    notes = []
    if refusal:
        notes.append(AuditNote(title="Models not compared", count=len(material.models) - 1, details=refusal))
    if comparison is not None and comparison.notes:
        title = "Remarks on the comparison"
        notes.append(AuditNote(title=title, count=len(comparison.notes), details=tuple(comparison.notes)))
    return notes


def _documents(model: ModelRun) -> int:
    return sum(len(next(iter(task.filters.values()), ())) for task in model.tasks.values())


SECTION = Section(title="Notes", order=80, build=build)
