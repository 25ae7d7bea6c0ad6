"""InfLLM by lists: the sets, outputs and memory of its reference, and what it costs."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from nsa_kernels.blocks import BlockLists, BlockOutput, block_attention
from nsa_models.methods import Attached, Memories, MethodError, attach, infllm, make_method
from nsa_models.methods import _block as block
from nsa_models.methods._growing import Growing
from nsa_models.methods._listed import BACKENDS
from nsa_models.methods._placement import Placement
from nsa_models.methods._rotary import Rotation
from nsa_models.methods._rowwise import attend_rows, attend_rows_by_lists

from .alike import Largest
from .conftest import as_sets, read_alone, read_sets, tokens

INV_FREQ = torch.tensor([1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001])
TURNED = Rotation(inv_freq=INV_FREQ, interleaved=False, at_end=False)
"""A rotary embedding for heads of 16."""
# Two blocks of many; one of blocks larger than the first tokens; windows and units of odd sizes, none first;
# representatives that are whole blocks, of which all are read.
SIZES: list[dict[str, Any]] = [
    {"budget": 80, "first": 16, "local": 32, "block": 16, "representatives": 2, "unit": 24},
    {"budget": 88, "first": 16, "local": 40, "block": 32, "representatives": 4, "unit": 40},
    {"budget": 73, "first": 0, "local": 41, "block": 32, "representatives": 3, "unit": 7},
    {"budget": 400, "first": 48, "local": 20, "block": 16, "representatives": 16, "unit": 20},
]
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(autouse=True)
def by_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists on a CPU, by their plain twin."""
    monkeypatch.setitem(BACKENDS, "cpu", "torch")


def both(options: dict[str, Any]) -> tuple[infllm.InfLLM, infllm.InfLLM]:
    """The reference, and the same by lists."""
    plain, fast = make_method("infllm", **options), make_method("infllm", fast=True, **options)
    assert isinstance(plain, infllm.InfLLM)
    assert isinstance(fast, infllm.InfLLM)
    return plain, fast


def drawn(count: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [1, 4, count, 16], keys and values [1, 2, count, 16] of a row, turned to their positions."""
    maker = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, heads, count, 16, generator=maker) for heads in (4, 2, 2))
    positions = torch.arange(count)[None]
    return TURNED(q, positions).to(dtype), TURNED(k, positions).to(dtype), v.to(dtype)


def attended(
    method: infllm.InfLLM, row: tuple[Tensor, Tensor, Tensor], prompt: int, rotate: Any = TURNED
) -> tuple[Tensor, list[int], Any]:
    """Outputs of a prompt and of a step for each token behind, KV tokens read, and what is remembered."""
    q, k, v = row
    memories, outs, reads = Memories.fresh(1), [], []
    spans = [(0, prompt, "prefill"), *((t, t + 1, "decode") for t in range(prompt, q.shape[2]))]
    for start, stop, phase in spans:
        place = Placement.bottom_right(1, stop - start, stop, q.device)
        given: Any = {"scaling": 0.3, "layer": 0, "rotate": rotate, "phase": phase}
        out, read = (attend_rows_by_lists if method.fast else attend_rows)(
            method, q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], place, memories, **given
        )
        outs.append(out)
        reads.append(int(read.sum()))
    return torch.cat(outs, dim=2), reads, memories.rows[0].layers[0].own


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("prompt", "piece"), [(150, 2048), (150, 50), (97, 1), (33, 2048), (1, 2048)])
def test_outputs_counts_and_memory_are_those_of_the_reference(
    sizes: dict[str, Any], prompt: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infllm, "_PIECE", piece)
    plain, fast = both(sizes)
    row = drawn(prompt + 20, seed=prompt)
    expected, reads, remembered = attended(plain, row, prompt)
    found, found_reads, kept = attended(fast, row, prompt)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert found_reads == reads
    torch.testing.assert_close(kept.representatives, remembered.representatives, **CLOSE)
    torch.testing.assert_close(kept.scores, remembered.scores[:, -kept.scores.shape[1] :], **CLOSE)
    assert kept.scores.shape[1] < sizes["local"] + sizes["block"] + sizes["unit"] + sizes["first"]


@pytest.mark.parametrize("sizes", SIZES)
def test_a_query_s_lists_hold_its_set_and_no_key_twice(
    sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, fast = both(sizes)
    q, k, v = drawn(170)
    found: list[list[int]] = [[] for _ in range(170)]

    def look(q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, **given: Any) -> BlockOutput:
        lists.check()
        behind = 0 if given.get("low") is not None else fast.local
        seen = lists.seen(k.shape[1])[0, 0]
        for number in range(q.shape[1]):
            at = given["start"] + number
            low = int(given["low"][0, number]) if not behind else 0
            keys = seen[number // lists.query_block, low : at + 1].nonzero().flatten() + low
            found[at + behind] += keys.tolist()
        return block_attention(q, k, v, lists, **given)

    monkeypatch.setattr(infllm, "block_attention", look)
    _, reads, _ = attended(fast, (q, k, v), 150)
    expected = read_sets(plain, q, k, prompt=150, scaling=0.3, rotate=TURNED)[0]
    assert [set(keys) for keys in found] == [as_sets(expected[t])[0] for t in range(170)]
    assert all(len(keys) == len(set(keys)) for keys in found)
    assert reads[0] == 4 * sum(map(len, found[:150]))


@pytest.mark.parametrize("prompt", [70, 40])
def test_kernels_in_half_precision_give_what_masks_give(prompt: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setitem(BACKENDS, "cpu", "triton")
    plain, fast = both(SIZES[0])
    q, k, v = drawn(prompt + 2, dtype=torch.float16)
    expected, reads, _ = attended(plain, (q.float(), k.float(), v.float()), prompt)
    found, found_reads, kept = attended(fast, (q, k, v), prompt)
    assert found.dtype == kept.keys.tokens.dtype == torch.float16
    assert kept.representatives.dtype == torch.float32
    torch.testing.assert_close(found.float(), expected, rtol=4e-3, atol=4e-3)
    assert found_reads == reads


def test_positions_are_taken_off_once_of_a_key_and_once_of_a_block() -> None:
    _, fast = both(SIZES[0])
    turned = []

    def count(x: Tensor, moved: Tensor) -> Tensor:
        if x.shape[1] == 2:  # keys
            turned.append(x.shape[2])
        return TURNED(x, moved)

    _, _, kept = attended(fast, drawn(260), 200, rotate=count)
    assert 260 - fast.local <= kept.keys.count <= 260
    assert sum(turned) == kept.keys.count + len(kept.representatives) * fast.block


def test_a_prompt_makes_nothing_of_a_unit_s_queries_by_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, **_: object) -> BlockOutput:
        return BlockOutput(q.clone(), q[..., 0].float())

    monkeypatch.setattr(infllm, "block_attention", kernel)  # its plain twin makes masks
    sizes = {"budget": 160, "first": 16, "local": 64, "block": 16, "representatives": 2, "unit": 64}
    row, most = drawn(1986), []
    for method in both(sizes):
        with Largest() as largest:
            attended(method, row, 1985)
        most.append(largest.numbers)
    assert most[0] >= 4 * 64 * 1984  # heads, queries of a unit, keys
    assert most[1] <= row[0].numel()


class Asked(TorchDispatchMode):
    """Counts the operations whose result the host waits for."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asks = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")
        self.found += func.overloadpacket.__name__ in asks
        return func(*args, **(kwargs or {}))


def test_a_gpu_waits_for_nothing_but_whether_a_row_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, **_: object) -> BlockOutput:
        return BlockOutput(q.clone(), q[..., 0].float())

    def sums(q: Tensor, k: Tensor, lse: Tensor, *, window: int, **_: object) -> Tensor:
        return torch.ones(q.shape[1], min(len(k), len(q) + window - 1))

    monkeypatch.setattr(infllm, "block_attention", kernel)  # whose plain twin looks through its lists
    monkeypatch.setattr(infllm, "window_sums", sums)
    monkeypatch.setattr(block, "_worth_asking", lambda cells: False)
    with Asked() as asked:
        attended(both(SIZES[0])[1], drawn(160), 160)
    assert asked.found == 1  # the count that `attended` asks for
    with Asked() as asked:
        attended(both(SIZES[0])[1], drawn(160), 140)
    assert asked.found == 21 + 20


@torch.no_grad()
def test_copies_of_a_row_go_their_own_ways(make_model: Callable[..., PreTrainedModel]) -> None:
    model = make_model("llama", num_hidden_layers=2, head_dim=16).float()
    first, second = tokens(130, seed=1), tokens(130, seed=1)
    second[110:] = tokens(20, seed=5)
    with attach(model, both(SIZES[0])[1]) as attached:
        alone = [read_alone(model, attached, row, 20) for row in (first, second)]
        memories = attached.fresh(1)
        with attached.prefilling(memories=memories):
            cache = model(first[None, :110], use_cache=True).past_key_values
        cache.reorder_cache(torch.tensor([0, 0]))
        memories = memories.select([0, 0])
        for t in range(110, 130):
            given = torch.stack([first[t], second[t]])[:, None]
            with attached.decoding(memories=memories):
                logits = model(given, past_key_values=cache, use_cache=True).logits[:, -1]
            for place in (0, 1):
                torch.testing.assert_close(logits[place], alone[place][t], rtol=1e-4, atol=1e-4)


def test_generate_gives_the_tokens_of_the_reference(make_model: Callable[..., PreTrainedModel]) -> None:
    model = make_model("qwen3", num_hidden_layers=2, head_dim=16).float()
    replies, reads = [], []
    for method in both(SIZES[0]):
        with attach(model, method, auto_phase="generate") as attached:
            replies.append(
                model.generate(tokens(120)[None], max_new_tokens=12, min_new_tokens=12, do_sample=False)
            )
            reads.append((attached.reads.prefill, attached.reads.decode))
    assert torch.equal(*replies)
    assert reads[0] == reads[1]
    assert reads[0][1].read < reads[0][1].dense


def test_what_is_remembered_goes_with_the_method(make_model: Callable[..., PreTrainedModel]) -> None:
    model = make_model("llama", num_hidden_layers=2, head_dim=16).float()
    with attach(model, both(SIZES[0])[1], auto_phase="generate") as attached:
        model.generate(tokens(120)[None], max_new_tokens=2, min_new_tokens=2, do_sample=False)
        [row] = attached._memories.rows
        kept = [weakref.ref(memory.own.keys.store.data) for memory in row.layers.values()]
        del row
        assert None not in [ref() for ref in kept]
    assert [ref() for ref in kept] == [None, None]
    assert attached.reads.decode.read > 0


def test_tokens_of_copies_stay_apart_and_move_seldom() -> None:
    x = torch.arange(24.0).reshape(2, 6, 2)
    row = Growing.like(x, room=0).extended(x[:, :2])
    one, two = row.extended(x[:, 2:4]), row.extended(x[:, 4:6])
    assert torch.equal(one.tokens, x[:, :4])
    assert torch.equal(two.tokens, x[:, [0, 1, 4, 5]])
    assert one.tokens.data_ptr() == row.tokens.data_ptr() != two.tokens.data_ptr()
    # A forward that was broken off has put tokens behind: repeated, it puts others there.
    again = one.extended(x[:, 4:5])
    assert torch.equal(one.extended(x[:, 5:6]).tokens, x[:, [0, 1, 2, 3, 5]])
    assert torch.equal(again.tokens, x[:, :5])
    moves, grown = 0, Growing.like(x, room=0)
    for _ in range(1000):
        before = grown.store
        grown = grown.extended(x[:, :1])
        moves += grown.store is not before
    assert moves <= 4


def test_keys_that_are_kept_twice_are_counted() -> None:
    plain, fast = both(SIZES[0])
    assert [plain.kv_kept(count) for count in (32, 33, 200)] == [32, 33, 200]
    assert [fast.kv_kept(count) for count in (32, 33, 200)] == [32, 50, 300]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 24}, "block must be a power of 2 from 16 on with fast, got 24"),
        ({"first": 24}, "first must be a multiple of 16 tokens with fast, got 24"),
    ],
)
def test_what_no_list_can_say_is_refused(options: dict[str, int], message: str) -> None:
    make_method("infllm", 2560, **options)
    with pytest.raises(MethodError, match=f"infllm: {message}"):
        make_method("infllm", 2560, fast=True, **options)


def test_without_a_gpu_it_is_refused(
    make_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(BACKENDS, "cpu")
    with pytest.raises(MethodError, match="infllm: fast needs a GPU with Triton"):
        attach(make_model("llama", head_dim=16).float(), both(SIZES[0])[1])


def test_it_is_not_simulated_and_says_what_reads(make_model: Callable[..., PreTrainedModel]) -> None:
    plain, fast = both(SIZES[0])
    assert (plain.simulated, fast.simulated) == (True, False)
    attached: Attached
    with attach(make_model("llama", head_dim=16).float(), fast) as attached:
        assert any("(fast, backend torch)" in note for note in attached.notes)
