"""Attention by lists on a GPU, with the configurations that are shipped for it."""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytest.importorskip("triton")

from nsa_kernels.bench.block_measure import measure_blocks
from nsa_kernels.bench.block_result import BlockSettings
from nsa_kernels.block_choice import block_sparse, moba, vertical_slash
from nsa_kernels.blocks import BlockLists, block_attention, page_decode
from nsa_kernels.pages import PageExtremes, quest_pages

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")
# Of a norm: rounding of weights and outputs to 16 bits.
CLOSE = {torch.bfloat16: 6e-3, torch.float16: 1e-3}


def drawn(*shape, dtype=torch.bfloat16, seed=0):
    pick = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(*shape, generator=pick, device=DEVICE, dtype=dtype)


def heads_of(queries, keys, *, heads=8, kv_heads=2, width=128, dtype=torch.bfloat16, batch=1):
    q = drawn(batch, queries, heads, width, dtype=dtype)
    k, v = (drawn(batch, keys, kv_heads, width, dtype=dtype, seed=seed) for seed in (1, 2))
    return q, k, v


def held(q, k, v, lists, **given):
    """The kernel against the twin in float32 from the same inputs."""
    with torch.no_grad():
        expected = block_attention(q.float(), k.float(), v.float(), lists, backend="torch", **given)
        found = block_attention(q, k, v, lists, backend="triton", **given)
    assert found.out.isfinite().all()
    gap = (found.out.float() - expected.out).norm() / expected.out.norm()
    assert float(gap) < CLOSE[q.dtype]
    torch.testing.assert_close(found.lse, expected.lse, rtol=1e-2, atol=2e-2)


# Each is a kernel to compile: a case has what no other has.
CASES = {
    "a list for each head": {},
    "a list for a group": {"listed": 2},
    "one list, larger blocks": {"listed": 1, "key_block": 128},
    "blocks of many steps": {"key_block": 512},
    "tiles of 128": {"query_block": 128},
    "tiles of 128, blocks of 128, one list": {"listed": 1, "query_block": 128, "key_block": 128},
    "a window": {"low": True},
    "a window, tiles of 128": {"listed": 1, "query_block": 128, "key_block": 128, "low": True},
    "not causal": {"causal": False},
    "not causal, tiles of 128": {"query_block": 128, "causal": False},
    "float16, 64 wide": {"width": 64, "dtype": torch.float16},
    "float16, 64 wide, tiles of 128": {"query_block": 128, "width": 64, "dtype": torch.float16},
}


@pytest.mark.parametrize("case", CASES)
def test_lists_of_any_kind_agree_with_the_twin(case):
    """1,300 queries behind 700 cached tokens; row 1 ends early, and NaN stands behind it."""
    plain = {"listed": 8, "query_block": 64, "key_block": 64, "width": 128, "dtype": torch.bfloat16}
    given = {**plain, "low": False, "causal": True, **CASES[case]}
    q, k, v = heads_of(1300, 2000, width=given["width"], dtype=given["dtype"], batch=2)
    lengths = torch.tensor([2000, 1111], device=DEVICE)
    k[1, 1111:] = v[1, 1111:] = float("nan")
    tiles, blocks = -(-1300 // given["query_block"]), -(-2000 // given["key_block"])
    mask = drawn(2, given["listed"], tiles, blocks, dtype=torch.float32, seed=3) > 0
    lists = BlockLists.from_mask(mask, query_block=given["query_block"], key_block=given["key_block"])
    low = (torch.arange(700, 2000, device=DEVICE) - 600).clamp(min=0).int().expand(2, -1).contiguous()
    bounds = {"low": low if given["low"] else None, "causal": given["causal"]}
    held(q, k, v, lists, start=700, lengths=lengths, **bounds)


@pytest.mark.parametrize(
    "choose",
    [
        lambda q, k: block_sparse(q, k, top=9),
        lambda q, k: vertical_slash(q, k, vertical=90, slash=300),
        lambda q, k: moba(q, k, chunk=256, top=4),
        lambda q, k: moba(q, k, chunk=32, top=7, query_block=64),
    ],
    ids=["block-sparse", "vertical-slash", "moba 256", "moba 32"],
)
@pytest.mark.parametrize("tokens", [2048, 1999])
def test_what_methods_choose_is_read(tokens, choose):
    q, k, v = heads_of(tokens, tokens)
    lists = choose(q, k)
    lists.check()
    held(q, k, v, lists)


def test_slashes_become_the_same_lists_as_without_a_gpu():
    q, k, _ = heads_of(1999, 1999)
    found, expected = (
        vertical_slash(x.to(where), y.to(where), vertical=90, slash=300)
        for where in ("cuda", "cpu")
        for x, y in [(q.float(), k.float())]
    )
    # Sums are rounded once: whichever device made them, they have the same bits.
    assert torch.equal(found.seen(1999).cpu(), expected.seen(1999))


def test_offsets_beyond_two_billion_elements():
    """Keys of 2^31 elements and more; the last tile's list reads the last block of the last head."""
    kv_heads, tokens = 64, 2**19 // 2
    k = torch.zeros(1, tokens, kv_heads, 128, dtype=torch.bfloat16, device=DEVICE)
    v = torch.zeros_like(k)
    assert k.numel() >= 2**31
    v[0, -64:] = 3.0
    q = drawn(1, 64, kv_heads, 128)
    mask = torch.zeros(1, 1, 1, tokens // 64, dtype=torch.bool, device=DEVICE)
    mask[..., -1] = True
    lists = BlockLists.from_mask(mask, query_block=64, key_block=64)
    with torch.no_grad():
        out = block_attention(q, k, v, lists, start=tokens - 64, backend="triton").out
    assert torch.equal(out, torch.full_like(out, 3.0))


def test_quest_decodes_from_a_graph_as_it_does_without():
    """Tokens are taken in, pages chosen and read, all in one replay."""
    q, k, v = heads_of(1, 9000, batch=3)
    q = q[:, 0].contiguous()
    lengths = torch.tensor([8000, 515, 33], device=DEVICE)

    def step(kept, lengths):
        row = torch.arange(3, device=DEVICE)
        kept.append(k[row, lengths - 1], lengths - 1)
        lists = quest_pages(kept.scores(q), lengths, page=16, budget=512)
        return page_decode(q, k, v, lists, lengths=lengths)

    def extremes(lengths):
        return PageExtremes.of(k, page=16, lengths=lengths, capacity=9000)

    with torch.no_grad():
        kept, now = extremes(lengths - 1), lengths.clone()
        for _ in range(2):
            step(extremes(lengths - 1), now)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = step(kept, now)
        for more in range(20):
            now.copy_(lengths + more)
            graph.replay()
            whole = extremes(lengths + more)
            lists = quest_pages(whole.scores(q), now, page=16, budget=512)
            expected = page_decode(q.float(), k.float(), v.float(), lists, lengths=now, backend="torch")
            gap = (out.float() - expected).norm() / expected.norm()
            assert float(gap) < CLOSE[torch.bfloat16]


def test_the_benchmark_runs(capsys):
    small = BlockSettings(
        lengths=(2048,), mask_lengths=(2048,), densities=(0.2,), batches=(2,), seconds=300.0,
        case_seconds=0.01,
    )  # fmt: skip
    result = measure_blocks(small, command=["bench"])
    # cuDNN and flash may lack a form; what is this project's own has to run.
    own = ("lists", "quest", "block-sparse", "vertical", "moba", "infllm", "nsa", "window")
    assert [note for note in result.notes if any(word in note for word in own)] == []
    with capsys.disabled():
        print(f"\n{result.text()}")
