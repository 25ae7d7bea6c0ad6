"""Turn a `Page` into one HTML file that needs nothing else to be read.

Safety: templates escape everything; free text that scripts need travels as escaped JSON and is shown through
`textContent`; a content security policy lets only the two scripts named by hash run and nothing be fetched.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from jinja2 import ChoiceLoader, DictLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nsa_reports import _colours, _tables, charts, samples
from nsa_reports import _format as fmt
from nsa_reports.figures import GroupFigures, save_figures
from nsa_reports.page import SCRIPT, STYLE, TEMPLATE, Page, SectionView, check_distinct
from nsa_reports.samples import SampleLimits

_DEFAULT_LIMITS = SampleLimits()


def environment(sections: Sequence[SectionView] = ()) -> Environment:
    """The Jinja environment of the report: autoescape on, and an undefined name is an error, not a blank.

    Args:
        sections: Those whose templates it can load, as `ID/section.html.j2`.
    """
    own = {f"{section.id}/{TEMPLATE}": section.template() for section in sections}
    env = Environment(
        loader=ChoiceLoader([DictLoader(own), PackageLoader("nsa_reports", "templates")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(
        tokens=fmt.tokens, depth=fmt.depth, count=fmt.count, parameters=fmt.parameters, level=fmt.level
    )
    env.globals.update(
        bar_width=int(_tables.BAR_WIDTH),
        score_gradient=_colours.css_gradient(_colours.SCORE),
        difference_gradient=_colours.css_gradient(_colours.DIFFERENCE),
    )
    return env


def to_html(
    page: Page,
    *,
    limits: SampleLimits = _DEFAULT_LIMITS,
    figures: Mapping[str, Sequence[GroupFigures]] | None = None,
) -> str:
    """The page as a string.

    Args:
        page: what to show.
        limits: how many samples to embed, and how much of each.
        figures: files saved by `save_figures`, by the id of the section whose grids they show, to be linked.

    Raises:
        ValueError: two sections have a chart of the same id, or a script gets what JSON does not have.
    """
    short = fmt.short_names(page.models)
    drawn = {section.id: section.data.charts() for section in page.sections}
    check_distinct("chart", [key for found in drawn.values() for key in found])
    embedded = samples.embed(page, limits)
    shown, total = samples.left_out(embedded)
    env = environment(page.sections)
    env.globals.update(
        table=functools.partial(_tables.build_table, page.models),
        length_table=functools.partial(_tables.length_table, page.models),
    )
    anchors = {section.id: section.anchors for section in page.sections}
    bodies = [
        env.get_template(f"{section.id}/{TEMPLATE}").render(
            page=page,
            data=section.data,
            figures=tuple((figures or {}).get(section.id, ())),
            anchors=[anchor for key, listed in anchors.items() if key != section.id for anchor in listed],
            samples_shown=shown,
            samples_total=total,
        )
        for section in page.sections
    ]
    # without a chart there is nothing to draw, and 4.8 MB to save
    library = charts.library() if any(drawn.values()) else ""
    script = _script(page.sections)
    data = {
        "models": list(page.models),
        "short": [short[name] for name in page.models],
        "charts": {key: chart for found in drawn.values() for key, chart in found.items()},
        "samples": embedded,
        "sections": {
            section.id: {"charts": list(drawn[section.id]), "data": section.data.script()}
            for section in page.sections
        },
    }
    return env.get_template("base.html.j2").render(
        page=page,
        bodies=[Markup(body) for body in bodies],
        style=Markup("".join([_asset("page.css"), *(section.asset(STYLE) for section in page.sections)])),
        script=Markup(script),
        library=Markup(library),
        policy=_policy([script, library] if library else [script]),
        data=Markup(samples.script_json(data)),
    )


def render(page: Page, *, out: Path, limits: SampleLimits = _DEFAULT_LIMITS) -> Path:
    """Write the page and, beside it, `figures/*.png` and `figures/*.svg`.

    Args:
        page: what to show.
        out: the HTML file; its folder is made if needed. An old file is replaced in one step.
        limits: how many samples to embed, and how much of each.

    Returns:
        `out`.

    Raises:
        OSError: the folder cannot be written.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    figures = {
        section.id: save_figures(section.data.grids(), out.parent, taken=taken) for section in page.sections
    }
    html = to_html(page, limits=limits, figures=figures)
    partial = out.with_name(f"{out.name}.partial")
    # a lone surrogate in somebody's file name must not lose the report
    partial.write_text(html, encoding="utf-8", errors="replace", newline="\n")
    os.replace(partial, out)
    return out


def _script(sections: Sequence[SectionView]) -> str:
    """The page's script: the shell, each section's own in a scope of its own, and the start."""
    own = [source for section in sections if (source := section.asset(SCRIPT))]
    return "\n".join([_asset("page.js"), *(f"{{\n{source}\n}}" for source in own), "report.start();\n"])


def _asset(name: str) -> str:
    return resources.files("nsa_reports").joinpath("templates", name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy under which only these scripts run and nothing is loaded from anywhere."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:"
