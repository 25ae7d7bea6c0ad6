"""A comparison as a table: for the terminal, as Markdown, LaTeX (booktabs), CSV or JSON.

Every format shows the same numbers in the same units. Scores within 0..1 are shown times 100: 93.1 is 93.1
points, and a difference of +2.5 is 2.5 points. Other metrics (perplexity, say) are shown as they are and
marked "[raw]".
"""

from typing import Literal, overload

from nsa_eval.comparison._terminal import TerminalTable
from nsa_eval.comparison._types import Comparison
from nsa_eval.comparison._written import to_csv, to_latex, to_markdown
from nsa_eval.errors import UserError

Format = Literal["table", "md", "latex", "csv", "json"]
FORMATS: tuple[Format, ...] = ("table", "md", "latex", "csv", "json")


@overload
def to_table(
    comparison: Comparison, format: Literal["table"] = "table", *, lengths: bool = True
) -> TerminalTable: ...
@overload
def to_table(
    comparison: Comparison, format: Literal["md", "latex", "csv", "json"], *, lengths: bool = True
) -> str: ...
@overload
def to_table(comparison: Comparison, format: str, *, lengths: bool = True) -> TerminalTable | str: ...
def to_table(comparison: Comparison, format: str = "table", *, lengths: bool = True) -> TerminalTable | str:
    """The comparison as a table.

    Args:
        comparison: What `compare` returned.
        format: "table" for something that rich prints; "md", "latex", "csv" or "json" for text.
        lengths: Whether tasks with several context lengths get a sub-row for each. CSV and JSON always have
            them.

    Raises:
        UserError: Unknown format.
    """
    match format:
        case "table":
            return TerminalTable(comparison, lengths=lengths)
        case "md":
            return to_markdown(comparison, lengths=lengths)
        case "latex":
            return to_latex(comparison, lengths=lengths)
        case "csv":
            return to_csv(comparison)
        case "json":
            return comparison.model_dump_json(indent=2) + "\n"
    raise UserError(f"unknown table format {format!r}; one of: {', '.join(FORMATS)}")
