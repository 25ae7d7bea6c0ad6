"""A page that looks like a real run's (seeded, no models needed), for the tests and for looking at it.

`python tests/reports/conftest.py report.html` writes the demo page.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import nsa_eval.sections
from nsa_eval.sections.heatmaps import Heatmaps
from nsa_eval.sections.notes import AuditNote, Notes
from nsa_eval.sections.provenance import ModelCard, Origin, Provenance
from nsa_eval.sections.result import Result
from nsa_eval.sections.tasks import Tasks, TaskScores
from nsa_reports import (
    Cell,
    DifferenceMap,
    HeatmapGroup,
    LengthRow,
    ModelMap,
    Page,
    Reply,
    ScoreRow,
    SectionData,
    SectionView,
    ShownDifference,
    ShownSample,
    ShownScore,
    render,
)

CONFIG = """name: quickstart
models:
  - {name: nsa, path: "zoo:twin-nsa-64k"}
  - {name: dense, path: "zoo:twin-full-64k"}
tasks:
  - {task: needle_single, lengths: [512, 1k, 2k], depths: 5, samples: 4}
seed: 0
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """What today's sections show, to be changed one field at a time."""

    title: str
    headline: str
    models: tuple[ModelCard, ...]
    rows: tuple[ScoreRow, ...]
    heatmaps: tuple[HeatmapGroup, ...]
    tasks: tuple[TaskScores, ...]
    audit: tuple[AuditNote, ...]
    provenance: Origin
    subtitle: str
    created: str
    method: tuple[str, ...]

    def page(self) -> Page:
        """The page of these sections, with the templates that reports have."""
        data: dict[str, SectionData] = {
            "result": Result(headline=self.headline, rows=self.rows, method=self.method),
            "heatmaps": Heatmaps(groups=self.heatmaps),
            "tasks": Tasks(tasks=self.tasks),
            "notes": Notes(notes=self.audit),
            "provenance": Provenance(models=self.models, origin=self.provenance),
        }
        return Page(
            title=self.title,
            subtitle=self.subtitle,
            created=self.created,
            models=tuple(card.name for card in self.models),
            sections=tuple(
                SectionView(
                    id=name,
                    title=section.title,
                    folder=resources.files(f"nsa_eval.sections.{name}"),
                    data=data[name],
                )
                for name, section in nsa_eval.sections.sections().items()
                if name in data and data[name] not in (Heatmaps(groups=()), Tasks(tasks=()))
            ),
        )


def _estimate(values: Sequence[float]) -> ShownScore:
    mean = sum(values) / len(values)
    half = 1.96 * (mean * (1 - mean) / len(values)) ** 0.5
    return ShownScore(value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half), n=len(values))


def _compare(names: Sequence[str], values: Sequence[Sequence[float]]) -> tuple[ShownDifference, ...]:
    baseline = values[-1]
    made = []
    for name, own in zip(names[:-1], values[:-1], strict=True):
        gaps = [a - b for a, b in zip(own, baseline, strict=True)]
        mean = sum(gaps) / len(gaps)
        half = 1.96 * (sum((gap - mean) ** 2 for gap in gaps) / len(gaps) ** 2) ** 0.5
        significant = abs(mean) > half > 0
        made.append(
            ShownDifference(
                candidate=name,
                baseline=names[-1],
                difference=mean,
                low=mean - half,
                high=mean + half,
                p=0.0004 if significant else 0.21,
                p_adjusted=0.0008 if significant else 0.42,
                minimum_detectable=max(half * 1.43, 0.01),
                significant=significant,
                test="exact McNemar",
                n=len(gaps),
            )
        )
    return tuple(made)


def demo_group(
    names: Sequence[str],
    *,
    task: str = "needle_single",
    lengths: tuple[int, ...] = (512, 1024, 2048),
    depths: int = 5,
    per_cell: int = 4,
    weakness: float = 0.35,
    missing: bool = False,
    seed: int = 0,
) -> HeatmapGroup:
    """A needle grid in which the first model fails more in the middle of long contexts."""
    rng = random.Random(seed)
    steps = tuple(round(100 * index / (depths - 1), 1) for index in range(depths))
    scores: dict[tuple[str, int, float], list[float]] = {}
    samples = []
    for column, length in enumerate(lengths):
        for depth in steps:
            if missing and length == lengths[-1] and depth == steps[1]:
                continue
            for index in range(per_cell):
                answer = str(rng.randrange(1_000_000, 10_000_000))
                replies = []
                for rank, name in enumerate(names):
                    middle = 1 - abs(depth - 50) / 60
                    loss = (weakness if rank == 0 else 0.08) * middle * (column + 1) / len(lengths)
                    right = rng.random() > loss
                    scores.setdefault((name, length, depth), []).append(float(right))
                    text = (
                        f" {answer}. The magic number is {answer}."
                        if right
                        else f" {rng.randrange(10**6, 10**7)}."
                    )
                    replies.append(Reply(model=name, text=text, score=float(right)))
                samples.append(
                    ShownSample(
                        id=f"{task}-{length}-{depth:g}-{index}",
                        replies=tuple(replies),
                        expected=(answer,),
                        prompt_end="… and the lamplighters went home before the rain.\n\n"
                        "What is the special magic number for copper-heron mentioned in the text?\n"
                        "The special magic number for copper-heron mentioned in the text is",
                        needle=f"One of the special magic numbers for copper-heron is: {answer}.",
                        seed=1000 * column + index,
                        length=length,
                        depth=depth,
                    )
                )

    def cell(name: str, length: int, depth: float) -> Cell | None:
        values = scores.get((name, length, depth))
        if values is None:
            return None
        estimate = _estimate(values)
        return Cell(
            length=length,
            depth=depth,
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            n=estimate.n,
        )

    def gap(name: str, length: int, depth: float) -> Cell | None:
        pair = [scores.get((each, length, depth)) for each in (name, names[-1])]
        if pair[0] is None or pair[1] is None:
            return None
        value = sum(pair[0]) / len(pair[0]) - sum(pair[1]) / len(pair[1])
        return Cell(length=length, depth=depth, value=value, n=len(pair[0]))

    def column_values(name: str, length: int) -> list[float]:
        return [score for depth in steps for score in scores.get((name, length, depth), [])]

    grid = [(length, depth) for length in lengths for depth in steps]
    rows = []
    for length in lengths:
        values = [column_values(name, length) for name in names]
        rows.append(
            LengthRow(
                length=length, scores=tuple(map(_estimate, values)), comparisons=_compare(names, values)
            )
        )
    return HeatmapGroup(
        task=task,
        lengths=lengths,
        depths=steps,
        maps=tuple(
            ModelMap(model=name, cells=tuple(c for at in grid if (c := cell(name, *at)) is not None))
            for name in names
        ),
        differences=tuple(
            DifferenceMap(
                candidate=name,
                baseline=names[-1],
                cells=tuple(c for at in grid if (c := gap(name, *at)) is not None),
            )
            for name in names[:-1]
        ),
        by_length=tuple(rows),
        samples=tuple(samples),
        description="One sentence with a 7-digit number in generated text; the reply must hold the number.",
        protocol="project",
    )


def _row(group: HeatmapGroup, names: Sequence[str]) -> ScoreRow:
    values: list[list[float]] = [[] for _ in names]
    for sample in group.samples:
        for index, reply in enumerate(sample.replies):
            values[index].append(reply.score or 0.0)
    return ScoreRow(
        task=group.title or group.task,
        metric="score",
        protocol=group.protocol,
        n=len(values[0]),
        scores=tuple(map(_estimate, values)),
        comparisons=_compare(names, values),
    )


def demo_view(
    names: Sequence[str] = ("nsa", "dense"),
    *,
    groups: Sequence[HeatmapGroup] | None = None,
    tasks: bool = True,
    title: str = "NSA against full attention: needle retrieval up to 2k",
) -> Demo:
    """A whole report over `names`, the last of them the baseline."""
    if groups is None:
        groups = (
            demo_group(names, missing=True),
            demo_group(names, task="needle_multikey", lengths=(1024,), weakness=0.1, seed=3),
        )
    sections: tuple[TaskScores, ...] = ()
    rows = [_row(group, names) for group in groups]
    if tasks:
        loss = ScoreRow(
            task="wikitext",
            metric="word_perplexity",
            protocol="lm-eval",
            n=62,
            percent=False,
            higher_is_better=False,
            scores=tuple(
                ShownScore(value=21.4 + index, low=20.9 + index, high=22.0 + index)
                for index in range(len(names))
            ),
            comparisons=tuple(
                ShownDifference(
                    candidate=name,
                    baseline=names[-1],
                    difference=-0.62,
                    low=-0.9,
                    high=-0.33,
                    p=0.0002,
                    p_adjusted=0.0006,
                    minimum_detectable=0.3,
                    significant=True,
                    test="paired permutation",
                )
                for name in names[:-1]
            ),
        )
        rows.append(loss)
        sections = (
            TaskScores(
                task="wikitext",
                rows=(loss,),
                description="Perplexity by word of the test split.",
                protocol="lm-eval",
                samples=tuple(
                    ShownSample(
                        id=str(index),
                        prompt_end=f"A paragraph about the number {index}.",
                        replies=tuple(Reply(model=name, text="", score=None) for name in names),
                    )
                    for index in range(3)
                ),
            ),
        )
    return Demo(
        title=title,
        subtitle="Twin decoders of 6 million parameters, equal but for attention",
        created="2025-11-03 14:20 UTC",
        headline="Dense finds more needles than NSA on needle_single (86.8 % against 97.4 %, n = 76); "
        "on needle_multikey the two can't be told apart.",
        models=tuple(
            ModelCard(
                name=name,
                path=f"zoo:twin-{name}-64k",
                fingerprint="a1b2c3d4" * 8,
                attention="nsa" if index == 0 else "full",
                parameters=6_123_456 + index,
                dtype="bfloat16",
                backend="torch",
                tokenizer="byte BPE, 4,096 tokens",
                max_length=2048,
            )
            for index, name in enumerate(names)
        ),
        rows=tuple(rows),
        heatmaps=tuple(groups),
        tasks=sections,
        audit=(
            AuditNote(title="Prompts truncated", count=0, total=480),
            AuditNote(title="Doubled BOS tokens", count=0, total=480),
            AuditNote(
                title="Longest context taken from a default",
                count=1,
                details=("dense: 2,048 tokens, from the config",),
            ),
        ),
        method=(
            "Intervals: paired bootstrap over documents, 10,000 resamples, seed 0.",
            "p: exact McNemar test on 0/1 scores; Holm-adjusted over the tasks of this report.",
        ),
        provenance=Origin(
            command="nsa-eval run configs/quickstart.yaml -o runs/quickstart",
            config=CONFIG,
            seed=0,
            git_commit="a07e841c0ffee",
            machine={"CPU": "2 cores, x86-64", "Memory": "8 GiB", "System": "Linux 6.1, Python 3.11.9"},
            versions={"torch": "2.13.0", "transformers": "5.23.0", "lm-eval": "0.4.13", "nsa-eval": "0.1.0"},
        ),
    )


class ParsedPage(HTMLParser):
    """Tags, scripts and visible text of a page, as a browser's parser splits them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.json: dict[str, Any] = {}
        self.maps: list[list[list[dict[str, str] | None]]] = []
        """Every heatmap: rows of cells, each with style, title and text; None where blank."""
        self.style = ""
        self._open = ""
        self._joint = self._map = False
        self._cell: dict[str, str] | None = None
        self._text: list[str] = []
        self.feed(html)
        self.close()

    @property
    def text(self) -> str:
        """Everything a reader sees, with single spaces."""
        return " ".join(" ".join(self._text).split())

    def cells(self, number: int) -> list[list[dict[str, str] | None]]:
        """The cells of a heatmap, without its two rows of heads; their style is that of their class."""
        rules = dict(re.findall(r"^\.(k\d+)\{(.*)\}$", self.style, re.M))
        return [
            [cell and {**cell, "style": rules[cell["class"]]} for cell in row]
            for row in self.maps[number][2:]
        ]

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, dict(attrs)))
        self._joint = tag == "wbr"  # a place where a name may be broken, not a space
        if tag == "table":
            self._map = found.get("class") == "heatmap"
            if self._map:
                self.maps.append([])
        if tag == "tr" and self.maps and self._map:
            self.maps[-1].append([])
        if tag == "td" and self.maps and self._map:
            self._cell = {"class": found["class"], "title": found["title"], "text": ""} if found else None
            self.maps[-1][-1].append(self._cell)
        elif tag != "wbr":
            self._cell = None
        if tag in ("script", "style"):
            self._open = "json" if dict(attrs).get("type") == "application/json" else tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._open = ""
        if tag == "td":
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._open == "json":
            self.json = json.loads(data)
        elif self._open == "script":
            self.scripts.append(data)
        elif self._open == "style":
            self.style += data
        elif not self._open:
            if self._joint and self._text:
                self._text[-1] += data
            else:
                self._text.append(data)
            if self._cell is not None:
                self._cell["text"] += data
        self._joint = False


@pytest.fixture(scope="session")
def parse_page() -> type[ParsedPage]:
    return ParsedPage


@pytest.fixture(scope="session")
def make_view() -> Callable[..., Demo]:
    return demo_view


@pytest.fixture(scope="session")
def make_group() -> Callable[..., HeatmapGroup]:
    return demo_group


if __name__ == "__main__":
    print(render(demo_view().page(), out=Path(sys.argv[1])))
