"""From a run directory to its HTML report."""

from collections.abc import Sequence
from pathlib import Path

from nsa_eval._paths import user_path
from nsa_eval.comparison import Comparison, compare_run
from nsa_eval.errors import UserError
from nsa_eval.results import Run, load_run


def render_report(
    directory: str | Path,
    *,
    out: str | Path | None = None,
    title: str | None = None,
    comparison: Comparison | None = None,
    refusal: Sequence[str] = (),
    run: Run | None = None,
) -> Path:
    """Writes the HTML report of a run directory.

    The page needs nothing else to be read. A run's own report, report.html in its directory, has figures for
    papers beside it, in `figures`, and in `tables` every score, the figures of its sweeps, and the tables
    that its config lays out; one that is written elsewhere is that one file. Models that can't be compared
    are shown without differences, and the page says why. Example:

        render_report("runs/quickstart", out="page.html")

    Args:
        directory: A run directory, one that lm-eval wrote by itself too; "DIR:model" for one model of it.
        out: The HTML file; by default report.html in the directory.
        title: Heading; by default the title of run.yaml's `report`, else the run's name, or its
            models and tasks where that is a hash.
        comparison: What `compare` found for the run's models. Where neither this nor `refusal` is given, it
            is read from comparison.json if that was made of the same results, else computed.
        refusal: Why the models were not compared, a line each.
        run: What `load_run` read from the directory, if it is at hand; it isn't read again then.

    Returns:
        The HTML file.

    Raises:
        UserError: Not a run directory, damaged files, or a file that can't be written.
    """
    # Charting libraries take a second to import: not needed to say that a path is wrong.
    run = load_run(directory) if run is None else run
    from nsa_eval.budgets import study_of, write_budgets
    from nsa_eval.material import Material
    from nsa_eval.sections import build_page
    from nsa_eval.tables import fill_tables, write_scores, write_table
    from nsa_reports import render

    if comparison is None and not refusal:
        compared = compare_run(run, stored=run.directory / "comparison.json")
        comparison, refusal = compared.comparison, compared.refusal
    section = (run.config or {}).get("report")
    if title is None and isinstance(section, dict) and section.get("title"):
        title = str(section["title"])
    material = Material(run, comparison, refusal)
    page = build_page(material, title=title)
    own = run.directory / "report.html"
    target = user_path(out) if out is not None else own
    # Elsewhere figures would meet those of other reports.
    figures_in = own.parent if target.resolve() == own.resolve() else None
    try:
        if figures_in is not None:
            write_scores(material, figures_in / "tables")
            study = study_of(material)
            if study is not None:
                write_budgets(study, figures_in / "tables")
            for table in fill_tables(material):
                write_table(table, figures_in / "tables")
        return render(page, out=target, figures_in=figures_in)
    except OSError as error:
        raise UserError(
            f"{target}: the report can't be written ({error.strerror or error}). Choose another file with -o."
        ) from error
