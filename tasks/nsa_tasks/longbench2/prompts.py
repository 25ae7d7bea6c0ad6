"""LongBench v2's prompts: official templates filled in, and cut in the middle on the prompt's own tokens."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIELDS = {
    "$DOC$": "context",
    "$Q$": "question",
    "$C_A$": "choice_A",
    "$C_B$": "choice_B",
    "$C_C$": "choice_C",
    "$C_D$": "choice_D",
}
_REPLY = "$COT$"


def fill(template: str, record: Mapping[str, Any], *, context: str = "", reply: str = "") -> str:
    """Fill a template in: each field stripped, one after the other.

    The order is the official one (`pred.py`): a place holder that stands in a text that was filled in before
    is filled in as well.

    Args:
        template: An official template.
        record: Question and choices.
        context: The long text.
        reply: The first reply, of the second request.
    """
    fields = {**record, "context": context}
    for mark, field in _FIELDS.items():
        template = template.replace(mark, str(fields[field]).strip())
    return template.replace(_REPLY, reply.strip())


def cut_middle(prompt: str, tokenizer: "PreTrainedTokenizerBase", limit: int) -> tuple[str, int]:
    """Cut a prompt of more than `limit` tokens to its first and last half, as the official `query_llm` does.

    Tokens are the prompt's own, special ones that the tokenizer adds included, before any chat template.
    Decoding leaves special tokens out. An odd limit keeps one token more of the end.

    Returns:
        The prompt, and how many tokens it had before.
    """
    ids: list[int] = tokenizer(prompt, verbose=False)["input_ids"]
    if len(ids) <= limit:
        return prompt, len(ids)
    half = limit // 2
    kept = ids[:half] + ids[half - limit :]
    return str(tokenizer.decode(kept, skip_special_tokens=True)), len(ids)
