"""The words of RULER's prompts, read from the installed lm_eval package and mended where it has a slip.

Nothing is retyped: templates and answer prefixes stand in lm-eval's Python files, which are parsed (not run)
and checked by their SHA-256. Where lm-eval words something otherwise than the official constants.py
(NVIDIA/RULER, scripts/data/synthetic) it is put right by the substitutions declared here; what comes out was
compared with that file and is the same.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from nsa_tasks._errors import TaskDataError
from nsa_tasks.upstream import constants_of, lm_eval_source

_FILES = {
    "niah_utils.py": "f0c219af1139e7f1cef96ce1e13e80083be0e47e5e848440d2ec931a97bcdd9b",
    "prepare_niah.py": "beb37d90132ce928eca803818e5b4940468d1f9b25fa98f0ede8442ffd099ca3",
    "vt_utils.py": "9d71679b554751266436b5aef328ae772c2196398eea869988e3f4e51b78fbcb",
    "cwe_utils.py": "e27159df13850979f262ca2dc1b5eee0501dea6dbcf84f4a0571e3d55d0ab337",
    "fwe_utils.py": "f0bb18891e4d68157512c84f6255695ee03a3e3643371ac6b4ff3287eb492ec5",
    "qa_utils.py": "e12e3220899cb885811cad8593ef03fe08cff8e0a61d774fedd29525c6b5d1c5",
}
"""SHA-256 of lm-eval 0.4.13's files."""

_CORRECTIONS = {"vt_utils.py": (("assgined", "assigned"),)}
"""(lm-eval's, official) by file."""


@dataclass(frozen=True, slots=True)
class Wording:
    """A prompt's template and the start of its answer."""

    template: str
    """With {context} and {query}, and {type_needle_v} where needles are asked for."""
    prefix: str
    """Without the space that parts it from the template; variable tracking's ends with one."""

    def singular(self) -> "Wording":
        """Word a needle request for one answer: the official replacements, in their order."""
        made = []
        for text in (self.template, self.prefix):
            for plural, one in (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer")):
                text = text.replace(plural, one)
            made.append(text)
        return Wording(*made)


@cache
def niah() -> Wording:
    """Needle tasks; the prefix is the one for several answers, `singular()` makes the other."""
    prefix = next(
        (text for text in _fstrings(_module("prepare_niah.py")) if text.endswith(" text are")), None
    )
    if prefix is None:  # cannot be, with the hash checked
        raise TaskDataError("lm_eval's prepare_niah.py has no answer prefix.")
    return Wording(_text("niah_utils.py", "TEMPLATE"), prefix)


@cache
def needle() -> str:
    """A needle sentence, with {type_needle_v}, {key} and {value}."""
    return _text("prepare_niah.py", "NEEDLE")


@cache
def vt() -> Wording:
    """Variable tracking; the prefix takes {num_v} and {query}."""
    return _configured("vt_utils.py", "variable_tracking")


@cache
def cwe() -> Wording:
    """Common words."""
    return _configured("cwe_utils.py")


@cache
def fwe() -> Wording:
    """Frequent words."""
    return _configured("fwe_utils.py")


@cache
def qa() -> Wording:
    """Questions over documents."""
    return _configured("qa_utils.py")


@cache
def document() -> str:
    """A document's heading and text, with {i} and {document}."""
    return _text("qa_utils.py", "DOCUMENT_PROMPT")


def _configured(file: str, name: str | None = None) -> Wording:
    config = constants_of(_module(file))["CONFIG"]
    found = config if name is None else config[name]
    return Wording(_mended(file, found["template"]), _mended(file, found["answer_prefix"]).removeprefix(" "))


def _text(file: str, name: str) -> str:
    return _mended(file, str(constants_of(_module(file))[name]))


def _mended(file: str, text: str) -> str:
    for wrong, right in _CORRECTIONS.get(file, ()):
        text = text.replace(wrong, right)
    return text


@cache
def _module(file: str) -> ast.Module:
    return lm_eval_source(f"ruler/{file}", sha256=_FILES[file])


def _fstrings(module: ast.Module) -> Iterator[str]:
    """Every f-string of a module as a template: what it fills in stands in braces."""
    for node in ast.walk(module):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
                for part in node.values
                if isinstance(part, ast.Constant | ast.FormattedValue)
            )
