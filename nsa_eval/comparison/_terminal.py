"""The comparison in a terminal: on one line per row where it is wide enough, else on two.

Rows of documents too few to tell anything are short: a single document has no interval and no p, and lengths
in a row with the same figures share a line. Files and the page have every row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from nsa_eval._markup import printable
from nsa_eval.comparison._format import Line, legend, lines, verdict_words
from nsa_eval.comparison._types import Comparison

# Columns that the one-line form needs with ordinary names.
_WIDE = 160
_FEW = "too few documents"
_COLOURS = {"better": "green", "worse": "red", "higher": "yellow", "lower": "yellow"}


class TerminalTable:
    """What rich prints for a comparison.

    Args:
        comparison: The comparison.
        lengths: Whether to show the sub-rows per length.
    """

    def __init__(self, comparison: Comparison, *, lengths: bool) -> None:
        """Keeps both; the layout depends on the console."""
        self.comparison, self.lengths = comparison, lengths

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lays the table out for the width at hand."""
        wide = options.max_width >= _WIDE
        yield self._table(wide)
        shown = list(self.comparison.rows)
        shown += [row for main in shown for row in main.lengths if self.lengths]
        few = any(row.too_few_documents for row in shown)
        meaning = f" {_FEW.capitalize()}: no difference could be seen." if few else ""
        yield Text(legend(self.comparison) + meaning, style="dim")
        for note in _gathered(self.comparison.notes):
            yield Text(f"Note: {printable(note)}")

    def _table(self, wide: bool) -> Table:
        several = len(self.comparison.candidates) > 1
        candidate = "score" if several else printable(self.comparison.candidates[0])
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("task" if wide else "task\n  n, won/lost", overflow="fold")
        if wide:
            table.add_column("n", justify="right")
        for name in (candidate, printable(self.comparison.baseline), "difference"):
            table.add_column(Text(name), overflow="fold", min_width=None if wide else 13)
        for name in ("won/lost", "p", "p (Holm)", "MDE") if wide else ():
            table.add_column(name, justify="right")
        table.add_column("verdict" if wide else "verdict\np (Holm), MDE", no_wrap=True)
        for line in _folded([_shortened(line) for line in lines(self.comparison, lengths=self.lengths)]):
            table.add_row(*self._cells(line, wide), style="dim" if line.sub else None)
        return table

    def _cells(self, line: Line, wide: bool) -> list[Text]:
        name = "  " * line.indent + printable(line.name)
        if len(self.comparison.candidates) > 1 and not line.sub:
            name += f": {printable(line.row.candidate)}"
        words = _FEW if line.row.too_few_documents else verdict_words(line.row)
        verdict = Text(words, style=_COLOURS.get(line.row.verdict, ""))
        scores = (line.candidate, line.baseline, line.difference)
        if wide:
            numbers = (line.won_lost, line.p, line.p_adjusted, line.detectable)
            return [
                Text(name),
                Text(line.n),
                *(Text(" ".join(filter(None, s))) for s in scores),
                *map(Text, numbers),
                verdict,
            ]
        short = line.p == line.detectable == "-"  # one document: a line is enough
        counts = Text(f"{name}: " if short and line.n == "1" else f"{name}\n  ")
        counts.append(f"n {line.n}, {line.won_lost}")
        if not short:
            verdict.append(f"\np {line.p_adjusted}, MDE {line.detectable}", style="default")
        return [counts, *(Text("\n".join(filter(None, pair))) for pair in scores), verdict]


def _shortened(line: Line) -> Line:
    """A line of one document without intervals and p, which say nothing then."""
    if line.row.n != 1 or not line.row.too_few_documents:
        return line
    return replace(
        line,
        baseline=(line.baseline[0], ""),
        candidate=(line.candidate[0], ""),
        difference=(line.difference[0], ""),
        p="-",
        p_adjusted="-",
    )


def _folded(found: Sequence[Line]) -> Iterator[Line]:
    """Lengths that follow each other with too few documents and the same figures, on one line."""
    at = 0
    while at < len(found):
        end = at + 1
        while end < len(found) and _alike(found[at], found[end]):
            end += 1
        first, last = found[at], found[end - 1]
        if end - at > 1:
            first = replace(first, name=f"{first.name} to {last.name}", n=f"{first.n} each")
        yield first
        at = end


def _alike(one: Line, other: Line) -> bool:
    """Whether both are lengths of a task that differ in nothing that a line shows but their names."""
    few = one.sub and other.sub and one.row.too_few_documents and other.row.too_few_documents
    return few and replace(one, row=other.row, name=other.name) == other


def _gathered(notes: Sequence[str]) -> Iterator[str]:
    """Notes that say the same of several tasks, as one."""
    said: dict[str, list[str]] = {}
    for note in notes:
        task, colon, text = note.rpartition(": ")
        said.setdefault(colon + text, []).append(task)
    yield from ("; ".join(tasks) + text for text, tasks in said.items())
