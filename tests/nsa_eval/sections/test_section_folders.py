"""A section is one folder: it is found by it, and nothing else has to know of it."""

import json
import re
import sys
from pathlib import Path

import pytest

import nsa_eval.sections
from nsa_eval.comparison import compare
from nsa_eval.material import Material
from nsa_eval.sections import build_page, sections
from nsa_reports import to_html
from nsa_reports.page import SCRIPT, STYLE, TEMPLATE

MODULE = """
from dataclasses import dataclass

from nsa_eval.sections import Section
from nsa_reports import ALL, SectionData, ShownSample


@dataclass(frozen=True, kw_only=True)
class Words(SectionData):
    counts: dict
    replies: tuple[ShownSample, ...]

    def samples(self):
        return {"words-samples": {ALL: self.replies}}

    def script(self):
        return {"counts": self.counts}


def build(material):
    counts = {
        label: sum(len(sample.reply.split()) for sample in model.tasks["t"].filters["none"])
        for label, model in material.models.items()
    }
    if not any(counts.values()):
        return None
    return Words(counts=counts, replies=(ShownSample(id="<b>one", replies=()),))


SECTION = Section(title="Words", order=25, build=build)
"""
FILES = {
    "__init__.py": MODULE,
    TEMPLATE: (
        '{% from "_macros.html.j2" import sample_list %}\n<section id="words"><h2>Words</h2>\n'
        '<svg id="words-chart"><rect width="{{ data.counts["nsa"] }}" height="1"/></svg>\n'
        "{% for name in page.models %}<p>{{ name }} wrote {{ data.counts[name] }} words</p>{% endfor %}\n"
        '{{ sample_list("words-samples", "Replies") }}\n</section>\n'
    ),
    STYLE: "#words { color: rgb(1 2 3); }",
    SCRIPT: 'report.section("words", (data) => report.element("p", "", data.counts.nsa));',
}


@pytest.fixture
def new_section(tmp_path, monkeypatch):
    """Put a section folder beside today's, for one test."""

    def add(name="words", files=FILES):
        folder = tmp_path / "sections" / name
        folder.mkdir(parents=True)
        for file, text in files.items():
            (folder / file).write_text(text)
        monkeypatch.setattr(
            nsa_eval.sections, "__path__", [*nsa_eval.sections.__path__, str(tmp_path / "sections")]
        )
        monkeypatch.delitem(sys.modules, f"nsa_eval.sections.{name}", raising=False)

    yield add
    for name in [name for name in sys.modules if name.startswith("nsa_eval.sections.")]:
        if str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.fixture
def run(tmp_path, write_model, scored) -> Path:
    directory = tmp_path / "run"
    for name in ("nsa", "dense"):
        write_model(directory, name, {"t": scored([1.0, 0.0, 1.0])})
    return directory


# Others may stand between them: a new section must not have to change these tests.
TODAY = ("differences", "result", "heatmaps", "tasks", "notes", "provenance")


def of_today(names):
    return [name for name in names if name in (*TODAY, "words")]


def test_todays_sections_stand_in_this_order():
    assert of_today(sections()) == list(TODAY)


def test_every_file_of_a_section_folder_is_one_that_the_page_reads():
    """Elsewhere it would be shipped and never shown."""
    home = Path(nsa_eval.sections.__file__).parent
    for name in sections():
        files = {path.name for path in (home / name).iterdir() if path.name != "__pycache__"}
        assert {"__init__.py", TEMPLATE} <= files <= {"__init__.py", TEMPLATE, STYLE, SCRIPT}


def test_a_new_folder_is_a_section_with_text_style_chart_samples_and_script(new_section, run):
    new_section()
    page = build_page(Material(run, compare(run, resamples=100)))
    shown = of_today(section.id for section in page.sections)
    assert shown == ["result", "words", "tasks", "notes", "provenance"]
    html = to_html(page)
    assert "nsa wrote 6 words" in html
    assert "rgb(1 2 3)" in html
    assert '<a href="#words">Words</a>' in html
    assert '<rect width="6" height="1"/>' in html
    data = json.loads(re.search(r'id="report-data">(.*?)</script>', html, re.S)[1])
    assert data["sections"]["words"] == {"counts": {"nsa": 6, "dense": 6}}
    assert data["samples"]["words-samples"]["all"]["shown"][0]["id"] == "<b>one"
    assert 'data-samples="words-samples"' in html
    count = sum(bundle["total"] for places in data["samples"].values() for bundle in places.values())
    assert f"This page holds all {count} samples" in html
    assert FILES[SCRIPT] in html
    assert html.rstrip().endswith("report.start();\n</script>\n</body>\n</html>")


def test_a_section_with_nothing_to_show_is_not_there(new_section, run):
    new_section(files={**FILES, "__init__.py": MODULE.replace("not any(counts.values())", "True")})
    page = build_page(Material(run))
    assert "words" not in [section.id for section in page.sections]
    assert "rgb(1 2 3)" not in to_html(page)


def test_a_folder_without_its_registration_is_named(new_section):
    new_section(name="halfway", files={"__init__.py": ""})
    with pytest.raises(TypeError, match=r"section halfway: its __init__\.py needs SECTION"):
        sections()


def test_two_sections_with_the_same_ids_are_refused(new_section, run):
    new_section()
    new_section(name="again")
    with pytest.raises(ValueError, match="two of a list of samples called 'words-samples'"):
        build_page(Material(run))
