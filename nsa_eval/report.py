"""From a run directory to its HTML report."""

from pathlib import Path

from nsa_eval.compare import Comparison, ProtocolMismatchError, compare
from nsa_eval.errors import UserError
from nsa_eval.results import Run, load_run


def render_report(directory: str | Path, *, out: str | Path | None = None, title: str | None = None) -> Path:
    """Writes the HTML report of a run directory, and its figures beside it.

    The page needs nothing else to be read. Models that can't be compared are shown without differences, and
    the page says why. Example:

        render_report("runs/quickstart", out="page.html")

    Args:
        directory: A run directory, one that lm-eval wrote by itself too; "DIR:model" for one model of it.
        out: The HTML file; by default report.html in the directory.
        title: Heading; by default the title of run.yaml's `report`, else the run's name.

    Returns:
        The HTML file.

    Raises:
        UserError: Not a run directory, damaged files, or a file that can't be written.
    """
    # Charting libraries take a second to import: not needed to say that a path is wrong.
    run = load_run(directory)
    from nsa_eval.view import build_view
    from nsa_reports import render

    comparison, refusal = _compare(run)
    section = (run.config or {}).get("report")
    if title is None and isinstance(section, dict) and section.get("title"):
        title = str(section["title"])
    view = build_view(run, comparison, title=title, refusal=refusal)
    target = Path(out).expanduser() if out is not None else run.directory / "report.html"
    try:
        return render(view, out=target)
    except OSError as error:
        raise UserError(
            f"{target}: the report can't be written ({error.strerror or error}). Choose another file with -o."
        ) from error


def _compare(run: Run) -> tuple[Comparison | None, tuple[str, ...]]:
    """The comparison as run.yaml wants it, or why there is none."""
    if len(run.models) < 2:
        return None, ()
    section = (run.config or {}).get("compare")
    settings = section if isinstance(section, dict) else {}
    options = {
        key: settings[key] for key in ("confidence", "resamples", "seed") if settings.get(key) is not None
    }
    try:
        return compare(run, **options), ()
    except ProtocolMismatchError as error:
        return None, error.differences
    except UserError as error:
        return None, (str(error),)
