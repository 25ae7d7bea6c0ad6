"""Tells where a model looks: one prefill of a prompt, of which the last queries' blocks are recorded."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nsa_eval._devices import device_name
from nsa_eval.engine._prompts import PromptEncoder
from nsa_eval.engine._requests import Emit, Request
from nsa_eval.looks import COLUMNS, QUERIES, AnswerLook, BlockGrid, Look, NotLooked, Picture
from nsa_eval.store import Cost, Response
from nsa_models.looking import blocks_of, chosen_blocks, forced_blocks, hold
from nsa_tasks.spans import AnswerTokens, answer_tokens

if TYPE_CHECKING:
    from nsa_kernels import BlockGeometry
    from nsa_models import NSADecoderForCausalLM

# Blocks on both sides of an answer that a picture shows one by one.
_AROUND = 8
_TOKEN_CHARACTERS = 14


def look_all(
    model: PreTrainedModel, prompts: PromptEncoder, requests: Sequence[Request], emit: Emit, *, chunk: int
) -> None:
    """Look at prompts one after another; a request's arguments are its text and what to look for.

    The latter is a mapping of `answers`, their characters in the text, and `picture`, whether one is wanted.

    Args:
        model: A decoder with Native Sparse Attention.
        prompts: Makes token ids.
        requests: Those without a response.
        emit: Receives each response as soon as it is there: a `Look` or `NotLooked` as JSON.
        chunk: Tokens that are read at once.
    """
    for request in requests:
        text, wanted = request.arguments
        began = time.perf_counter()
        prompt = prompts.generation(text, budget=0, origin=request.origin, truncation=request.truncation)
        ids, answers = answer_tokens(
            prompts.tokenizer, text, wanted["answers"], add_bos_token=prompts.add_bos_token
        )
        found: Look | NotLooked = NotLooked(
            why="its answers can't be told among the tokens that the model reads"
        )
        read = len(prompt.context)
        if ids[:read] == prompt.context and all(answer.whole.stop <= read for answer in answers):
            words = _words(prompts, [*prompt.context[-QUERIES:], *answers[0].follow[:-1]])
            found = look(
                cast("NSADecoderForCausalLM", model),
                prompt.context,
                answers,
                words=words if wanted["picture"] else None,
                chunk=chunk,
            )
        cost = Cost(
            prefill_seconds=time.perf_counter() - began,
            prompt_tokens=read,
            device=device_name(model.device),
        )
        emit(
            {
                request.key: Response(
                    value=found.model_dump_json(), prompt_tokens=read, new_tokens=0, cost=cost
                )
            }
        )


def look(
    model: NSADecoderForCausalLM,
    tokens: Sequence[int],
    answers: Sequence[AnswerTokens],
    *,
    words: Sequence[str] | None = None,
    chunk: int,
) -> Look:
    """Look at one prompt.

    Args:
        model: A decoder with Native Sparse Attention.
        tokens: The prompt's ids.
        answers: Where the prompt says each answer, and how it would follow.
        words: The queries' own tokens, for a picture: those of the prompt's end and of the first answer.
            None: no picture.
        chunk: Tokens that are read at once.
    """
    geometry = model.config.geometry
    # [L, Q, H_kv, n]; the last token of a reply is only predicted.
    blocks, following = chosen_blocks(
        model, tokens, [answer.follow[:-1] for answer in answers], last=QUERIES, chunk=chunk
    )
    position = len(tokens) - 1
    found = [
        _answer_look(answer, blocks, after, position, geometry)
        for answer, after in zip(answers, following, strict=True)
    ]
    picture = None
    if words is not None:
        rows = torch.cat([blocks, following[0]], dim=1)
        marked = {block for answer in found for block in answer.blocks}
        own = (position + following[0].shape[1]) // geometry.select_block
        picture = picture_of(rows, own, marked, words, asked=blocks.shape[1])
    return Look(
        grid=BlockGrid(
            layers=blocks.shape[0],
            groups=blocks.shape[2],
            select_block=geometry.select_block,
            select_count=geometry.select_count,
            first_blocks=geometry.first_blocks,
            last_blocks=geometry.last_blocks,
            window=geometry.window,
        ),
        prompt_tokens=len(tokens),
        answers=tuple(found),
        picture=picture,
    )


def _answer_look(
    answer: AnswerTokens, blocks: Tensor, after: Tensor, position: int, geometry: BlockGeometry
) -> AnswerLook:
    """Whether an answer's blocks were chosen: by the prompt's last query, and by those that predict it.

    Args:
        answer: Where the prompt says it.
        blocks: Chosen by the prompt's last queries, [L, Q, H_kv, n].
        after: Chosen by the answer's own tokens behind the prompt, [L, A, H_kv, n].
        position: Of the prompt's last token.
        geometry: Of the model's blocks.
    """
    wanted = blocks_of(answer.whole, geometry)
    predicting = torch.cat([blocks[:, -1:], after], dim=1)
    return AnswerLook(
        first=answer.whole[0],
        last=answer.whole[-1],
        blocks=wanted,
        held=tuple(hold(blocks[:, -1], wanted).sum(-1).tolist()),
        by_token=tuple(
            int(hold(predicting[:, index], blocks_of(source, geometry)).sum())
            for index, source in enumerate(answer.sources)
            if source
        ),
        forced=set(forced_blocks(position, geometry)).issuperset(wanted),
        in_window=answer.whole[0] > position - geometry.window,
    )


def _words(prompts: PromptEncoder, tokens: Sequence[int]) -> list[str]:
    return [str(prompts.tokenizer.decode([token]))[:_TOKEN_CHARACTERS] for token in tokens]


def picture_of(
    blocks: Tensor, own: int, marked: Collection[int], words: Sequence[str], *, asked: int
) -> Picture:
    """Count for each query how many layers and groups chose each column.

    Args:
        blocks: Chosen blocks [L, Q, H_kv, n].
        own: The last query's own block, the last there is.
        marked: Blocks that get columns of their own.
        words: The queries' tokens.
        asked: How many of the queries are the prompt's.
    """
    columns = columns_around(own + 1, marked)
    column_of = torch.zeros(own + 2, dtype=torch.long)
    for index, (first, last) in enumerate(columns):
        column_of[first : last + 1] = index
    column_of[own + 1] = len(columns)  # unused slots
    places = column_of[torch.where(blocks < 0, own + 1, blocks.long())]
    hits = torch.zeros(*blocks.shape[:-1], len(columns) + 1, dtype=torch.bool).scatter_(-1, places, True)
    rows = hits[..., :-1].sum(dim=(0, 2))  # [Q, columns]
    return Picture(
        columns=tuple(columns),
        rows=tuple(tuple(row) for row in rows.tolist()),
        tokens=tuple(words),
        asked=asked,
    )


def columns_around(count: int, marked: Collection[int], most: int = COLUMNS) -> list[tuple[int, int]]:
    """Lay so many blocks out in columns: (first block, last block) of each, in order, none left out.

    Each has one block where that is not too many. Else those around the marked ones, the first and the last
    have columns of their own, and the others share some, as few as there is room for.

    Args:
        count: Blocks.
        marked: Blocks that stay apart.
        most: Columns to have at most, unless more blocks than that are marked.
    """
    if count <= most:
        return [(block, block) for block in range(count)]
    for around in range(_AROUND, -1, -1):
        alone = {0, *range(count - 3, count)}
        alone |= {near for block in marked for near in range(block - around, block + around + 1)}
        alone = {block for block in alone if 0 <= block < count}
        if len(alone) <= most // 2:
            break
    width = 2
    while True:
        found: list[tuple[int, int]] = []
        for block in range(count):
            first, last = found[-1] if found else (block, block)
            joins = found and last not in alone and block not in alone and last - first + 1 < width
            if joins:
                found[-1] = (first, block)
            else:
                found.append((block, block))
        if len(found) <= most or width >= count:
            return found
        width += 1
