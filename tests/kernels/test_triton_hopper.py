"""The compressed attention's kernel for Hopper without one: what it takes, and that it compiles."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")

from nsa_kernels import BlockGeometry
from nsa_kernels.triton import compressed, configs
from nsa_kernels.triton.compressed_hopper import SEARCH, fits, serves
from nsa_kernels.triton.function import make_grid
from nsa_kernels.triton.hopper import pitch
from nsa_kernels.triton.tiles import Grid
from nsa_kernels.types import Caches

ROOT = Path(__file__).parents[2]
SHARED_MEMORY = 227 * 1024  # of a program on Hopper
SPILLED = (
    256  # bytes a thread; 20 with 16 heads to a group, 208 with 5. At the ends of a piece, not in its loops.
)

COMPILE = """
import itertools, json, subprocess, sys, triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from nsa_kernels.triton import compressed_hopper as hopper

def compiled(dtype, group, config):
    kernel, padded = hopper._compressed_hopper, triton.next_power_of_2(group)
    tile = f"tensordesc<{dtype}[{config['BN']},{hopper.WIDTH}],{hopper.shared_layout()!r}>"
    constants = {
        "SIZES": hopper.Sizes(group, padded, 128 // padded, 32, 16),
        "KEY_SLOTS": config["KEY_SLOTS"],
        "VALUE_SLOTS": config["VALUE_SLOTS"],
    }
    types = {"Q": "*" + dtype, "Out": "*" + dtype, "Lse": "*fp32", "Starts": "*i32", "Ends": "*i32",
             "K": tile, "V": tile, "scale": "fp32"} | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    aligned = {places[name]: [["tt.divisibility", 16]] for name, kind in signature.items()
               if kind.startswith("*") or name.startswith("stride")}
    source = GluonASTSource(kernel, signature, {places[name]: constants[name] for name in constants}, aligned)
    options = {"num_warps": config["num_warps"], "maxnreg": config["maxnreg"]}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)

for number, (dtype, group, config) in enumerate(json.loads(sys.argv[1])):
    made = compiled(dtype, group, config)
    ptx = f"{sys.argv[2]}/{number}.ptx"
    open(ptx, "w").write(made.asm["ptx"])
    assembler = [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", ptx, "-o", ptx + ".cubin"]
    said = subprocess.run(assembler, capture_output=True, text=True, check=True)
    print(json.dumps({"shared": made.metadata.shared, "said": said.stdout + said.stderr}))
"""


def compile_for_hopper(cases: list[tuple[str, int, dict[str, int]]], folder: Path) -> list[dict[str, Any]]:
    """Shared memory and ptxas's messages, in a process that does not interpret kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT / "kernels")}
    command = [sys.executable, "-c", COMPILE, json.dumps(cases), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


SHIPPED = dict(configs.H200["compressed_hopper"][128])
CASES = {
    "shipped": [("bf16", 16, SHIPPED)],
    "groups and types": [("fp16", 4, SHIPPED), ("bf16", 1, SHIPPED), ("fp16", 5, SHIPPED)],
    "candidates": [("bf16", 16, config) for config in SEARCH if config != SHIPPED],
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


def inputs(
    *, batch: int = 2, heads: int = 8, kv_heads: int = 2, dim: int = 128, dtype: torch.dtype = torch.bfloat16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q = torch.zeros(batch, 40, heads, dim, dtype=dtype)
    return q, *(torch.zeros(batch, 9, kv_heads, dim, dtype=dtype) for _ in range(2))


def grid_of(q: torch.Tensor, k: torch.Tensor) -> Grid:
    caches = Caches(*([k] * 6))
    return make_grid(q, caches, geometry=BlockGeometry(), start=0, lengths=None, scale=1.0)


def takes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    return fits(q, k, v, grid_of(q, k))


class TestFits:
    def test_both_types_and_groups_up_to_a_warpgroups_rows(self) -> None:
        assert takes(*inputs())
        assert takes(*inputs(dtype=torch.float16))
        assert takes(*inputs(heads=10))
        assert takes(*inputs(heads=64, kv_heads=1))
        assert not takes(*inputs(heads=65, kv_heads=1))

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
        assert not takes(q, k[:, :5], v[:, :5].contiguous())  # not as long a way to the next batch row


def test_a_cpu_is_not_served() -> None:
    q, k, v = inputs()
    assert not serves(q, k, v, grid_of(q, k))


def test_its_configurations_mean_nothing_where_it_does_not_serve() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, count, 2, 16) for count in (40, 1, 1))
    grid = grid_of(q, torch.zeros(1, 40, 2, 16))
    expected = compressed.compressed_forward(q, k, v, grid)
    for ours, theirs in zip(
        compressed.compressed_forward(q, k, v, grid, config=SHIPPED), expected, strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_triton_without_gluon_has_the_plain_kernel_alone() -> None:
    code = (
        "import sys; sys.modules['triton.experimental.gluon'] = None\n"
        "from nsa_kernels.triton import compressed\n"
        "assert compressed.on_hopper is None and all('BM' in config for config in compressed.SEARCH)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "kernels")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
