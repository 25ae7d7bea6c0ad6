"""Where it looks: whether the blocks that NSA chose hold the answer, against whether the answer was right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nsa_eval._words import counted, seconds_text
from nsa_eval.looks import Look, answered_right
from nsa_eval.material import Material
from nsa_eval.results import ModelRun, Sample
from nsa_eval.sections import Section
from nsa_reports import (
    Cell,
    ChoicePicture,
    HeatmapGroup,
    ModelMap,
    Panel,
    SectionData,
    choice_picture,
    panels_of,
    shades_in_words,
)

_OPEN, _PICTURES = 2, 6
"""Pictures of a task and model that are unfolded, and that there are at most."""
_RECALL, _RIGHT = "selection recall", "answered right"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One length, or all of them: documents by what was selected and what was answered."""

    length: int | None
    """None: all lengths."""
    n: int
    recall: float
    right: int
    """Selected and right."""
    misread: int
    """Selected and wrong."""
    missed_right: int
    """Not selected, and right even so."""
    missed_wrong: int
    """Not selected and wrong."""
    missed_in_window: int
    """Of both that weren't selected: within the sliding window."""
    always_right: int
    always_wrong: int
    """Where there was no choice to make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """Recall of each layer at one length."""

    length: int
    n: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A picture and what it is of."""

    caption: str
    picture: ChoicePicture


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLooks:
    """One model on one task."""

    model: str
    grid: str
    """Blocks, layers and groups in words."""
    panels: tuple[Panel, ...]
    """Recall and right answers by length and depth; none where documents aren't in a grid."""
    whole: frozenset[tuple[int, float]]
    """The cells whose documents all had nothing to choose."""
    outcomes: tuple[Outcome, ...]
    layers: tuple[LayerRow, ...]
    """Of documents with something to choose; none where there are no such documents."""
    shade: Panel | None
    """Colours the cells of `layers`."""
    shades: tuple[str, ...]
    """What the pictures' shades stand for; empty for one that stands for nothing."""
    pictures: tuple[Drawn, ...]
    left_out: str
    """Documents that weren't looked at, in a sentence."""

    @property
    def shown(self) -> tuple[Drawn, ...]:
        """The pictures that are unfolded."""
        return self.pictures[:_OPEN]

    @property
    def shared(self) -> bool:
        """Whether a picture has columns of several blocks."""
        return any(one.picture.shared for one in self.pictures)

    @property
    def folded(self) -> tuple[Drawn, ...]:
        """The others."""
        return self.pictures[_OPEN:]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLooks:
    """One task."""

    task: str
    models: tuple[ModelLooks, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks(SectionData):
    """What the section shows."""

    tasks: tuple[TaskLooks, ...]
    absent: tuple[tuple[str, str], ...]
    """Models that can't be looked at, with the reason."""
    took: str
    """Seconds that it took, in words."""


def build(material: Material) -> Looks | None:
    """The tasks of which looks were recorded; None where there are none."""
    tasks = []
    for task in material.tasks:
        models = tuple(
            found
            for label, model in material.models.items()
            if (found := _model(task, label, model, material)) is not None
        )
        if models:
            tasks.append(TaskLooks(task=task, models=models))
    if not tasks:
        return None
    sheets = {label: model.looks for label, model in material.models.items() if model.looks is not None}
    return Looks(
        tasks=tuple(tasks),
        absent=tuple((label, sheet.why_not) for label, sheet in sheets.items() if sheet.why_not),
        took=seconds_text(sum(sheet.seconds for sheet in sheets.values())),
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """A document that was looked at."""

    sample: Sample
    look: Look
    right: bool


def _model(task: str, label: str, model: ModelRun, material: Material) -> ModelLooks | None:
    looks = model.looks.of(task) if model.looks is not None else {}
    if model.looks is None or not looks or task not in model.tasks:
        return None
    result = model.tasks[task]
    filter_name = material.figures.metrics(task)[0][1]
    listed = result.metrics(filter_name)
    seen = [
        _Seen(sample, looks[str(sample.doc_id)], bool(right))
        for sample in result.filters.get(filter_name, ())
        if str(sample.doc_id) in looks
        and (right := answered_right(sample.metrics, listed, result.higher_is_better)) is not None
    ]
    if not seen:
        return None
    chosen = [one for one in seen if not one.look.always]
    panels, whole = _panels(task, seen)
    lengths = sorted({one.sample.length for one in seen if one.sample.length is not None})
    outcomes = [_outcome(length, [s for s in seen if s.sample.length == length]) for length in lengths]
    grid = seen[0].look.grid
    return ModelLooks(
        model=label,
        grid=f"{counted(grid.layers, 'layer')} of {counted(grid.groups, 'KV group')}, each of which chooses "
        f"n = {grid.select_count} blocks of {grid.select_block} tokens, "
        f"{grid.first_blocks + grid.last_blocks} of them forced; window of {grid.window:,}",
        panels=panels,
        whole=whole,
        outcomes=(*outcomes, _outcome(None, seen)) if len(outcomes) != 1 else tuple(outcomes),
        layers=tuple(_layers(chosen)) if panels else (),
        shade=panels[0] if panels else None,
        shades=shades_in_words(grid.choices),
        pictures=tuple(_drawn(seen)),
        left_out=_left_out(model.looks.left_out(task)),
    )


def _left_out(documents: Mapping[str, str]) -> str:
    if not documents:
        return ""
    why = "; ".join(sorted(set(documents.values())))
    return f"{counted(len(documents), 'document')} not looked at: {why}."


def _panels(task: str, seen: Sequence[_Seen]) -> tuple[tuple[Panel, ...], frozenset[tuple[int, float]]]:
    """Recall and right answers as maps, and the cells in which there was nothing to choose."""
    cells: dict[tuple[int, float], list[_Seen]] = {}
    for one in seen:
        if one.sample.length is None or one.sample.depth is None:
            return (), frozenset()
        cells.setdefault((one.sample.length, one.sample.depth), []).append(one)
    maps = [
        ModelMap(
            model=name,
            cells=tuple(
                Cell(length=length, depth=depth, value=value(inside), n=len(inside))
                for (length, depth), inside in sorted(cells.items())
            ),
        )
        for name, value in (
            (_RECALL, _recall),
            (_RIGHT, lambda seen: _mean(float(one.right) for one in seen)),
        )
    ]
    group = HeatmapGroup(
        task=task,
        lengths=tuple(sorted({length for length, _ in cells})),
        depths=tuple(sorted({depth for _, depth in cells})),
        maps=tuple(maps),
    )
    whole = frozenset(place for place, inside in cells.items() if all(one.look.always for one in inside))
    return panels_of(group, 1.0), whole


def _recall(seen: Sequence[_Seen]) -> float:
    """Mean over the documents with something to choose: what stands in forced blocks alone is no choice.

    Where all of them do, over all, of which it says nothing.
    """
    return _mean(one.look.share for one in [one for one in seen if not one.look.always] or seen)


def _outcome(length: int | None, seen: Sequence[_Seen]) -> Outcome:
    chosen = [one for one in seen if not one.look.always]
    always = [one for one in seen if one.look.always]
    missed = [one for one in chosen if not one.look.found]
    return Outcome(
        length=length,
        n=len(seen),
        recall=_recall(seen),
        right=sum(one.look.found and one.right for one in chosen),
        misread=sum(one.look.found and not one.right for one in chosen),
        missed_right=sum(one.right for one in missed),
        missed_wrong=sum(not one.right for one in missed),
        missed_in_window=sum(one.look.in_window for one in missed),
        always_right=sum(one.right for one in always),
        always_wrong=sum(not one.right for one in always),
    )


def _layers(chosen: Sequence[_Seen]) -> Iterable[LayerRow]:
    for length in sorted({one.sample.length for one in chosen if one.sample.length is not None}):
        inside = [one.look.by_layer for one in chosen if one.sample.length == length]
        yield LayerRow(
            length=length,
            n=len(inside),
            cells=tuple(
                Cell(length=length, depth=float(layer), value=_mean(shares), n=len(inside))
                for layer, shares in enumerate(zip(*inside, strict=True))
            ),
        )


def _drawn(seen: Sequence[_Seen]) -> Iterable[Drawn]:
    """The pictures that show a choice, long contexts first, and of each length the wrong answer first."""
    shown = [one for one in seen if one.look.picture is not None and not one.look.always]
    shown.sort(key=lambda one: (-(one.sample.length or 0), one.right))
    for one in shown[:_PICTURES]:
        look, picture = one.look, one.look.picture
        assert picture is not None, "filtered"
        grid, answer = look.grid, look.answers[0]
        last = look.prompt_tokens - 1
        begins = sum(answer.held)
        caption = (
            f"{one.sample.name}: {'right' if one.right else 'wrong'}. When the reply begins, {begins} of the "
            f"{grid.choices} layers and groups hold the whole answer; of each token of the right reply, when "
            f"it is to be predicted, {', '.join(map(str, answer.by_token))}."
        )
        first = last - picture.asked + 1
        yield Drawn(
            caption=caption,
            picture=choice_picture(
                title=f"Blocks chosen by the queries at the prompt's end and of the right reply. {caption}",
                columns=picture.columns,
                counts=picture.rows,
                words=picture.tokens,
                asked=picture.asked,
                most=grid.choices,
                marked={block for one_of in look.answers for block in one_of.blocks},
                forced=[grid.forced(first + row) for row in range(len(picture.rows))],
            ),
        )


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


SECTION = Section(title="Where it looks", order=32, build=build)
