"""Imported checkpoints against a plain reading of their formats: prefill, chunks, decode, padded rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nsa_models import Choices, NSADecoderForCausalLM, convert, load_model

from .conftest import AS_IT_IS, CASES, VOCABULARY

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
"""The decoder's RoPE is in float32, whatever the weights are in; another block changes logits by 0.1."""
TOKENS = 46
"""Six or twelve blocks, of which four are selected."""


def ids(seed: int = 1, count: int = TOKENS) -> Tensor:
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=list(CASES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str, make_checkpoint: Callable[..., Path], tmp_path: Path) -> NSADecoderForCausalLM:
    """The converted checkpoint in float64; where its files tell everything, the checkpoint itself."""
    folder = make_checkpoint(name)
    if name not in AS_IT_IS:
        folder = convert(str(folder), tmp_path / "converted", Choices(**CASES[name].choices)).folder
    return load_model(str(folder), device="cpu").double()


@torch.no_grad()
def test_one_forward(name: str, model: NSADecoderForCausalLM, plain: Callable[..., Tensor]) -> None:
    expected = plain(name, ids().tolist())
    assert expected.std() > 0.5
    for backend in ("torch", "reference"):
        model.config.nsa_backend = backend
        torch.testing.assert_close(model(ids()[None]).logits[0], expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 7, 16])
def test_pieces_against_the_cache(
    name: str, size: int, model: NSADecoderForCausalLM, plain: Callable[..., Tensor]
) -> None:
    cache, logits = None, []
    for piece in ids()[None].split(size, dim=1):
        out = model(piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits[0])
    torch.testing.assert_close(torch.cat(logits), plain(name, ids().tolist()), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_padded_rows_and_their_next_tokens(
    name: str, left: bool, model: NSADecoderForCausalLM, plain: Callable[..., Tensor]
) -> None:
    rows = [ids(1), ids(2, 19), ids(3, 33)]
    longest = 40
    prompts = [row[:-6] for row in rows]
    tokens, mask = torch.zeros(3, longest, dtype=torch.long), torch.zeros(3, longest, dtype=torch.long)
    places = []
    for i, prompt in enumerate(prompts):
        place = slice(longest - len(prompt), longest) if left else slice(0, len(prompt))
        tokens[i, place], mask[i, place] = prompt, 1
        places.append(place)
    out = model(tokens, attention_mask=mask, use_cache=True)
    cache = out.past_key_values
    logits = [[out.logits[i, place]] for i, place in enumerate(places)]
    for step in range(6, 0, -1):
        column = torch.stack([row[-step] for row in rows])[:, None]
        out = model(column, past_key_values=cache, use_cache=True)
        for i in range(3):
            logits[i].append(out.logits[i])
    for row, found in zip(rows, logits, strict=True):
        torch.testing.assert_close(torch.cat(found), plain(name, row.tolist()), **CLOSE)


def test_the_rule_and_the_reading_change_what_is_answered(plain: Callable[..., Tensor]) -> None:
    """Otherwise the cases above could be mixed up and nobody would see it."""
    row = ids().tolist()
    for one, other in (
        ("fla", "fla-own-block"),
        ("llama-nsa", "llama-nsa-paper"),
        ("ssa-sparse", "ssa-full"),
    ):
        assert not torch.allclose(plain(one, row), plain(other, row), atol=1e-2)
