"""Compiling ahead: what calls launch is noted without tensors, compiled once, and found at the launch."""

import contextlib
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
pytest.importorskip("triton")

from nsa_kernels import (
    BlockGeometry,
    NSAOutput,
    compilations,
    compile_ahead,
    nsa_decode,
    num_blocks,
    rehearsal,
)
from nsa_kernels.ahead import launch, real_device

ROOT = Path(__file__).parents[2]
META, CPU = torch.device("meta"), torch.device("cpu")


def decode_step(tokens: int, rows: int = 1, device: torch.device = META) -> NSAOutput:
    """A decode of `rows` rows against a cache of `tokens`."""

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(rows, *shape, dtype=torch.float16, device=device)

    geometry = BlockGeometry(window=64)
    caches = [zeros(num_blocks(tokens, geometry) if i < 2 else tokens, 2, 16) for i in range(6)]
    lengths = torch.full((rows,), tokens, device=device)
    return nsa_decode(
        zeros(4, 16), *caches, zeros(4, 3), geometry=geometry, lengths=lengths, backend="triton"
    )


def test_a_rehearsal_notes_launches_in_their_order_and_gives_outputs_of_the_right_shape() -> None:
    with rehearsal(CPU) as launches:
        out = decode_step(1000, rows=3)
    assert [x.kernel.fn.__name__ for x in launches] == ["score_kernel", "attend_kernel", "merge_kernel"]
    assert out.out.shape == (3, 4, 16)
    assert out.out.device == META


def test_behind_a_rehearsal_kernels_run_again_even_if_it_failed() -> None:
    with contextlib.suppress(ZeroDivisionError), rehearsal(CPU):
        assert real_device(META) == CPU
        raise ZeroDivisionError
    assert real_device(META) == META
    assert launch({(2,): "launched"}, (2,)) == "launched"
    if os.environ.get("TRITON_INTERPRET") == "1":
        assert torch.isfinite(decode_step(70, device=CPU).out).all()


def test_a_rehearsal_within_another_keeps_its_launches_to_itself() -> None:
    with rehearsal(CPU) as outer:
        with rehearsal(CPU) as inner:
            decode_step(100)
        assert outer == []
        decode_step(100)
    assert len(outer) == len(inner) == 3


def test_nothing_to_compile_costs_nothing_and_a_block_that_fails_compiles_nothing() -> None:
    with compile_ahead(CPU) as compiled:
        pass
    assert (compiled.kernels, compiled.cached, compiled.compile_seconds) == (0, 0, 0)
    with contextlib.suppress(ZeroDivisionError), compile_ahead(CPU) as compiled:
        decode_step(100)
        raise ZeroDivisionError
    assert compiled.wall_seconds == 0


COMPILE = """
import json, logging, os, sys
from types import SimpleNamespace
import torch, triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Compiler:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

driver.set_active(Compiler())
torch.cuda.get_device_capability = lambda device=None: (9, 0)
torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(multi_processor_count=132)
import nsa_kernels.triton
nsa_kernels.triton.unavailable = lambda: None
from nsa_kernels import compilations, compile_ahead
from nsa_kernels.ahead import Launch, compile_launches
from test_ahead import decode_step
os.environ.pop("TRITON_INTERPRET")  # which that asked for

device, said, logged = torch.device("cuda", 0), {}, []
logging.getLogger("nsa_kernels.ahead").addHandler(
    SimpleNamespace(level=0, handle=lambda record: logged.append(record.getMessage())))

def tell(name, compiled):
    said[name] = [compiled.kernels, compiled.cached, compiled.compile_seconds, compiled.wall_seconds]

for name, tokens in (("first", 600), ("other length", 593), ("same again", 600)):
    with compile_ahead(device, workers=2) as compiled:
        decode_step(tokens)
        decode_step(tokens)
    tell(name, compiled)
# Where a launch looks for it, it is: nothing is compiled and nothing read.
from nsa_kernels import rehearsal
with rehearsal(device) as launches:
    decode_step(608)
with compilations() as compiled:
    for x in launches:
        assert x.kernel.warmup(*x.arguments, grid=None, **x.options).asm["ptx"]
tell("launched", compiled)

@triton.jit
def broken_kernel(Out):
    tl.store(Out, tl.reshape(tl.arange(0, 8), [3]))

if sys.argv[1] == "broken":
    with compilations() as compiled:
        compile_launches([Launch(broken_kernel, (torch.zeros(8, device="meta"),), {})] + launches, device)
    tell("broken", compiled)
    said["logged"] = logged
    try:
        broken_kernel.warmup(torch.zeros(8, device="meta"), grid=None).asm
    except Exception as error:
        said["launched broken"] = type(error).__name__
print(json.dumps(said))
"""


def compile_in_a_process(what: str, cache: Path) -> dict[str, Any]:
    """What COMPILE said, in a process that does not interpret kernels."""
    script = cache.parent / "compile.py"  # triton reads a kernel's source from its file
    script.write_text(COMPILE)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(ROOT / "kernels"), str(Path(__file__).parent)]
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(script), what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for a GPU that is not there")
def test_kernels_are_compiled_once_for_lengths_alike_and_found_on_disk_by_the_next_process(
    tmp_path: Path,
) -> None:
    first = compile_in_a_process("broken", tmp_path / "cache")
    assert first["first"][:2] == [3, 0]
    assert first["first"][2] > 0
    assert first["first"][3] > 0
    for again in ("other length", "same again", "launched"):
        assert first[again][:3] == [0, 0, 0], again
    # What does not compile is told, keeps nothing else from it, and fails where it is launched.
    assert first["broken"][0] == 0
    assert len(first["logged"]) == 1
    assert first["logged"][0].startswith("broken_kernel does not compile: ")
    assert first["launched broken"]
    second = compile_in_a_process("sound", tmp_path / "cache")
    assert second["first"][:2] == [0, 3]


def test_compilations_give_the_listener_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    heard: list[dict[str, Any]] = []
    monkeypatch.setattr(triton.knobs.compilation, "listener", lambda **event: heard.append(event))
    before = triton.knobs.compilation.listener

    class Times:
        total = 2_500_000

    with compilations() as compiled:
        for cached in (False, True):
            triton.knobs.compilation.listener(times=Times, cache_hit=cached)
    assert triton.knobs.compilation.listener is before
    assert len(heard) == 2
    assert (compiled.kernels, compiled.cached, compiled.compile_seconds) == (1, 1, 5.0)
