"""Methods that attend by lists of blocks, against their own reference with masks."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from nsa_kernels.blocks import BlockLists, BlockOutput
from nsa_models.methods import (
    Attached,
    Method,
    MethodError,
    PromptRow,
    QueryBlock,
    RowMethod,
    _listed,
    attach,
    make_method,
    parse_method,
)
from nsa_models.methods import methods as known_methods
from nsa_models.methods._block import attend
from nsa_models.methods._listed import Listed, Run, attend_by_lists, step_by_lists
from nsa_models.methods._paged import Paged
from nsa_models.methods._placement import Placement
from nsa_models.methods._rotary import Rotation

from .alike import CLOSE, Largest, read_by_masks, same
from .conftest import Rows, tokens


@functools.cache
def gates() -> str:
    """A folder with a gate of SeerAttention for two layers of 4 heads of 16."""
    folder = tempfile.mkdtemp(prefix="nsa-eval-listed-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make = torch.Generator().manual_seed(0)
    name = "model.layers.{}.self_attn.attn_gate.mask_linear_k.weight"
    made = {name.format(layer): torch.randn(4, 3 * 16, 16, generator=make) for layer in range(2)}
    save_file(made, f"{folder}/gate.safetensors")
    return folder


# Options under which 150 tokens have far more blocks than are read; of each, a tile that isn't a block too.
CASES: dict[str, list[dict[str, Any]]] = {
    "block-sparse": [{"budget": 48, "block": 16}],
    "flexprefill": [
        {"gamma": 0.5, "tau": 0.0, "least": 20, "block": 16},
        {"gamma": 0.4, "tau": 1.0, "least": 16, "block": 16},
    ],
    "infllm": [{"budget": 80, "first": 16, "local": 32, "block": 16, "representatives": 2, "unit": 24}],
    "moba": [{"budget": 48, "chunk": 16}, {"budget": 64, "chunk": 32, "dense_layers": (1,)}],
    "pbs-attn": [
        {"tau": 0.4, "block": 16, "segment": 32},
        {"tau": 0.2, "block": 16, "segment": 16, "dense_layers": (0,)},
    ],
    "power-attention": [{"window": 2, "block": 16}],
    "s2-attention": [{"local": 2, "stride": 3, "block": 16}],
    "seer-attention-prefill": [{"threshold": 0.2, "block": 16, "dense_rows": 1, "weights": gates()}],
    "vertical-slash": [
        {"budget": 12, "vertical": 8, "first": 2, "local": 3, "last": 9, "reading": "kernel", "block": 16},
        {"budget": 3, "vertical": 0, "first": 0, "local": 1, "last": 5, "reading": "kernel", "block": 16},
    ],
    "xattention": [{"tau": 0.5, "stride": 4, "block": 16}],
}
PAIRS = [(name, options) for name, cases in CASES.items() for options in cases]
# The others list unit by unit what follows from the units before: their sets are in their own tests.
AT_ONCE = [case for case in PAIRS if not issubclass(known_methods()[case[0]], RowMethod)]


def pair(name: str, options: dict[str, Any]) -> tuple[Method, Listed]:
    """The reference, and the same by lists."""
    fast = make_method(name, fast=True, **options)
    assert isinstance(fast, Listed)
    return make_method(name, **options), fast


def named(case: tuple[str, dict[str, Any]]) -> str:
    return make_method(case[0], **case[1]).label


each_pair = pytest.mark.parametrize("case", PAIRS, ids=named)
each_at_once = pytest.mark.parametrize("case", AT_ONCE, ids=named)


@pytest.fixture(params=["llama", "qwen3", "decoder"])
def model(request: pytest.FixtureRequest, make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """Each kind of model in float32, with heads that the kernels take and groups of two."""
    return small(make_model, request.param)


def small(make_model: Callable[..., PreTrainedModel], kind: str = "llama") -> PreTrainedModel:
    return make_model(kind, num_hidden_layers=2, head_dim=16).float()


def padded(model: PreTrainedModel, method: Method, lengths: tuple[int, ...]) -> tuple[list[Tensor], Attached]:
    """Logits of rows of these lengths, right-padded, in pieces where that is allowed, and four steps."""
    many = [tokens(length, seed=seed) for seed, length in enumerate(lengths, 2)]
    with attach(model, method) as attached:
        rows, parts = Rows(model, len(many), attached), []
        cuts = (0, 21, 37, -4) if method.chunked_prefill else (0, -4)
        for begin, end in pairwise(cuts):
            parts += rows.feed([row[begin:end] if end > 0 else row[begin:-4] for row in many])
        for step in range(4):
            parts += rows.feed([row[len(row) - 4 + step][None] for row in many], decode=True)
    return parts, attached


@each_pair
@pytest.mark.usefixtures("by_twin")
def test_lists_give_what_masks_give(
    model: PreTrainedModel, case: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, fast = pair(*case)
    expected = padded(model, reference, (150, 41, 95))
    monkeypatch.setattr(type(fast), "select", read_by_masks)
    same(padded(model, fast, (150, 41, 95)), expected)
    assert expected[1].reads.prefill.read < expected[1].reads.prefill.dense


@each_pair
@pytest.mark.usefixtures("by_kernels")
def test_kernels_give_what_masks_give(
    make_model: Callable[..., PreTrainedModel], case: tuple[str, dict[str, Any]]
) -> None:
    model, (reference, fast) = small(make_model), pair(*case)
    same(padded(model, fast, (66, 43)), padded(model, reference, (66, 43)))


@pytest.mark.parametrize("name", ["block-sparse", "moba", "pbs-attn", "vertical-slash"])
@pytest.mark.usefixtures("by_kernels")
def test_kernels_in_half_precision_give_what_masks_give(name: str) -> None:
    reference, fast = pair(name, CASES[name][0])
    q, k, v = (x.half()[None] for x in (*drawn(70), drawn(70, seed=1)[1]))
    row = PromptRow(q=q[0].float(), k=k[0].float(), scaling=0.25, layer=0)
    place = Placement.bottom_right(1, 70, 70, q.device)
    plans = None if reference.chunked_prefill else [reference.plan(row)]
    expected, read = attend(
        reference, q.float(), k, v, place, scaling=0.25, layer=0, rotate=None, plans=plans
    )
    of_lists = None if fast.lists_by_itself else plans
    found, found_read = attend_by_lists(fast, q, k, v, place, scaling=0.25, plans=of_lists)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=3e-3, atol=3e-3)
    assert int(found_read.sum()) == int(read.sum()) < 4 * 70 * 71 // 2


@pytest.mark.parametrize("name", ["power-attention", "s2-attention"])
@pytest.mark.usefixtures("by_twin")
def test_a_step_counts_only_rows_that_have_a_token(name: str) -> None:
    reference, fast = pair(name, CASES[name][0])
    (q, k), (_, v) = drawn(90), drawn(90, seed=1)
    keys, values = k.expand(3, -1, -1, -1), v.expand(3, -1, -1, -1)
    queries = torch.stack([q[:, 89:], q[:, 40:41], q[:, :1]])
    real = torch.tensor([[True], [False], [True]])
    place = Placement(positions=torch.tensor([[89], [40], [0]]), real=real)
    expected, read = attend(reference, queries, keys, values, place, scaling=0.3, layer=0, rotate=None)
    found, found_read = step_by_lists(fast, queries, keys, values, place, scaling=0.3)
    torch.testing.assert_close(found[::2], expected[::2], **CLOSE)
    assert int(found_read) == int(read.sum())


@each_pair
@pytest.mark.usefixtures("by_twin")
def test_left_padding_is_no_token(
    make_model: Callable[..., PreTrainedModel], case: tuple[str, dict[str, Any]]
) -> None:
    model, (reference, fast) = small(make_model), pair(*case)
    many = [tokens(90, seed=2), tokens(53, seed=3)]
    ids, mask = torch.zeros(2, 90, dtype=torch.long), torch.zeros(2, 90, dtype=torch.long)
    for place, row in enumerate(many):
        ids[place, 90 - len(row) :], mask[place, 90 - len(row) :] = row, 1
    found = []
    for method in (reference, fast):
        with attach(model, method) as attached, torch.no_grad():
            logits = model(ids, attention_mask=mask).logits
        found.append(([logits[place, 90 - len(row) :] for place, row in enumerate(many)], attached))
    same(found[1], found[0])


INV_FREQ = torch.tensor([1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001])
turned = Rotation(inv_freq=INV_FREQ, interleaved=False, at_end=False)
"""A rotary embedding for heads of 16."""


def drawn(count: int, *, seed: int = 0, width: int = 16) -> tuple[Tensor, Tensor]:
    """Queries [4, count, width] of a row and keys [2, count, width]."""
    maker = torch.Generator().manual_seed(seed)
    return torch.randn(4, count, width, generator=maker), torch.randn(2, count, width, generator=maker)


def listed_keys(method: Listed, q: Tensor, k: Tensor, first: int) -> tuple[Tensor, int]:
    """Booleans [H, n, S] of the queries from `first` on, by the method's lists, and the reads they count."""
    count, heads = q.shape[1], len(q)
    plan = None
    if not (method.chunked_prefill or method.lists_by_itself):
        plan = method.plan(PromptRow(q=q.float(), k=k.float(), scaling=0.25, layer=0, rotate=turned))
    front = first % method.tile
    queries = torch.nn.functional.pad(q[:, first:], (0, 0, front, 0))
    run = Run(q=queries, k=k, start=first - front, first=first, scaling=0.25)
    at = torch.arange(count, device=q.device)
    positions = run.start + torch.arange(queries.shape[1], device=q.device)
    numbers = at.expand(len(k), -1)[..., None]  # values that tell which key's they are
    times, reads = torch.zeros(heads, queries.shape[1], count, dtype=torch.long, device=q.device), 0
    for keys, values, lists in method.parts(run, numbers, plan):
        lists.check()
        of_tiles = lists.seen(count)[0]
        keep = of_tiles.repeat_interleave(method.tile, dim=1)[:, : queries.shape[1]]
        keep = keep.repeat_interleave(heads // len(keep), dim=0)
        if lists.members is not None:
            block = at // lists.key_block
            keep = keep & ((lists.members[0][..., block // 32] >> (block % 32)) & 1).bool()
        keep = keep & (at <= positions[:, None])
        key = values[..., 0].repeat_interleave(heads // len(values), dim=0)
        own = k.repeat_interleave(heads // len(k), dim=0).gather(1, key[..., None].expand(-1, -1, k.shape[2]))
        assert torch.equal(keys.repeat_interleave(heads // len(keys), dim=0), own)
        times.scatter_add_(-1, key[:, None].expand(-1, queries.shape[1], -1), keep.long())
        reads += int(lists.reads(heads, start=run.start, first=first, end=count))
    assert times.max() == 1
    return times.bool()[:, front:], reads


@each_at_once
@pytest.mark.parametrize("seed", [0, 1])
def test_lists_hold_the_sets_of_the_masks(case: tuple[str, dict[str, Any]], seed: int) -> None:
    reference, fast = pair(*case)
    q, k = drawn(141, seed=seed)
    for first in (0, 16, 45) if fast.chunked_prefill else (0,):
        row = PromptRow(q=q, k=k, scaling=0.25, layer=0, rotate=turned)
        block = QueryBlock(
            q=q[None, :, first:],
            k=k[None],
            positions=torch.arange(first, 141)[None],
            scaling=0.25,
            layer=0,
            plans=None if reference.chunked_prefill else [reference.plan(row)],
        )
        expected = (reference.select(block) & block.visible)[0].expand(4, -1, -1)
        found, reads = listed_keys(fast, q, k, first)
        assert torch.equal(found, expected)
        assert not expected.all(dim=-1).any(dim=0)[-10:].all()  # something is left out
        assert reads == int(expected.sum())


@pytest.mark.parametrize("block", [128, 256])
@pytest.mark.parametrize(
    "name", ["block-sparse", "moba", "pbs-attn", "power-attention", "s2-attention", "xattention"]
)
def test_blocks_larger_than_a_tile_are_read_by_several(name: str, block: int) -> None:
    sizes: dict[str, dict[str, Any]] = {
        "block-sparse": {"budget": 2 * block, "block": block},
        "moba": {"budget": 2 * block, "chunk": block},
        "pbs-attn": {"tau": 0.3, "block": block, "segment": block},
        "power-attention": {"window": 1, "block": block},
        "s2-attention": {"local": 1, "stride": 3, "block": block},
        "xattention": {"tau": 0.4, "block": block},
    }
    reference, fast = pair(name, sizes[name])
    assert fast.tile == 128
    q, k = drawn(1100)
    for first in (0, 300) if fast.chunked_prefill else (0,):
        found, _ = listed_keys(fast, q, k, first)
        row = PromptRow(q=q, k=k, scaling=0.25, layer=0, rotate=turned)
        plans = None if reference.chunked_prefill else [reference.plan(row)]
        at = torch.arange(first, 1100)
        block_of = QueryBlock(
            q=q[None, :, first:], k=k[None], positions=at[None], scaling=0.25, layer=0, plans=plans
        )
        assert torch.equal(found, (reference.select(block_of) & block_of.visible)[0].expand(4, -1, -1))


@each_at_once
@pytest.mark.usefixtures("by_twin")
def test_a_prompt_makes_no_tensor_of_queries_by_keys(
    make_model: Callable[..., PreTrainedModel],
    case: tuple[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kernel(q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, **_: object) -> BlockOutput:
        return BlockOutput(q.clone(), q[..., 0].float())

    monkeypatch.setattr(_listed, "block_attention", kernel)  # its plain twin makes masks
    model = make_model("llama", num_hidden_layers=2, head_dim=16, max_position_embeddings=1024).float()
    most = []
    for method in pair(*case):
        with attach(model, method), torch.no_grad(), Largest() as largest:
            model(tokens(1024)[None], use_cache=True)
        most.append(largest.numbers)
    assert most[1] < 1024 * 1024 <= most[0]


@each_pair
def test_it_says_of_itself_that_it_is_not_simulated(case: tuple[str, dict[str, Any]]) -> None:
    reference, fast = pair(*case)
    assert (reference.simulated, fast.simulated) == (True, False)
    assert "fast=true" in fast.label
    assert "fast" not in reference.label
    record = fast.describe()
    assert record["declarations"]["simulated"] is False
    assert record["kernels"]["numerics"] >= 1
    assert "kernels" not in reference.describe()
    assert parse_method("block-sparse:6400,fast=true") == make_method("block-sparse", 6400, fast=True)


@pytest.mark.usefixtures("by_twin")
def test_the_handle_says_what_reads_the_blocks(make_model: Callable[..., PreTrainedModel]) -> None:
    with attach(small(make_model), make_method("block-sparse", 48, block=16, fast=True)) as attached:
        assert any("kernels over lists of them (fast, backend torch)" in note for note in attached.notes)
    with attach(small(make_model), make_method("block-sparse", 48, block=16)) as attached:
        assert attached.notes == ()


def test_without_a_gpu_it_is_refused_and_nothing_is_left_behind(
    make_model: Callable[..., PreTrainedModel],
) -> None:
    model = small(make_model)
    with pytest.raises(MethodError, match="fast needs a GPU with Triton, bfloat16 or float16"):
        attach(model, make_method("block-sparse", 48, block=16, fast=True))
    attach(model, make_method("block-sparse", 48, block=16)).detach()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "block-sparse",
            {"budget": 48, "block": 24},
            "block must be a power of 2 from 16 on with fast",
        ),
        ("moba", {"budget": 48, "chunk": 8}, "chunk must be a power of 2 from 16 on with fast, got 8"),
        ("vertical-slash", {"budget": 7096}, 'reading must be "kernel" with fast'),
        ("vertical-slash", {"budget": 7096, "block": 256, "reading": "kernel"}, "block must be at most 128"),
    ],
)
def test_what_no_list_can_say_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    make_method(name, **options)
    with pytest.raises(MethodError, match=message):
        make_method(name, fast=True, **options)


def test_every_method_of_lists_is_tested_here() -> None:
    listed = {name: method for name, method in known_methods().items() if issubclass(method, Listed)}
    in_prompts = {name for name, method in listed.items() if not issubclass(method, Paged)}  # test_paged.py
    assert in_prompts == set(CASES)
