"""Every kernel goes through Triton's compiler, for a GPU that need not be there.

The interpreter takes what the compiler refuses: a variable that changes its shape in a branch, say. Here the
kernels are compiled with the arguments of real calls, and not launched.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]

COMPILE = """
import re, subprocess, sys, tempfile
from dataclasses import replace
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

class Compiler:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

driver.set_active(Compiler())
run, names = JITFunction.run, set()

def compile_only(self, *args, grid, warmup, **options):
    names.add(self.fn.__name__)
    made = run(self, *args, grid=grid, warmup=True, **options)
    if self.fn.__name__.endswith("score_kernel"):
        names.add("bulk" if any(isinstance(x, TensorDescriptor) for x in args) else "pointers")
    if sys.argv[1] in ("shipped", "masked"):
        print(self.fn.__name__, made.metadata.shared, *assembled(made.asm["ptx"]))
    return made

def assembled(ptx):
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        assembler = [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
        said = subprocess.run(assembler, capture_output=True, text=True, check=True)
    said = said.stdout + said.stderr
    return re.search(r"(\\d+) bytes spill stores", said)[1], "C7515" in said

JITFunction.run = compile_only

import nsa_kernels.compression as compress
from nsa_kernels import BlockGeometry, num_blocks
from nsa_kernels.triton import configs, function
from nsa_kernels.triton.configs import H200
from nsa_kernels.triton.decode import decode
from nsa_kernels.types import Caches

G = BlockGeometry(block=8, stride=4, select_block=8, select_count=4, window=12)
T, C, HEADS, KV, DK, DV = 60, num_blocks(60, G), 6, 2, 24, 16
half = dict(dtype=torch.float16)
wide = [24, 16] * 3
q, gates = torch.zeros(2, T, HEADS, DK, **half), torch.zeros(2, T, HEADS, 3, **half)
caches = Caches(*(torch.zeros(2, C if i < 2 else T, KV, w, **half) for i, w in enumerate(wide)))
more = dict(geometry=G, scale=0.2, return_blocks=True)
lengths = torch.tensor([T, 30])

def attention():
    leaves = [x.requires_grad_() for x in (q, *caches, gates)]
    out, _ = function.attention(leaves[0], Caches(*leaves[1:7]), leaves[7], start=0, lengths=lengths, **more)
    out.backward(torch.zeros_like(out))

def shipped():
    # The paper's sizes, with what is shipped for them.
    shipped_for_hopper()
    def x(count, heads, width=128):
        return torch.zeros(1, count, heads, width, dtype=torch.bfloat16, requires_grad=True)

    rows = Caches(*(x(num_blocks(2048, BlockGeometry()) if i < 2 else 2048, 4) for i in range(6)))
    paper = dict(geometry=BlockGeometry(), start=0, lengths=None, scale=0.1, return_blocks=False)
    out, _ = function.attention(x(2048, 64), rows, x(2048, 64, 3), **paper)
    out.backward(torch.zeros_like(out))
    with torch.no_grad():
        low = torch.zeros(1, 2048, dtype=torch.int32)
        for query_block, found, more in ((64, 8, {}), (64, 8, {"columns": True}), (64, 2, {}), (128, 8, {}),
                                         (128, 8, {"members": True}), (128, 2, {"low": low})):
            listed(torch.bfloat16, 128, query_block, listed=found, tokens=2048, key_block=query_block, **more)
        window(torch.bfloat16, 128, 512)

def masked():
    # A group of 4, 64 wide: where all is chosen, where it is not, and the window's own keys and values.
    shipped_for_hopper()
    for size, shared in ((1024, True), (1024, False), (2048, True), (2048, False)):
        blocks = num_blocks(size, BlockGeometry())
        def x(count, heads, width=64):
            return torch.zeros(2, count, heads, width, dtype=torch.bfloat16, requires_grad=True)
        slc = x(size, 2), x(size, 2)
        rows = Caches(x(blocks, 2), x(blocks, 2), *slc, *(slc if shared else (x(size, 2), x(size, 2))))
        paper = dict(geometry=BlockGeometry(), start=0, lengths=None, scale=0.1, return_blocks=False)
        out, _ = function.attention(x(size, 8), rows, x(size, 8, 3), **paper)
        out.backward(torch.zeros_like(out))

def shipped_for_hopper():
    for module in list(sys.modules.values()):
        if hasattr(module, "table_name"): module.table_name = lambda device: "h200"
        if hasattr(module, "processors"): module.processors = lambda device: 132
        if hasattr(module, "bulk_additions"): module.bulk_additions = lambda x: True

def one_token():
    for geometry in (G, BlockGeometry()):
        decode(q[:, 0], caches, gates[:, 0], **more | {"geometry": geometry}, lengths=lengths)

def many():
    # Compressed keys enough for a stream of tiles: in bulk copies, and of an odd width by pointers.
    config, size = {**H200["decode_many"][128], "programs": 1}, 4000
    zeros = lambda *shape: torch.zeros(2, *shape, KV, 32, **half)
    for key in (32, DK):
        rows = Caches(*(zeros(num_blocks(size, BlockGeometry()) if i < 2 else size) for i in range(6)))
        rows = Caches(*(x[..., :key if i % 2 == 0 else 32] for i, x in enumerate(rows)))
        decode(torch.zeros(2, HEADS, key, **half), rows, gates[:, 0], lengths=lengths, config=config,
               **more | {"geometry": BlockGeometry()})

def phi():
    import nsa_kernels.triton.phi as kernels
    compress._triton_kernels = lambda: kernels  # asks for a GPU
    x, weight = caches.k_slc.requires_grad_(), torch.zeros(20, G.block * DK, **half).requires_grad_()
    out = torch.zeros(DK, 20, **half).requires_grad_()
    compress.compress_mean(x, G, backend="triton").sum().backward()
    compress.compress_linear(x, weight, G, backend="triton").sum().backward()
    compress.compress_mlp(x, weight, out, G, backend="triton").sum().backward()

def dense():
    from nsa_kernels.spans import SpanTable
    from nsa_kernels.triton import heads, nucleus, spans
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        queries = torch.zeros(3, 6, 64, dtype=kind)
        table = SpanTable(k=torch.zeros(3, 9, dtype=torch.int64), v=torch.zeros(3, 9, dtype=torch.int64),
                          sizes=torch.zeros(3, 9, dtype=torch.int32), tails=torch.zeros(3, dtype=torch.int32),
                          lengths=torch.zeros(3, dtype=torch.int32))
        spans.decode(queries, table, kv_heads=2, v_width=64, scale=None)
        part, lse = torch.zeros(5, 6, 64, dtype=kind), torch.zeros(6, 5)
        for where in (slice(2, 7), torch.arange(5)):
            spans.merge_into(torch.zeros(9, 6, 64), torch.zeros(6, 9), part, lse, where)
        angles = torch.zeros(1, 5, 1, 64)
        for norm, turned in ((part[0, 0], angles), (None, angles), (part[0, 0], None)):
            heads.norm_rotate(part[None], norm, 1e-6, turned, turned)
        heads.place(torch.zeros(3, 9, 2, 64, dtype=kind), queries[:, None, :2], table.lengths.long())
    nucleus.nucleus(torch.zeros(3, 5000), torch.zeros(3))

def listed(kind, width, query_block, listed=4, tokens=300, key_block=64, **more):
    from nsa_kernels.blocks import BlockLists
    from nsa_kernels.triton import blocks

    tiles = -(-tokens // query_block)
    lists = BlockLists.from_mask(torch.ones(1, listed, tiles, 5, dtype=torch.bool), query_block=query_block,
                                 key_block=key_block)
    if more.pop("columns", False):
        single = torch.zeros(1, listed, tiles, 9, dtype=torch.int32)
        lists = replace(lists, columns=single, column_counts=lists.counts)
    if more.pop("members", False):
        lists = lists.with_members(torch.ones(1, 8, tokens, 5, dtype=torch.bool))
    q, k = torch.zeros(1, tokens, 8, width, dtype=kind), torch.zeros(1, tokens, 2, width, dtype=kind)
    rows = dict(start=torch.zeros(1, dtype=torch.int32), ends=torch.ones(1, dtype=torch.int32))
    blocks.prefill(q, k, k, lists, **rows, **{"low": None, "causal": True, "scale": 0.1} | more)

def window(kind, width, queries):
    from nsa_kernels.triton import blocks

    q, k = torch.zeros(queries, 8, width, dtype=kind), torch.zeros(1500, 2, width, dtype=kind)
    blocks.window_sums(q, k, torch.zeros(8, queries), window=700, scale=0.1)

def lists():
    from nsa_kernels.blocks import PageLists
    from nsa_kernels.triton import blocks

    for kind, width, query_block in ((torch.float32, 64, 64), (torch.float16, 64, 128),
                                     (torch.bfloat16, 128, 64)):
        listed(kind, width, query_block)
        window(kind, width, 1 if width == 64 else 300)
    low = torch.zeros(1, 300, dtype=torch.int32)
    for more in (dict(members=True), dict(low=low, columns=True), dict(causal=False)):
        listed(torch.float16, 64, 64, listed=8, **more)
    for kind, sizes, page in ((torch.float16, (8, 2), 16), (torch.float32, (1,), 24),
                              (torch.bfloat16, (8,), 1)):
        for found in sizes:
            pages = PageLists(firsts=torch.zeros(3, found, 9, dtype=torch.int32),
                              counts=torch.ones(3, found, dtype=torch.int32), page=page)
            q, k = torch.zeros(3, 8, 64, dtype=kind), torch.zeros(3, 200, 2, 64, dtype=kind)
            blocks.decode(q, k, k, pages, lengths=torch.ones(3, dtype=torch.int32), scale=0.1)
        blocks.append(k, k, k[:, 0], pages.counts[:, 0], page=page)
        scores = blocks.page_scores(q, k, k)
        blocks.page_scores(q, k, k, counts=pages.counts[:, 0])
        for forced in (True, False):
            blocks.best_pages(scores, pages.counts[:, 0], page=page, budget=99, least=3, forced=forced)
    below, columns = torch.zeros(1, 2, 365, dtype=torch.int32), torch.zeros(1, 2, 40, dtype=torch.int32)
    blocks.slash_lists(below, columns, tiles=5, block=64)

torch.set_grad_enabled(sys.argv[1] in ("attention", "masked", "phi", "shipped"))
globals()[sys.argv[1]]()
print(*sorted(names))
"""
KERNELS = {
    "attention": "_compressed_forward_kernel _forced_forward_kernel _gate_backward_kernel "
    "_key_tile_backward_kernel _select_kernel _selected_backward_kernel _selected_forward_kernel "
    "_window_forward_kernel",
    "phi": "linear_forward_kernel mean_backward_kernel mean_forward_kernel mlp_forward_kernel",
    "one_token": "attend_kernel merge_kernel score_kernel",
    "dense": "merge_kernel merge_splits_kernel norm_rotate_kernel nucleus_kernel partial_kernel place_kernel",
    "lists": "append_kernel best_pages_kernel block_prefill_kernel columns_kernel merge_splits_kernel "
    "page_partial_kernel page_scores_kernel runs_kernel window_sums_kernel",
    "many": "attend_kernel bulk merge_kernel pointers score_kernel",
}


MASKED_SPILLED = {"_masked_forward_kernel": 16}
SPILLED = {
    "_selected_backward_kernel": 128,
    "_key_tile_backward_kernel": 32,
    "_select_kernel": 192,
    "_window_forward_kernel": 16,
    "block_prefill_kernel": 32,
}
"""Bytes a thread, by the assembler's count, where any are. Shared memory leaves these kernels a small L1
cache, so that what their loops spill comes from L2: at 356 the first took a fifth longer."""

SHARED = 227 * 1024
"""Bytes of shared memory that a program can have on Hopper."""


@pytest.mark.parametrize("what", KERNELS)
def test_they_compile(what: str, tmp_path: Path) -> None:
    assert set(KERNELS[what].split()) <= set(compile_kernels(what, tmp_path)[-1].split())


def test_what_is_shipped_for_hopper_spills_little(tmp_path: Path) -> None:
    *kernels, _ = compile_kernels("shipped", tmp_path)
    assert len(kernels) >= 10
    for line in kernels:
        name, shared, spilled, _ = line.split()
        assert int(spilled) <= SPILLED.get(name, 0), line
        assert int(shared) <= SHARED, line


def test_masked_kernels_spill_little_and_their_products_run_beside_other_work(tmp_path: Path) -> None:
    """Which ptxas denies a loop where it copies accumulators (C7515)."""
    *kernels, _ = compile_kernels("masked", tmp_path)
    masked = [line.split() for line in kernels if line.startswith(("_masked", "_query_grad", "_key_grad"))]
    assert len({name for name, *_ in masked}) == 3
    for name, _, spilled, serialized in masked:
        assert int(spilled) <= MASKED_SPILLED.get(name, 0), (name, spilled)
        assert serialized == "False", name


def compile_kernels(what: str, tmp_path: Path) -> list[str]:
    """What the compiling process printed, line by line."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT / "kernels")}
    command = [sys.executable, "-c", COMPILE, what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()
