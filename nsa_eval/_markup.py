"""Text from outside in Markdown, LaTeX and CSV: what it holds stays text."""

from __future__ import annotations

import unicodedata

_MD_ESCAPED = "\\`*_[]|"
_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: "\\" + character for character in "{}$&%#_"},
}


def printable(text: str) -> str:
    """Line breaks and control characters (terminal escapes among them) as visible escapes."""
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in hidden else c for c in text)


def md(text: str) -> str:
    """Text inside of a Markdown table."""
    text = "".join("\\" + c if c in _MD_ESCAPED else c for c in printable(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def tex(text: str) -> str:
    """Text in LaTeX."""
    return "".join(_TEX.get(character, character) for character in printable(text))


def tex_number(cell: str) -> str:
    """Signs in math mode, so that a minus is not a hyphen."""
    cell = cell.replace("%", r"\%").replace("-", "$-$").replace("+", "$+$").replace("<", "$<$")
    # After a line's \\ a bracket would be read as its optional argument.
    return f"{{{cell}}}" if cell.startswith("[") else cell


def csv_cell(value: object) -> object:
    """A CSV cell; a spreadsheet runs text that begins so as a formula, and names come from outside."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return "" if value is None else value
