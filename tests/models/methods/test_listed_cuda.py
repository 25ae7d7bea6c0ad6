"""Methods that attend by lists of blocks on a GPU: the kernels against the reference with masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from nsa_models.methods import Method, MethodError, PromptRow, QueryBlock, attach, make_method
from nsa_models.methods._block import attend
from nsa_models.methods._listed import Listed, attend_by_lists, step_by_lists
from nsa_models.methods._placement import Placement

from .conftest import Rows, tokens
from .test_listed import listed_keys

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# In the sizes of papers, or near them, for prompts of a few thousand tokens.
CASES: dict[str, dict[str, Any]] = {
    "block-sparse": {"budget": 512},
    "flexprefill": {"gamma": 0.6, "least": 256},
    "moba": {"budget": 1024, "chunk": 256},
    "power-attention": {},
    "s2-attention": {"local": 4},
    "vertical-slash": {"budget": 400, "vertical": 200, "reading": "kernel"},
    "xattention": {"tau": 0.7},
}
# Of a norm: rounding of weights and outputs to 16 bits.
CLOSE = {torch.bfloat16: 6e-3, torch.float16: 1e-3}
each_case = pytest.mark.parametrize("name", list(CASES))


def pair(name: str) -> tuple[Method, Listed]:
    fast = make_method(name, fast=True, **CASES[name])
    assert isinstance(fast, Listed)
    return make_method(name, **CASES[name]), fast


def drawn(tokens: int, heads: int, dtype: torch.dtype, *, rows: int = 1, seed: int = 0) -> torch.Tensor:
    """[rows, heads, tokens, 128]."""
    maker = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(rows, heads, tokens, 128, generator=maker, device="cuda", dtype=dtype)


def plans(method: Method, q: torch.Tensor, k: torch.Tensor) -> list[Any] | None:
    if method.chunked_prefill or (isinstance(method, Listed) and method.fast and method.lists_by_itself):
        return None
    return [method.plan(PromptRow(q=q[0].float(), k=k[0].float(), scaling=128**-0.5, layer=0))]


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@each_case
@pytest.mark.parametrize("dtype", list(CLOSE), ids=str)
@torch.no_grad()
def test_a_prompt_gives_what_masks_give_and_reads_the_same_keys(name: str, dtype: torch.dtype) -> None:
    reference, fast = pair(name)
    q, k, v = drawn(3001, 8, dtype), drawn(3001, 2, dtype, seed=1), drawn(3001, 2, dtype, seed=2)
    for start in (0, 1300) if fast.chunked_prefill else (0,):
        place = Placement.bottom_right(1, 3001 - start, 3001, q.device)
        given: dict[str, Any] = {"scaling": 128**-0.5}
        expected, read = attend(
            reference, q[:, :, start:].float(), k, v, place, layer=0, rotate=None,
            plans=plans(reference, q, k), **given,
        )  # fmt: skip
        found, found_read = attend_by_lists(
            fast, q[:, :, start:], k, v, place, plans=plans(fast, q, k), **given
        )
        assert found.isfinite().all()
        assert gap(found, expected) < CLOSE[dtype]
        assert torch.equal(found_read, read)


@pytest.mark.parametrize("name", ["power-attention", "s2-attention"])
@torch.no_grad()
def test_steps_of_unequal_rows_give_what_masks_give(name: str) -> None:
    reference, fast = pair(name)
    q = drawn(1, 8, torch.bfloat16, rows=3)
    k, v = (drawn(3000, 2, torch.bfloat16, rows=3, seed=seed) for seed in (1, 2))
    place = Placement(positions=torch.tensor([[2999], [1234], [0]], device="cuda"))
    expected, read = attend(reference, q.float(), k, v, place, scaling=0.1, layer=0, rotate=None)
    found, found_read = step_by_lists(fast, q, k, v, place, scaling=0.1)
    assert gap(found, expected) < CLOSE[torch.bfloat16]
    assert int(found_read) == int(read.sum())


@pytest.mark.parametrize("name", ["block-sparse", "moba", "vertical-slash"])
@pytest.mark.parametrize("dtype", list(CLOSE), ids=str)
@torch.no_grad()
def test_sets_are_those_of_the_definition_and_of_a_cpu(name: str, dtype: torch.dtype) -> None:
    """Blocks and chunks hold nearly the same keys again and again: scores are close, or the same."""
    reference, fast = pair(name)
    q, k = drawn(1500, 4, dtype)[0], drawn(1500, 2, torch.float32, seed=1)[0]
    k = k[:, torch.arange(1500, device="cuda") % 64]
    k = (k * (1 + 1e-3 * drawn(1500, 2, torch.float32, seed=2)[0])).to(dtype)
    row = PromptRow(q=q.float(), k=k.float(), scaling=0.25, layer=0)
    plans = None if reference.chunked_prefill else [reference.plan(row)]
    block = QueryBlock(
        q=row.q[None],
        k=row.k[None],
        positions=torch.arange(1500, device="cuda")[None],
        scaling=0.25,
        layer=0,
        plans=plans,
    )
    expected = (reference.select(block) & block.visible)[0]
    found, _, _ = listed_keys(fast, q, k, 0)
    assert torch.equal(found, expected)
    assert torch.equal(found.cpu(), listed_keys(fast, q.cpu(), k.cpu(), 0)[0])


@each_case
@torch.no_grad()
def test_a_prompt_makes_the_gpu_wait_for_nothing(name: str) -> None:
    _, fast = pair(name)
    q, k, v = (drawn(3001, n, torch.bfloat16, seed=n) for n in (8, 2, 2))
    place = Placement.bottom_right(1, 3001, 3001, q.device)
    for mode in ("default", "error"):  # compiled, then watched
        torch.cuda.set_sync_debug_mode(mode)
        try:
            attend_by_lists(fast, q, k, v, place, scaling=0.1, plans=plans(fast, q, k))
        finally:
            torch.cuda.set_sync_debug_mode("default")


@each_case
@torch.no_grad()
def test_memory_does_not_grow_with_the_square_of_a_prompt(name: str) -> None:
    count, heads = 32_768, 8
    _, fast = pair(name)
    q, k, v = (drawn(count, n, torch.bfloat16, seed=n) for n in (heads, 2, 2))
    place = Placement.bottom_right(1, count, count, q.device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend_by_lists(fast, q, k, v, place, scaling=0.1, plans=plans(fast, q, k))
    assert torch.cuda.max_memory_allocated() - before < count * count * heads / 4  # a mask's bytes: 8.6 GB


@each_case
@pytest.mark.parametrize("kind", ["llama", "qwen3", "decoder"])
def test_a_model_in_half_precision_runs_by_kernels(
    kind: str, name: str, make_model: Callable[..., PreTrainedModel]
) -> None:
    model = make_model(kind, head_dim=64, num_hidden_layers=1, max_position_embeddings=2048)
    model = model.to("cuda", torch.float16)
    many = [tokens(1500, seed=2), tokens(777, seed=3)]
    found = []
    for method in pair(name):
        with attach(model, method) as attached:
            rows = Rows(model, 2, attached)
            parts = rows.feed([row[:-2] for row in many])
            for step in range(2):
                parts += rows.feed([row[len(row) - 2 + step][None] for row in many], decode=True)
            found.append((torch.cat(parts), attached.reads.prefill, attached.reads.decode))
    assert gap(found[1][0], found[0][0]) < 1e-2
    assert found[1][1:] == found[0][1:]  # one layer: the same queries and keys


def test_float32_is_refused(make_model: Callable[..., PreTrainedModel]) -> None:
    model = make_model("llama", head_dim=64).to("cuda", torch.float32)
    with pytest.raises(MethodError, match="got float32 on cuda"):
        attach(model, make_method("block-sparse", 512, fast=True))
