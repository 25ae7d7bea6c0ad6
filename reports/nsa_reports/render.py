"""Turn a `Page` into one HTML file that needs nothing else to be read.

Safety: templates escape everything; free text that scripts need travels as escaped JSON and is shown through
`textContent`; a content security policy lets only the script named by its hash run and nothing be fetched.
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

from nsa_reports import _colours, _tables, samples
from nsa_reports import _format as fmt
from nsa_reports._shades import Shades
from nsa_reports.charts import style_class
from nsa_reports.curve_figures import curve_pictures, save_curve_figures
from nsa_reports.figures import Picture, combined_figures, save_figures
from nsa_reports.page import SCRIPT, STYLE, TEMPLATE, Page, SectionData, SectionView
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
        tokens=fmt.tokens,
        count=fmt.count,
        parameters=fmt.parameters,
        level=fmt.level,
        breakable=_breakable,
    )
    env.globals.update(
        bar_width=int(_tables.BAR_WIDTH),
        score_gradient=_colours.css_gradient(_colours.SCORE),
        difference_gradient=_colours.css_gradient(_colours.DIFFERENCE),
        style_class=style_class,
    )
    return env


def to_html(
    page: Page,
    *,
    limits: SampleLimits = _DEFAULT_LIMITS,
    figures: Mapping[str, Sequence[Picture]] | None = None,
) -> str:
    """The page as a string.

    Args:
        page: what to show.
        limits: how many samples to embed, and how much of each.
        figures: pictures to offer for download, by the id of the section whose grids and curves they show.

    Raises:
        ValueError: a script gets what JSON does not have.
    """
    short = fmt.short_names(page.models)
    embedded = samples.embed(page, limits)
    shown, total = samples.left_out(embedded)
    shades = Shades()
    env = environment(page.sections)
    env.globals.update(
        shade=shades,
        table=functools.partial(_tables.build_table, page.models),
        length_table=functools.partial(_tables.length_table, page.models),
    )
    anchors = {section.id: section.anchors for section in page.sections}
    bodies = [
        env.get_template(f"{section.id}/{TEMPLATE}").render(
            page=page,
            data=section.data,
            figures=[_links(picture) for picture in (figures or {}).get(section.id, ())],
            anchors=[anchor for key, listed in anchors.items() if key != section.id for anchor in listed],
            samples_shown=shown,
            samples_total=total,
        )
        for section in page.sections
    ]
    script = _script(page.sections)
    data = {
        "models": list(page.models),
        "short": [short[name] for name in page.models],
        "samples": embedded,
        "sections": {section.id: section.data.script() for section in page.sections},
    }
    return env.get_template("base.html.j2").render(
        page=page,
        bodies=[Markup(body) for body in bodies],
        style=Markup(
            "".join([_asset("page.css"), *(section.asset(STYLE) for section in page.sections), shades.style])
        ),
        script=Markup(script),
        policy=_policy(script),
        data=Markup(samples.script_json(data)),
    )


def render(
    page: Page, *, out: Path, limits: SampleLimits = _DEFAULT_LIMITS, figures_in: Path | None = None
) -> Path:
    """Write the page: one file, with a figure of each grid in it.

    Args:
        page: what to show.
        out: the HTML file; its folder is made if needed. An old file is replaced in one step.
        limits: how many samples to embed, and how much of each.
        figures_in: the folder of a run, to put `figures/*.png` and `figures/*.svg` of every heatmap and curve
            into; the page doesn't need them.

    Returns:
        `out`.

    Raises:
        OSError: the folder cannot be written.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    pictures = {section.id: _pictures(section.data, figures_in, taken) for section in page.sections}
    html = to_html(page, limits=limits, figures=pictures)
    partial = out.with_name(f"{out.name}.partial")
    # a lone surrogate in somebody's file name must not lose the report
    partial.write_text(html, encoding="utf-8", errors="replace", newline="\n")
    os.replace(partial, out)
    return out


def _pictures(data: SectionData, folder: Path | None, taken: set[str]) -> tuple[Picture, ...]:
    """A section's figures for papers, of its grids and then its curves; in a run's folder if one is given."""
    if folder is None:
        return (*combined_figures(data.grids()), *curve_pictures(data.curves()))
    written = save_figures(data.grids(), Path(folder), taken=taken)
    return (
        *(group.combined.read(Path(folder)) for group in written),
        *save_curve_figures(data.curves(), Path(folder), taken=taken),
    )


def _breakable(name: str) -> Markup:
    """A name that a narrow column breaks at its joints, not inside of words."""
    return Markup("<wbr>").join(fmt.joints(name))


def _script(sections: Sequence[SectionView]) -> str:
    """The page's script: the shell, each section's own in a scope of its own, and the start."""
    own = [source for section in sections if (source := section.asset(SCRIPT))]
    return "\n".join([_asset("page.js"), *(f"{{\n{source}\n}}" for source in own), "report.start();\n"])


def _asset(name: str) -> str:
    return resources.files("nsa_reports").joinpath("templates", name).read_text(encoding="utf-8")


def _links(picture: Picture) -> list[tuple[str, str, str]]:
    """(label, file name, address) of each form of a picture that the page offers for download."""
    forms = (("PNG", "png", "image/png", picture.png), ("PDF", "pdf", "application/pdf", picture.pdf))
    return [
        (label, f"{picture.name}.{ending}", f"data:{kind};base64,{base64.b64encode(content).decode()}")
        for label, ending, kind, content in forms
        if content
    ]


def _policy(script: str) -> str:
    """A content security policy under which only this script runs and nothing is loaded from anywhere.

    Downloads of what the page itself holds are links, not loads; the one image is the empty icon.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:"
