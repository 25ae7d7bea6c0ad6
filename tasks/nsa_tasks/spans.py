"""Which tokens of a request hold given stretches of its text, for those who watch a model read it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nsa_tasks._tokens import RequestTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_spans(
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    characters: Sequence[tuple[int, int]],
    *,
    add_bos_token: bool | None = None,
) -> tuple[list[int], list[range]]:
    """Tokenise a request, and find stretches of its text in it.

    A token that holds only a part of a stretch counts as inside.

    Args:
        tokenizer: The model's.
        text: The request's text, chat template included.
        characters: Stretches as (first character, character after the last), none of them empty.
        add_bos_token: As the engine's setting of that name.

    Returns:
        The request's token ids, special tokens included, and the places of each stretch among them.
    """
    tokens = RequestTokens(tokenizer, add_bos_token=add_bos_token)
    _, spans = tokens.spans(text, characters)
    return tokens.ids(text), [range(start, end) for start, end in spans]
