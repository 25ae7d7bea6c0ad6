"""What `fast` methods choose by against their definitions: equal sets, without waiting, within memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from nsa_kernels import block_choice, order_free
from nsa_kernels.blocks import BlockLists, BlockOutput
from nsa_models.methods import Method, PromptRow, QueryBlock, attach, make_method, seer_attention_prefill
from nsa_models.methods import _listed as listed
from nsa_models.methods import xattention as xattention_module
from nsa_models.methods._listed import Listed, attend_by_lists
from nsa_models.methods._placement import Placement
from nsa_models.methods._prompt import prompt_rows
from nsa_models.methods._rotary import Rotation

from .conftest import tokens
from .test_listed import AT_ONCE, CASES, drawn, each_at_once, gates, listed_keys, pair, turned
from .test_waits import Asked

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LENGTHS = (1, 9, 47, 64, 141)
"""One token, less than a block or a budget, incomplete last blocks and a complete one."""


def prompt(kind: str, count: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """Queries [4, count, 16] and keys [2, count, 16] of a row: scores apart, all ties, or close to ties."""
    q, k = drawn(count, seed=seed)
    if kind != "random":  # blocks and chunks of 16 and 32 hold the same keys again and again
        k = k[:, torch.arange(count) % 16]
    if kind == "close":
        k = k * (1 + 1e-6 * drawn(count, seed=seed + 100)[1])
    if kind == "tied":
        q = q.round()
    return q.to(dtype), k.to(dtype)


def defined_keys(method: Method, q: Tensor, k: Tensor, first: int, *, rows: int) -> Tensor:
    """Booleans [4, n, S] of the queries from `first` on by masks, `rows` of them at a time."""
    q, k = q.float(), k.float()
    row = PromptRow(q=q, k=k, scaling=0.25, layer=0, rotate=turned)
    plans = None if method.chunked_prefill else [method.plan(row)]
    keys = []
    for begin in range(first, q.shape[1], rows):
        positions = torch.arange(begin, min(begin + rows, q.shape[1]))
        block = QueryBlock(
            q=q[None, :, positions], k=k[None], positions=positions[None], scaling=0.25, layer=0, plans=plans
        )
        keys.append((method.select(block) & block.visible)[0].expand(4, -1, -1))
    return torch.cat(keys, 1)


@pytest.fixture(params=["whole", "in pieces"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choosers that hold everything at once, or next to nothing."""
    if request.param == "in pieces":
        for module, name in (
            (order_free, "CELLS"),
            (block_choice, "CELLS"),
            (xattention_module, "_CELLS"),
            (seer_attention_prefill, "_CELLS"),
        ):
            monkeypatch.setattr(module, name, 700)


@each_at_once
@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["random", "tied", "close"])
def test_both_choose_the_same_keys(case: tuple[str, dict[str, Any]], kind: str, dtype: torch.dtype) -> None:
    reference, fast = pair(*case)
    for seed, count in enumerate(LENGTHS):
        q, k = prompt(kind, count, dtype, seed)
        for first in {0, 16, 45, 46} & set(range(count)) if fast.chunked_prefill else (0,):
            found, _ = listed_keys(fast, q, k, first)
            assert torch.equal(found, defined_keys(reference, q, k, first, rows=23))


@pytest.mark.parametrize("name", ["block-sparse", "moba", "vertical-slash"])
def test_lists_are_chosen_by_the_kernels_own_choosers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    chooser = name.replace("-", "_")
    choose = getattr(block_choice, chooser)
    monkeypatch.setattr(
        block_choice, chooser, lambda *q, **given: called.append(given) or choose(*q, **given)
    )
    _, fast = pair(name, CASES[name][0])
    monkeypatch.setattr(type(fast), "plan", None)
    listed_keys(fast, *drawn(70), 0)
    assert len(called) == 1


@each_at_once
def test_rows_choose_as_they_do_alone(
    case: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding on the right, on the left, and as a hole."""
    _, fast = pair(*case)
    real = torch.ones(3, 90, dtype=torch.bool)
    real[0, 60:], real[1, :33], real[2, 20:29] = False, False, False
    order = torch.arange(90)
    place = Placement.from_mask(((order <= order[:, None]) & real[:, None] & real[..., None])[:, None])
    assert place is not None
    queries, keys = (x.repeat(3, 1, 1, 1) for x in drawn(90))
    found: list[BlockLists] = []

    def note(q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, **_: object) -> BlockOutput:
        found.append(lists)
        return BlockOutput(torch.zeros_like(q), q[..., 0].float())

    monkeypatch.setattr(listed, "block_attention", note)
    monkeypatch.setitem(listed.BACKENDS, "cpu", "torch")
    given: dict[str, Any] = {"scaling": 0.25}
    _, read = attend_by_lists(
        fast, queries, place.in_order(keys), place.in_order(keys), place, **given,
        plans=planned(fast, queries, place.in_order(keys), place),
    )  # fmt: skip
    for row in range(3):
        q, k = queries[row : row + 1, :, real[row]], keys[row : row + 1, :, real[row]]
        apart = Placement.bottom_right(1, q.shape[2], q.shape[2], q.device)
        _, own = attend_by_lists(fast, q, k, k, apart, **given, plans=planned(fast, q, k, apart))
        assert read[row] == own[0]
    parts = len(found) // 6
    for beside, alone in zip(found[: 3 * parts], found[3 * parts :], strict=True):
        assert torch.equal(beside.firsts, alone.firsts)
        assert torch.equal(beside.counts, alone.counts)


def planned(method: Listed, q: Tensor, k: Tensor, place: Placement) -> list[Any] | None:
    """Plans as a handle asks for them."""
    if method.chunked_prefill or method.lists_by_itself:
        return None
    rotate = Rotation(inv_freq=torch.ones(q.shape[-1] // 2, device=q.device), interleaved=False, at_end=False)
    rows = prompt_rows(q, k, place, scaling=0.25, layer=0, rotate=rotate)
    return [None if row is None else method.plan(row) for row in rows]


# ---- nothing is asked of a GPU


def unread(q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, **_: object) -> BlockOutput:
    """In place of the kernel, whose plain twin looks at lists."""
    return BlockOutput(torch.zeros_like(q), q[..., 0].float())


def unlooked(below: Tensor, columns: Tensor, *, tiles: int, block: int) -> tuple[Tensor, ...]:
    """In place of the kernel that makes a tile's runs, whose plain twin looks whether it is done."""
    shapes = ((tiles, tiles + 1), (tiles,), (tiles, columns.shape[-1]), (tiles,))
    return tuple(torch.zeros(*below.shape[:2], *s, dtype=torch.int32, device=below.device) for s in shapes)


@pytest.fixture
def kernels_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listed, "block_attention", unread)
    monkeypatch.setattr(block_choice, "_slash_lists_plainly", unlooked)
    for device in ("cpu", "meta"):
        monkeypatch.setitem(listed.BACKENDS, device, "torch")


@each_at_once
@pytest.mark.usefixtures("kernels_apart")
@pytest.mark.parametrize("kind", ["llama", "decoder"])
def test_layers_of_a_prompt_ask_for_nothing(
    make_model: Callable[..., PreTrainedModel],
    kind: str,
    case: tuple[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows with padding on either side: whatever is asked is asked once a forward, for all layers."""
    tables, plain = [], Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda x: tables.append(x.shape) or plain(x))
    fast = dataclasses.replace(pair(*case)[1], dense_layers=())
    mask = torch.ones(3, 60, dtype=torch.long)
    mask[0, 40:], mask[1, :25] = 0, 0
    ids = torch.stack([tokens(60, seed=row) for row in range(3)])
    found = []
    for layers in (1, 2):
        model = make_model(kind, num_hidden_layers=layers, head_dim=16).float()
        with attach(model, fast), torch.no_grad(), Asked() as asked:
            tables.clear()
            model(ids, attention_mask=mask)
        found.append((asked.found, list(tables)))
    assert found[0] == found[1]


class Peak(TorchDispatchMode):
    """The most bytes of tensors made inside that are there at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                self._live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self._live = {key: kept for key, kept in self._live.items() if not kept[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._live.values()))
        return out


def large_gate(tmp_path: Any) -> str:
    from safetensors.torch import save_file

    name = "model.layers.0.self_attn.attn_gate.mask_linear_k.weight"
    save_file({name: torch.zeros(32, 3 * 128, 128)}, tmp_path / "gate.safetensors")
    return str(tmp_path)


@pytest.mark.parametrize("name", sorted({name for name, _ in AT_ONCE}))
@pytest.mark.usefixtures("kernels_apart")
def test_a_prompt_of_64k_needs_no_data_and_three_gib(name: str, tmp_path: Any) -> None:
    """32 heads of 128 on a device without data: whoever asked for a number would fail. Inputs and outputs are
    1.75 GiB of bfloat16, and count."""
    options: dict[str, dict[str, Any]] = {
        "block-sparse": {"budget": 6400},
        "moba": {"budget": 4096, "chunk": 512},
        "seer-attention-prefill": {"weights": large_gate(tmp_path)},
        "vertical-slash": {"budget": 7096, "reading": "kernel"},
    }
    fast = make_method(name, fast=True, **options.get(name, {}))
    assert isinstance(fast, Listed)
    shape = {"dtype": torch.bfloat16, "device": "meta"}
    q, k = torch.empty(1, 32, 65536, 128, **shape), torch.empty(1, 8, 65536, 128, **shape)
    place = Placement.bottom_right(1, 65536, 65536, q.device)
    with Peak() as peak, torch.no_grad():
        attend_by_lists(fast, q, k, k, place, scaling=0.1, plans=planned(fast, q, k, place))
    assert peak.bytes < (7.4 if name == "pbs-attn" else 3.2) * 2**30  # it copies keys for each query head


def test_gates_reach_a_device_without_data() -> None:
    """Of `gates`, whose weights lie on the CPU."""
    fast = make_method("seer-attention-prefill", weights=gates(), block=16, fast=True)
    assert isinstance(fast, Listed)
    q, k = torch.empty(1, 4, 90, 16, device="meta"), torch.empty(1, 2, 90, 16, device="meta")
    (plan,) = planned(fast, q, k, Placement.bottom_right(1, 90, 90, q.device)) or [None]
    assert plan.shape == (4, 6, 6)
