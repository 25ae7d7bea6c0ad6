"""The torch backend never makes the call that CUDA's memory-efficient attention answers wrongly."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from nsa_kernels import nsa_attention
from nsa_kernels.lone_query import leaves_one_over, one_more_query
from nsa_kernels.torch_ import branches, chunked

LENGTHS = [1, 2, 32, 33, 34, 64, 65, 97, 129]
SCALE = 0.4


@pytest.fixture
def exact_float32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def problem(queries: int, keys: int, group: int, width: int = 8, **kind):
    make = torch.Generator().manual_seed(queries)
    q, k, v = (
        torch.randn(2, *shape, generator=make, dtype=torch.float64).to(**kind)
        for shape in ((group, queries, width), (keys, width), (keys, 8))
    )
    place = torch.arange(keys)
    mask = (place <= torch.arange(keys - queries, keys)[:, None]) & (place % 3 != 1)
    return q, k, v, mask.to(q.device)


def plainly(q, k, v, mask):
    logits = (q @ k[:, None].transpose(-1, -2)) * SCALE
    return logits.masked_fill(~mask, -torch.inf).softmax(-1) @ v[:, None]


@pytest.mark.parametrize("each_row", [False, True])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("queries", LENGTHS)
def test_a_mask_reaches_its_own_query(queries, group, each_row, kernel_with_lone_queries) -> None:
    q, k, v, mask = problem(queries, queries + 30, group)
    mask = mask.expand(2, 1, -1, -1) if each_row else mask
    found = branches.attend(q, k, v, mask=mask, scale=SCALE)
    torch.testing.assert_close(found, plainly(q, k, v, mask))


@pytest.mark.parametrize("queries", LENGTHS)
def test_a_causal_call_hides_the_keys_behind_its_queries(queries, kernel_with_lone_queries) -> None:
    q, k, v, _ = problem(queries, queries + 30, 3)
    found = branches.attend(q, k, v, causal=True, scale=SCALE)
    causal = torch.arange(queries + 30) <= torch.arange(queries)[:, None]
    torch.testing.assert_close(found, plainly(q, k, v, causal))


def test_the_stand_in_for_the_kernel_has_the_fault(kernel_with_lone_queries) -> None:
    q, k, v, mask = problem(65, 95, 3)
    k, v = (x[:, None].expand(-1, 3, -1, -1) for x in (k, v))
    found = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=SCALE)
    error = (found - plainly(q, k[:, 0], v[:, 0], mask)).abs().amax((0, 1, 3))
    assert (error > 1e-3).nonzero().flatten().tolist() == [64]


@pytest.mark.parametrize("case", [{}, {"start": 7}, {"start": [0, 5]}], ids=str)
@pytest.mark.parametrize("queries", [33, 65, 32 + 33, 32 + 65])
def test_attention_of_such_lengths_is_the_oracles(
    queries: int, case: dict, attention: Callable, oracle: Callable, make_inputs, small, monkeypatch, request
) -> None:
    request.getfixturevalue("kernel_with_lone_queries")
    monkeypatch.setattr(chunked, "CPU_ELEMENTS", 1 << 20)  # long runs: others than the fixture's
    monkeypatch.setattr("nsa_kernels.torch_.masked.RUN", 512)
    inputs = make_inputs(small, queries=queries, **case)
    expected, expected_blocks = inputs.run(oracle)
    out, blocks = inputs.run(attention)
    torch.testing.assert_close(out, expected)
    assert torch.equal(blocks, expected_blocks)


def test_gradients_pass_the_query_that_is_added() -> None:
    q, k, v, mask = problem(33, 40, 2)
    found, wanted = [], []
    for attend, grads in ((lambda *x: branches.attend(*x, mask=mask, scale=SCALE), found), (None, wanted)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend(*leaves) if attend else plainly(*leaves, mask)
        out.square().sum().backward()
        grads += [x.grad for x in leaves]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_the_added_query_sees_everything() -> None:
    q, _, _, mask = problem(33, 40, 2)
    longer, seen = one_more_query(q, mask)
    assert (longer.shape[2], seen.shape) == (34, (34, 40))
    assert seen[-1].all()
    assert torch.equal(seen[:-1], mask)
    added = one_more_query(q, torch.zeros(1, 1, 33, 40).masked_fill(~mask, -torch.inf))[1]
    assert added.shape == (1, 1, 34, 40)
    assert not added[..., -1, :].any()
    assert one_more_query(q, mask[:1])[1].shape == (1, 40)


def test_one_query_in_32_lengths_is_alone() -> None:
    assert [n for n in range(1, 130) if leaves_one_over(n)] == [33, 65, 97, 129]


@pytest.mark.gpu
@pytest.mark.usefixtures("exact_float32")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [8, 64, 128, 192])
def test_on_a_gpu_each_query_has_its_mask_at_every_length(width: int, dtype: torch.dtype) -> None:
    """Without gradients, which keep the kernel from its fault."""
    close, wrong = 1e-3 if dtype == torch.float32 else 5e-2, []
    for queries in range(1, 200):
        q, k, v, mask = problem(queries, queries + 30, 4, width, device="cuda", dtype=dtype)
        with torch.inference_mode():
            found = branches.attend(q, k, v, mask=mask, scale=SCALE)
        error = (found - plainly(*(x.double() for x in (q, k, v)), mask)).abs().amax((0, 1, 3))
        wrong += [(queries, query) for query in (error > close).nonzero().flatten().tolist()]
    assert not wrong


@pytest.mark.gpu
@pytest.mark.usefixtures("exact_float32")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("masked_keys", [0, 1 << 60], ids=["chunked", "masked"])
def test_on_a_gpu_attention_agrees_at_every_length_without_gradients(
    masked_keys: int, oracle: Callable, make_inputs, small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nsa_kernels.torch_.MASKED_KEYS_GPU", masked_keys)
    for queries in [*range(1, 40), *range(60, 70), *range(90, 102), *range(126, 132), 161, 193]:
        # Other tests compute in float64, which has another kernel.
        inputs = make_inputs(small, queries=queries, start=3, dtype=torch.float32)
        expected, expected_blocks = inputs.run(oracle)
        with torch.inference_mode():
            out, blocks = inputs.to("cuda").run(partial(nsa_attention, backend="torch"))
        same = (blocks.cpu() == expected_blocks).all(-1)  # a tie within rounding may go either way
        assert same.float().mean() > 0.99
        grouped = (x.unflatten(2, (same.shape[2], -1))[same] for x in (out.cpu(), expected))
        torch.testing.assert_close(*grouped, rtol=1e-4, atol=1e-4, msg=lambda m, n=queries: f"{n}: {m}")
