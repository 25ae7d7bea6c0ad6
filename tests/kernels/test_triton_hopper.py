"""The branches' kernel for Hopper without one: what it takes, and that it compiles."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")

from launch_candidates import HOPPER

from nsa_kernels import BlockGeometry
from nsa_kernels.triton import configs
from nsa_kernels.triton.function import make_grid
from nsa_kernels.triton.hopper import conditions
from nsa_kernels.triton.hopper.conditions import fits, pitch, serves
from nsa_kernels.triton.prefill import compressed, window_and_forced
from nsa_kernels.triton.tiles import Grid
from nsa_kernels.types import Caches

ROOT = Path(__file__).parents[2]
SHARED_MEMORY = 227 * 1024  # of a program on Hopper
SPILLED = 128  # bytes a thread; 0 with the shipped configuration

COMPILE = """
import json, subprocess, sys, triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from nsa_kernels.triton.hopper.conditions import WIDTH
from nsa_kernels.triton.hopper.parts import Sizes, heads_layout, shared_layout
from nsa_kernels.triton.hopper.stream import attention_kernel

def compiled(dtype, group, branches, select, config):
    kernel = attention_kernel
    keys = f"tensordesc<{dtype}[{config['BN']},{WIDTH}],{shared_layout()!r}>"
    rows = f"tensordesc<{dtype}[1,{64 // group},{group},{WIDTH}],{heads_layout()!r}>"
    slots = ("KEY_SLOTS", "VALUE_SLOTS", "QUERY_SLOTS")
    constants = {name: config[name] for name in slots} | {
        "SIZES": Sizes(group, 128 // group, 32, 16, select, 512), "FIRST": branches - 1,
    }
    if branches == 1:
        constants |= dict.fromkeys(("K2", "V2", "Out2", "Lse2", "pitch_k2", "pitch_v2"))
    types = {"Q": rows, "Starts": "*i32", "Ends": "*i32", "scale_log2": "fp32"}
    for n in "12":
        types |= {"K" + n: keys, "V" + n: keys, "Out" + n: rows, "Lse" + n: "*fp32"}
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    aligned = {places[name]: [["tt.divisibility", 16]] for name, kind in signature.items()
               if kind.startswith("*")}
    source = GluonASTSource(kernel, signature, {places[name]: constants[name] for name in constants}, aligned)
    options = {"num_warps": config["num_warps"], "maxnreg": config["maxnreg"]}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)

for number, case in enumerate(json.loads(sys.argv[1])):
    made = compiled(*case)
    ptx = f"{sys.argv[2]}/{number}.ptx"
    open(ptx, "w").write(made.asm["ptx"])
    assembler = [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", ptx, "-o", ptx + ".cubin"]
    said = subprocess.run(assembler, capture_output=True, text=True, check=True)
    print(json.dumps({"shared": made.metadata.shared, "said": said.stdout + said.stderr,
                      "code": made.asm["ttgir"]}))
"""


Case = tuple[str, int, int, int, dict[str, int]]
"""Type, heads to a group, branches, tokens to a selection block, configuration."""


def compile_for_hopper(cases: list[Case], folder: Path) -> list[dict[str, Any]]:
    """Shared memory, ptxas's messages and Triton's code, in a process that does not interpret kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT / "kernels")}
    command = [sys.executable, "-c", COMPILE, json.dumps(cases), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


SHIPPED = dict(configs.H200["window_and_forced_hopper"][128])
SHIPPED_ALONE = dict(configs.H200["compressed_hopper"][128])
CASES: dict[str, list[Case]] = {
    "shipped": [("bf16", 16, 1, 64, SHIPPED_ALONE), ("bf16", 16, 2, 64, SHIPPED)],
    "groups and types": [
        ("fp16", 4, 1, 64, SHIPPED),
        ("bf16", 2, 2, 16, SHIPPED),
        ("fp16", 64, 2, 128, SHIPPED),
    ],
    "candidates": [("bf16", 16, 2, 64, config) for config in HOPPER if config != SHIPPED],
}


@pytest.mark.parametrize(
    "name", ["shipped", *(pytest.param(name, marks=pytest.mark.slow) for name in list(CASES)[1:])]
)
def test_it_compiles_and_its_products_stay_asynchronous(name: str, tmp_path: Path) -> None:
    results = compile_for_hopper(CASES[name], tmp_path)
    assert len(results) == len(CASES[name])
    for result in results:
        assert result["shared"] <= SHARED_MEMORY
        assert "wgmma" not in result["said"], result["said"]  # C7510 to C7514: products are serialised
        spilled = result["said"].split(" bytes spill stores")[0].split()[-1]
        assert int(spilled) <= SPILLED


@pytest.mark.parametrize(("branches", "inner_loops"), [(1, 5), (2, 6)])
def test_bounds_of_inner_loops_are_made_in_each_round(
    branches: int, inner_loops: int, tmp_path: Path
) -> None:
    """Triton forgets to carry a number that only bounds inner loops: they would keep the first round's."""
    config = SHIPPED_ALONE if branches == 1 else SHIPPED
    (result,) = compile_for_hopper([("bf16", 16, branches, 64, config)], tmp_path)
    made: dict[str, int] = {}
    rounds, inner = 0, 0
    for number, line in enumerate(result["code"].splitlines()):
        loop = re.search(r"scf\.for %j\w* = %\w+ to (%\w+) step", line)
        if loop:
            inner += 1
            assert made[loop[1]] > rounds
        elif "scf.for" in line:
            rounds = number
        name = re.match(r"\s*(%\w+)(?::\d+)? = ", line)
        if name:
            made[name[1]] = number
    # Without masks and with them, in two consumers; the tiles of each branch, in the producer.
    assert inner == inner_loops


def inputs(
    *, batch: int = 2, heads: int = 8, kv_heads: int = 2, dim: int = 128, dtype: torch.dtype = torch.bfloat16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q = torch.zeros(batch, 40, heads, dim, dtype=dtype)
    return q, *(torch.zeros(batch, 9, kv_heads, dim, dtype=dtype) for _ in range(2))


def grid_of(q: torch.Tensor, k: torch.Tensor) -> Grid:
    caches = Caches(*([k] * 6))
    return make_grid(q, caches, geometry=BlockGeometry(), start=0, lengths=None, scale=1.0)


def takes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    return fits(q, (k, v), grid_of(q, k))


class TestFits:
    def test_both_types_and_groups_that_fill_a_warpgroups_rows(self) -> None:
        assert takes(*inputs())
        assert takes(*inputs(dtype=torch.float16))
        assert takes(*inputs(heads=64, kv_heads=1))
        assert not takes(*inputs(heads=10))
        assert not takes(*inputs(heads=128, kv_heads=1))
        assert not takes(*inputs(heads=2))

    def test_other_types_and_widths_do_not(self) -> None:
        q, k, v = inputs()
        assert not takes(*inputs(dtype=torch.float32))
        assert not takes(q, k.half(), v)
        assert not takes(*inputs(dim=64))
        assert not takes(q, k, v[..., :64].contiguous())

    def test_nothing_without_a_block(self) -> None:
        q, k, v = inputs()
        assert not takes(q, k[:, :0], v[:, :0])

    def test_a_part_of_a_longer_cache_fits(self) -> None:
        q, k, v = inputs()
        assert takes(q, k[:, 2:7], v[:, 2:7])
        assert pitch(k[:, 2:7]) == 9
        assert pitch(k[:1, :7]) == 7

    def test_heads_that_are_apart_do_not(self) -> None:
        q, k, v = inputs()
        apart = torch.stack([k, v], -2)  # keys and values of a head side by side
        assert not takes(q, apart[..., 0, :], apart[..., 1, :])
        assert not takes(q, k.transpose(1, 2).contiguous().transpose(1, 2), v)
        assert takes(q, k[:, :5], v[:, :5].contiguous())  # each has its own way to the next batch row

    def test_queries_whose_heads_cannot_be_copied_in_bulk_do_not(self) -> None:
        q, k, v = inputs()
        assert takes(q.transpose(1, 2).contiguous().transpose(1, 2), k, v)
        assert not takes(torch.nn.functional.pad(q, (0, 1))[..., :128], k, v)  # rows of 258 bytes


def test_a_cpu_is_not_served() -> None:
    q, k, v = inputs()
    assert not serves(q, (k, v), grid_of(q, k))


def test_its_configurations_mean_nothing_where_it_does_not_serve() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, count, 2, 16) for count in (40, 1, 1))
    grid = grid_of(q, torch.zeros(1, 40, 2, 16))
    expected = compressed.compressed_forward(q, k, v, grid)
    for ours, theirs in zip(
        compressed.compressed_forward(q, k, v, grid, config=SHIPPED), expected, strict=True
    ):
        assert torch.equal(ours, theirs)
    tokens = [torch.randn(1, 40, 2, 16) for _ in range(4)]
    pairs = window_and_forced.window_and_forced_forward(q, Caches(k, v, *tokens), grid, config=SHIPPED)
    plain = (
        window_and_forced.window_forward(q, *tokens[2:], grid),
        window_and_forced.forced_forward(q, *tokens[:2], grid),
    )
    for ours, theirs in zip(pairs, plain, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        ("import triton; triton.__version__ = '3.5.1'", "written for Triton 3.6 and 3.7, and this is 3.5.1"),
        ("import triton; triton.__version__ = '4.0.0+git1'", "this is 4.0.0+git1"),
        ("import sys; sys.modules['triton.experimental.gluon'] = None", "has no Gluon here"),
        (
            "from triton.experimental.gluon import language; "
            "del language.shared_memory_descriptor._reinterpret",
            "shared_memory_descriptor._reinterpret",
        ),
    ],
)
def test_a_triton_without_what_it_takes_has_the_plain_kernels_alone_and_says_why_once(
    lacking: str, reason: str
) -> None:
    code = (
        f"{lacking}\n"
        "import torch, triton\n"
        "from launch_candidates import candidates\n"
        "from nsa_kernels.triton.prefill import compressed, window_and_forced\n"
        "from nsa_kernels.triton.hopper import conditions\n"
        "triton.knobs.runtime.interpret = False\n"
        "conditions.table_name = lambda device: 'h200'\n"
        "conditions.PIECES, conditions.fits = 0, lambda *_: True\n"
        "class grid: batch = queries = heads = 1\n"
        "assert not any(conditions.serves(torch.zeros(1), (), grid) for _ in range(2))\n"
        "assert conditions.missing()\n"
        "assert all('BM' in config for config in candidates('compressed_forward'))\n"
        "assert not candidates('window_and_forced_forward')"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'kernels'}{os.pathsep}{ROOT / 'benchmarks'}"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("without its kernel for Hopper") == 1
    assert reason in done.stderr


def test_this_triton_has_what_it_takes() -> None:
    assert conditions.missing() is None
