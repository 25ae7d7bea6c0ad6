"""BABILong's wording: the official file's, read without running it, or lm-eval's."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsa_tasks._errors import TaskDataError
from nsa_tasks.babilong.sources import OFFICIAL
from nsa_tasks.data import load_data
from nsa_tasks.upstream import lm_eval_yaml

_LM_EVAL = {
    "qa1": "d5eeab91da0ae90650094156eec1b2657a2ed8646f2782a305fecaee81a05940",
    "qa2": "11eea4534c212bd57c94933e696bfff9d39fd1296e1052c214ce092ea454b0f6",
    "qa3": "128103c011c2fde1dc5e402df9961f53acdbb8bd2a66fa1e83bac815025192a0",
    "qa4": "79650ac8ab389e99dedc80711868fec2eebcfa353dd2ffc85829663beff6270f",
    "qa5": "14b8c3c629f76e6b1f2b8f9bd7aa171387119c58d3a614cdf1835a71dd908f11",
    "qa6": "db484c48a0fbf046c45061138d4f4859725af9d156bb8850d3a63bf90a2dc259",
    "qa7": "ccec80c55fac6984a8f5372efce5f37b90b7428995b41417c2663b1aa8322638",
    "qa8": "e48123c7e4086ef581d6295b3d22826d0ee696b961564b8dcd23279ae328cf7a",
    "qa9": "bc902f463e188764b58b8857776709c5f818036f17072e4c9153333eefd8529e",
    "qa10": "d71c09446930dce3f9e8fad96ce8a6b59061e66c000fb94aae1fe8668b816a23",
    "qa11": "0ea8632610396a25ef978aafafe68a607282d20636d5107aadef06b7cabc7ff7",
    "qa12": "d25d9cb56207fc95a5b80cd280fc6a47ccc2a3f069a4423ba0f0012fc8d8098b",
    "qa13": "e767a305d0f4ebd062b28dd84f8ba92a19802fc8aa357bae7b00dd7a354ce347",
    "qa14": "8f2d00ef4eb63200f13787774ec0a652f4cc2ae908d209ac4040af5f54a909c7",
    "qa15": "a91c4b2b0ddb8d0a6f95e26c3997f90897db882f68afa36dac9160c701d19737",
    "qa16": "fc808aa5241436f3a01e7fdf6130a72b8c7f979aa88b96876aa40a86d7997147",
    "qa17": "e5a56cf16cf7fefe2ae91c9ff19f5bcf8924e12afd2ed1c039ee73fc1ae6a784",
    "qa18": "d29bbd6210fcedd2eddfc42399f302330e184a87be38ec8c23fda0323ce8c310",
    "qa19": "c24022ae01ffc382017ccf58d17e9e64c7fe76c90da936143b38fb2dbdb99753",
    "qa20": "f0bf2d626908be4773072cb0f2bb6e7e943cc47ff5237dca0db8dd442f2c4721",
}
"""SHA-256 of lm-eval 0.4.13's tasks/babilong/babilong_qa*.yaml."""

PARTS = ("instruction", "examples", "post_prompt")
"""Of an official prompt."""


@dataclass(frozen=True, slots=True)
class Wording:
    """How a task's prompt is worded around context and question."""

    template: str
    """A text for `str.format`, with places for `context`, `question` and the names of `parts`."""
    parts: Mapping[str, str]

    def prompt(self, context: str, question: str) -> str:
        """Put the prompt around a context; white space around the context and the whole is dropped."""
        return self.template.format(**self.parts, context=context.strip(), question=question).strip()


def official(qa: str, root: str) -> Wording:
    """Read a task's official wording.

    Args:
        qa: "qa1" to "qa20".
        root: The parameter `data_root`.

    Raises:
        TaskDataError: The file isn't under the data root, or is another one.
    """
    data = load_data(OFFICIAL, root)
    return parse_official(data.records[0]["text"], qa, data.places[0])


def parse_official(text: str, qa: str, place: str | Path) -> Wording:
    """Take a task's wording out of the official file's text.

    Raises:
        TaskDataError: It isn't there, or is no plain text.
    """
    known: dict[str, Any] = {}
    try:
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                known[statement.targets[0].id] = _value(statement.value, known)
        parts = known["DEFAULT_PROMPTS"][qa]
        return Wording(known["DEFAULT_TEMPLATE"], {name: parts[name] for name in PARTS})
    except (SyntaxError, ValueError, KeyError, TypeError) as error:
        raise TaskDataError(f"{place}: the prompt of {qa} can't be read: {error!r}.") from None


def _value(node: ast.expr, known: Mapping[str, Any]) -> Any:  # noqa: ANN401  (text, or nested mappings of it)
    """A literal's value, or that of an f-string of names assigned before."""
    if not isinstance(node, ast.JoinedStr):
        return ast.literal_eval(node)
    pieces = []
    for piece in node.values:
        if isinstance(piece, ast.FormattedValue):
            if not isinstance(piece.value, ast.Name):
                raise ValueError(f"line {node.lineno}: an f-string of more than names")
            pieces.append(str(known[piece.value.id]))
        else:
            pieces.append(str(ast.literal_eval(piece)))
    return "".join(pieces)


def lm_eval(qa: str) -> Wording:
    """Read a task's wording in lm-eval: description, solved examples, context and question, one a line.

    It is the text that lm-eval sends to a model without a chat template; with one, it parts description and
    examples into messages of their own.

    Raises:
        TaskDataError: lm-eval has no such file, or another version of it.
    """
    config = lm_eval_yaml(f"babilong/babilong_{qa}.yaml", sha256=_LM_EVAL[qa])
    shots = "".join(
        f"{shot['input'].strip()}\n{shot['question'].strip()} {shot['target']}\n\n"
        for shot in config["fewshot_config"]["samples"][:2]
    )
    template = "{description}{examples}{context}\n{question}"
    return Wording(template, {"description": config["description"], "examples": shots})
