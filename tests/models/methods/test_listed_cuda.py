"""Methods that attend by lists of blocks on a GPU: the kernels against the reference with masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from nsa_kernels.window import window_sums
from nsa_models.methods import Memories, Method, MethodError, PromptRow, QueryBlock, attach, make_method
from nsa_models.methods._beside import Held
from nsa_models.methods._block import attend
from nsa_models.methods._listed import Listed, attend_by_lists, step_by_lists
from nsa_models.methods._paged import KeptPages, Paged, step_by_pages
from nsa_models.methods._placement import NewTokens, Placement
from nsa_models.methods._reads import Reads
from nsa_models.methods._rotary import Rotation
from nsa_models.methods._rowlisted import RowListed
from nsa_models.methods._rowwise import attend_rows, attend_rows_by_lists

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
    "pbs-attn": {"tau": 0.5},
    "power-attention": {},
    "s2-attention": {"local": 4},
    "vertical-slash": {"budget": 400, "vertical": 200, "reading": "kernel"},
    "xattention": {"tau": 0.7},
}
# Those that take a row at a time, unit by unit: seven blocks of up to fifteen.
OF_ROWS: dict[str, dict[str, Any]] = {
    "infllm": {"budget": 1536, "first": 128, "local": 512, "block": 128, "unit": 256},
}
# Of a norm: rounding of weights and outputs to 16 bits.
CLOSE = {torch.bfloat16: 6e-3, torch.float16: 1e-3}
each_case = pytest.mark.parametrize("name", list(CASES))


each_of_rows = pytest.mark.parametrize("name", list(OF_ROWS))


def pair(name: str) -> tuple[Method, Listed]:
    options = {**CASES, **OF_ROWS}[name]
    fast = make_method(name, fast=True, **options)
    assert isinstance(fast, Listed)
    return make_method(name, **options), fast


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
    found, _ = listed_keys(fast, q, k, 0)
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


def rows_of(name: str) -> tuple[RowListed, RowListed]:
    plain, fast = pair(name)
    assert isinstance(plain, RowListed)
    assert isinstance(fast, RowListed)
    return plain, fast


def turned(count: int, dtype: torch.dtype) -> tuple[list[torch.Tensor], Rotation]:
    """Queries of 8 heads, keys and values of 2, at their positions, and the embedding that turned them."""
    inv_freq = 1e4 ** -(torch.arange(0, 128, 2, device="cuda") / 128)
    rotate = Rotation(inv_freq=inv_freq, interleaved=False, at_end=False)
    at = torch.arange(count, device="cuda")[None]
    q, k, v = (drawn(count, heads, torch.float32, seed=seed) for seed, heads in enumerate((8, 2, 2)))
    return [x.to(dtype) for x in (rotate(q, at), rotate(k, at), v)], rotate


@each_of_rows
@pytest.mark.parametrize("dtype", list(CLOSE), ids=str)
@torch.no_grad()
def test_units_of_a_prompt_and_steps_give_what_masks_give(name: str, dtype: torch.dtype) -> None:
    (q, k, v), rotate = turned(2605, dtype)
    plain, fast = rows_of(name)
    mine, masked = Memories.fresh(1), Memories.fresh(1)
    for start, stop in [(0, 2600), *((t, t + 1) for t in range(2600, 2605))]:
        place = Placement.bottom_right(1, stop - start, stop, q.device)
        given: dict[str, Any] = {
            "scaling": 128**-0.5, "layer": 0, "rotate": rotate, "phase": "decode" if start else "prefill",
        }  # fmt: skip
        seen = q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop]
        found, found_read = attend_rows_by_lists(fast, *seen, place, mine, **given)
        expected, read = attend_rows(plain, *(x.float() for x in seen), place, masked, **given)
        assert found.dtype == dtype
        assert found.isfinite().all()
        assert gap(found, expected) < 2 * CLOSE[dtype]  # two parts, and queries and keys turned, are rounded
        assert torch.equal(found_read, read)
    held = mine.rows[0].layers[0].own, masked.rows[0].layers[0].own
    assert held[0].representatives.shape == held[1].representatives.shape
    # Keys of scores that are equal but for the rounding may change places, a few of hundreds.
    assert gap(held[0].representatives, held[1].representatives) < 0.2


@each_of_rows
@torch.no_grad()
def test_memory_of_units_does_not_grow_with_the_square_of_a_prompt(name: str) -> None:
    count = 32_768
    (q, k, v), rotate = turned(count, torch.bfloat16)
    place = Placement.bottom_right(1, count, count, q.device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend_rows_by_lists(
        rows_of(name)[1], q, k, v, place, Memories.fresh(1),
        scaling=0.1, layer=0, rotate=rotate, phase="prefill",
    )  # fmt: skip
    # Outputs twice (67 MB each), keys without position (17), and what a unit needs; a unit's masks: 268.
    assert torch.cuda.max_memory_allocated() - before < 400 * 2**20


@pytest.mark.parametrize("dtype", list(CLOSE), ids=str)
@pytest.mark.parametrize(("queries", "keys", "window"), [(512, 3000, 512), (1, 5000, 4096), (300, 300, 77)])
@torch.no_grad()
def test_sums_of_windows_are_those_of_the_twin(
    queries: int, keys: int, window: int, dtype: torch.dtype
) -> None:
    q = drawn(queries, 8, dtype)[0].transpose(0, 1)
    k = drawn(keys, 2, dtype, seed=1)[0].transpose(0, 1)
    lse = 5 + drawn(queries, 8, torch.float32, seed=2)[0, :, :, 0]
    found, expected = (
        window_sums(q, k, lse, window=window, scale=0.1, backend=backend) for backend in ("triton", "torch")
    )
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [*CASES, *OF_ROWS])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "decoder"])
def test_a_model_in_half_precision_runs_by_kernels(
    kind: str, name: str, make_model: Callable[..., PreTrainedModel]
) -> None:
    model = make_model(kind, head_dim=64, num_hidden_layers=1, max_position_embeddings=4096)
    model = model.to("cuda", torch.float16)
    # Of those of rows as many that they leave something out.
    many = [tokens(2500 if name in OF_ROWS else 1500, seed=2), tokens(777, seed=3)]
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


# --- decode by pages whose extremes are kept

PAGED: dict[str, dict[str, Any]] = {
    "eval": {"budget": 512},
    "kernel": {"budget": 500, "reading": "kernel", "page": 24},
    "beside": {"budget": 640, "first": 70, "local": 133},
}
each_paged = pytest.mark.parametrize("case", list(PAGED))


def paged(case: str) -> tuple[Method, Paged]:
    options = {"dense_layers": (), **PAGED[case]}
    fast = make_method("quest", fast=True, **options)
    assert isinstance(fast, Paged)
    return make_method("quest", **options), fast


def at(ends: list[int]) -> Placement:
    """A step of rows that have so many tokens with it."""
    new = tuple(NewTokens(column=0, count=1, position=end - 1) for end in ends)
    return Placement(positions=torch.tensor(ends, device="cuda")[:, None] - 1, new=new)


@each_paged
@torch.no_grad()
def test_kept_pages_are_those_of_the_masks(case: str) -> None:
    """Whole numbers: bounds are exact whatever adds them up, and many pages have the same."""
    reference, fast = paged(case)
    k = (2 * drawn(3100, 2, torch.bfloat16, rows=3, seed=1)).round()
    v = drawn(3100, 2, torch.bfloat16, rows=3, seed=2)
    k[1] = 1.0  # all pages alike
    kept = KeptPages()
    found_reads = Reads()
    starts = [2990, 1234, 24]
    for step in range(1, 60):
        ends = [start + step for start in starts]
        q = drawn(1, 8, torch.bfloat16, rows=3, seed=100 + step).round()
        place = at(ends)
        expected, read = attend(reference, q.float(), k, v, place, scaling=0.05, layer=0, rotate=None)
        found, found_read = step_by_pages(
            fast, q, k, v, place,
            scaling=0.05, layer=0, held=Held.in_place(k), kept=kept, reads=found_reads,
        )  # fmt: skip
        assert found.isfinite().all()
        assert gap(found, expected) < CLOSE[torch.bfloat16]
        assert int(found_read) == int(read.sum())
        for row, end in enumerate(ends):
            assert reference.kv_reads_least(end) * 8 <= int(read[row]) <= reference.kv_reads(end) * 8
    assert found_reads.index.rebuilt == sum(starts) + 3  # the first step alone
    stated = [reference.index_reads(start + step) for start in starts for step in range(1, 60)]
    assert found_reads.index.scored == sum(stated)


@each_paged
@torch.no_grad()
def test_a_step_by_kept_pages_makes_nothing_of_the_size_of_the_keys(case: str) -> None:
    _, fast = paged(case)
    count = 2**17
    q, k, v = (drawn(n, heads, torch.bfloat16, seed=n) for n, heads in ((1, 8), (count, 2), (count, 2)))
    kept = KeptPages()
    given: dict[str, Any] = {"scaling": 0.1, "layer": 0, "held": Held.in_place(k), "kept": kept}
    most = []
    for end in (count - 1, count):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step_by_pages(fast, q, k, v, at([end]), reads=Reads(), **given)
        most.append(torch.cuda.max_memory_allocated() - before)
    assert most[1] < k.numel() * k.element_size() / 8 < most[0]


@each_paged
@pytest.mark.parametrize("kind", ["llama", "qwen3", "decoder"])
def test_a_model_in_half_precision_decodes_by_kept_pages(
    kind: str, case: str, make_model: Callable[..., PreTrainedModel]
) -> None:
    model = make_model(kind, head_dim=64, num_hidden_layers=1, max_position_embeddings=2048)
    model = model.to("cuda", torch.bfloat16)
    many = [tokens(1500, seed=2), tokens(777, seed=3)]
    found = []
    for method in paged(case):
        with attach(model, method) as attached:
            rows = Rows(model, 2, attached)
            parts = rows.feed([row[:-40] for row in many])
            for step in range(40):
                parts += rows.feed([row[len(row) - 40 + step][None] for row in many], decode=True)
            found.append((torch.cat(parts), attached.reads))
    assert gap(found[1][0], found[0][0]) < 2e-2
    assert found[1][1].prefill == found[0][1].prefill
    # One layer: the same queries and keys. Bounds that are all but equal may be ranked otherwise.
    reads = [of.decode.read for _, of in found]
    assert reads[1] == pytest.approx(reads[0], rel=1e-3)
    rebuilt = found[1][1].index.rebuilt
    first = 1500 - 39 + 777 - 39
    # The decoder's buffers may grow into new memory once; transformers' cache is followed step by step.
    assert rebuilt == first or (kind == "decoder" and first < rebuilt < 3 * first)


@pytest.mark.parametrize("kind", ["llama", "decoder"])
def test_kept_pages_give_to_the_last_bit_what_pages_made_anew_give(
    kind: str, make_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(kind, head_dim=64, num_hidden_layers=3, max_position_embeddings=2048)
    model = model.to("cuda", torch.bfloat16)
    _, fast = paged("eval")
    row = tokens(1300, seed=2)
    found = []
    for forgetful in (False, True):
        if forgetful:
            monkeypatch.setattr(KeptPages, "take", lambda *_: None)
        with attach(model, fast) as attached:
            rows = Rows(model, 1, attached)
            parts = rows.feed([row[:1200]])
            for token in row[1200:]:
                parts += rows.feed([token[None]], decode=True)
            found.append((torch.cat(parts), attached.reads.index.rebuilt))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] < found[1][1] / 20
