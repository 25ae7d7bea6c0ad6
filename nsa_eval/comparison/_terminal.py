"""The comparison in a terminal: on one line per row where it is wide enough, else on two."""

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from nsa_eval._markup import printable
from nsa_eval.comparison._format import Line, legend, lines, verdict_words
from nsa_eval.comparison._types import Comparison

# Columns that the one-line form needs with ordinary names.
_WIDE = 160
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
        yield Text(legend(self.comparison), style="dim")
        for note in self.comparison.notes:
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
        for line in lines(self.comparison, lengths=self.lengths):
            table.add_row(*self._cells(line, wide), style="dim" if line.sub else None)
        return table

    def _cells(self, line: Line, wide: bool) -> list[Text]:
        name = "  " * line.indent + printable(line.name)
        if len(self.comparison.candidates) > 1 and not line.sub:
            name += f": {printable(line.row.candidate)}"
        verdict = Text(verdict_words(line.row).replace(" (", "\n("), style=_COLOURS.get(line.row.verdict, ""))
        scores = (line.candidate, line.baseline, line.difference)
        if wide:
            numbers = (line.won_lost, line.p, line.p_adjusted, line.detectable)
            return [
                Text(name),
                Text(line.n),
                *(Text(" ".join(s)) for s in scores),
                *map(Text, numbers),
                verdict,
            ]
        verdict.append(f"\np {line.p_adjusted}, MDE {line.detectable}", style="default")
        counts = Text(f"{name}\n  n {line.n}, {line.won_lost}")
        return [counts, *(Text("\n".join(pair)) for pair in scores), verdict]
