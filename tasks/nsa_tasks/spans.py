"""Which tokens of a request hold given stretches of its text, for those who watch a model read it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

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


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerTokens:
    """An answer as it would follow a prompt that says it somewhere."""

    whole: range
    """Its tokens where the prompt says it."""
    follow: tuple[int, ...]
    """Token ids of the reply that it is, white space before it among them; none where they can't be told."""
    sources: tuple[range, ...]
    """For each of these tokens the prompt's tokens that say the same characters: what has to be read to
    predict it. Empty for white space. Where `follow` is empty, the whole answer, for its first token."""


def answer_tokens(
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    answers: Sequence[tuple[int, int]],
    *,
    add_bos_token: bool | None = None,
) -> tuple[list[int], list[AnswerTokens]]:
    """Tokenise a request, and tell from which of its tokens each right reply can be copied.

    Args:
        tokenizer: The model's.
        text: The request's text, chat template included.
        answers: Where it says the answers, as (first character, character after the last), none of them
            empty.
        add_bos_token: As the engine's setting of that name.

    Returns:
        The request's token ids, special tokens included, and its answers.
    """
    tokens = RequestTokens(tokenizer, add_bos_token=add_bos_token)
    ids, spans = token_spans(tokenizer, text, answers, add_bos_token=add_bos_token)
    found = []
    for (first, last), span in zip(answers, spans, strict=True):
        blank = "" if not text or text[-1].isspace() else " "
        begins = len(text) + len(blank)
        encoded = tokens.encode(f"{text}{blank}{text[first:last]}")
        if encoded.starts is None or encoded.ends is None:
            found.append(AnswerTokens(whole=span, follow=(), sources=(span,)))
            continue
        new = np.flatnonzero(encoded.ends > len(text))
        joined = not len(new) or encoded.starts[new[0]] < len(text)  # with the end of the prompt
        if joined or encoded.ids[: new[0]] != ids[: new[0]]:
            found.append(AnswerTokens(whole=span, follow=(), sources=(span,)))
            continue
        # The characters of each new token that are the answer's, and where the prompt says them.
        edges = [(int(encoded.starts[i]) - begins, int(encoded.ends[i]) - begins) for i in new]
        places = [(first + max(start, 0), first + end) for start, end in edges]
        said = [place for place in places if place[1] > place[0]]
        ranges = iter(token_spans(tokenizer, text, said, add_bos_token=add_bos_token)[1])
        sources = tuple(next(ranges) if place[1] > place[0] else range(0) for place in places)
        found.append(AnswerTokens(whole=span, follow=tuple(encoded.ids[i] for i in new), sources=sources))
    return ids, found
