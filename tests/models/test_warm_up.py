"""What an evaluation compiles: how many kernels, and that warming up knows them all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nsa_models import NSADecoderConfig, NSADecoderForCausalLM, warm_up

ROOT = Path(__file__).parents[2]

SHAPES: dict[str, dict[str, Any]] = {
    "twin": {
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
    },
    "wide": {"num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "nsa_compression": "mean"},
    "paper": {"num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 192, "v_head_dim": 128},
}

# Triton's own keys, of kernels that are not compiled here: those that a warm-up knows, and those of runs.
KEYS = """
import json, sys
from types import SimpleNamespace
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import compute_cache_key

class Compiler:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

driver.set_active(Compiler())
torch.cuda.get_device_capability = lambda device=None: (9, 0)
torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(multi_processor_count=132)
import nsa_kernels.triton
nsa_kernels.triton.unavailable = lambda: None
from nsa_kernels import rehearsal
from nsa_models import NSACache, NSADecoderConfig, NSADecoderForCausalLM, StaticDecoder
from nsa_models.warming import rehearse

DEVICE, META = torch.device("cuda", 0), torch.device("meta")

def keys(launches):
    found = set()
    for x in launches:
        _, known, _, _, binder = x.kernel.device_caches[0]
        _, values, options = binder(*x.arguments, **x.options, debug=False, instrumentation_mode="")
        found.add((x.kernel.fn.__name__, compute_cache_key(known, values, options)))
    return found

@torch.inference_mode()
def run(config, lengths, chunk, new_tokens, graphs):
    with META:
        model = NSADecoderForCausalLM(config).to(torch.bfloat16).eval()
    cache, rows, width = NSACache(config.num_hidden_layers), len(lengths), max(lengths)
    for start in range(0, width, chunk):
        size = min(chunk, width - start)
        mask = torch.arange(start, start + size) < torch.tensor(lengths)[:, None]
        model(torch.zeros(rows, size, dtype=torch.long, device=META), attention_mask=mask.long(),
              past_key_values=cache, logits_to_keep=1)
    if graphs:
        StaticDecoder(model, cache, max_new_tokens=new_tokens).step([0] * rows)
    else:
        model(torch.zeros(rows, 1, dtype=torch.long, device=META), past_key_values=cache)

said = {}
for name, case in json.loads(sys.argv[1]).items():
    config = NSADecoderConfig(hidden_size=64, intermediate_size=64, vocab_size=50, num_hidden_layers=1,
                              pad_token_id=49, **case["shape"])
    options = {name: case[name] for name in ("chunk", "new_tokens", "graphs")}
    with rehearsal(DEVICE) as warm:
        rehearse(config, torch.bfloat16, DEVICE, prompts=case["prompts"], rows=case["rows"], **options)
    with rehearsal(DEVICE) as launched:
        for lengths in case["batches"]:
            run(config, lengths, **options)
    known, needed = keys(warm), keys(launched)
    said[name] = {"known": sorted(key[0] for key in known), "needed": sorted(key[0] for key in needed),
                  "missed": sorted(needed - known)}
print(json.dumps(said))
"""


def keys_of(cases: dict[str, Any]) -> dict[str, Any]:
    """Names of kernels, one for each key, by case."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / part) for part in ("kernels", "models"))
    command = [sys.executable, "-c", KEYS, json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def case(
    shape: str, *batches: list[int], chunk: int = 8192, new_tokens: int = 128, graphs: bool = True
) -> dict[str, Any]:
    return {
        "shape": SHAPES[shape],
        "prompts": [length for batch in batches for length in batch],
        "rows": [len(batch) for batch in batches],
        "batches": batches,
        "chunk": chunk,
        "new_tokens": new_tokens,
        "graphs": graphs,
    }


ONE_PROMPT = {"twin": 17, "wide": 15, "paper": 18}
"""Kernels of one 64k prompt in pieces of 8k, and its reply: 4 rank ever more blocks, 3 norm and rotate."""
ALL = {"twin": 38, "paper": 42}
"""Kernels of prompts from 1k to 64k in batches of 1 to 16, even and ragged."""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    cases = {f"one {shape}": case(shape, [65536]) for shape in SHAPES}
    for shape in ALL:
        even = [[length] * rows for rows in (1, 4, 16) for length in (1024, 4000, 16900, 65536)]
        cases[f"all {shape}"] = case(shape, *even, [1000 + 37 * row for row in range(4)])
    cases["odd"] = case("twin", [1, 5, 31], [100, 33], [3001], chunk=1000, new_tokens=1, graphs=False)
    cases["long"] = case("twin", [131072], chunk=65536, new_tokens=20000)
    return keys_of(cases)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_64k_prompt_takes_few_kernels(shape: str, found: dict[str, Any]) -> None:
    assert len(found[f"one {shape}"]["needed"]) <= ONE_PROMPT[shape]


@pytest.mark.parametrize("shape", ALL)
def test_lengths_and_batch_sizes_share_their_kernels(shape: str, found: dict[str, Any]) -> None:
    needed = found[f"all {shape}"]["needed"]
    assert len(needed) <= ALL[shape]
    once = ("_compressed_forward_kernel", "_window_forward_kernel", "_forced_forward_kernel")
    for name in (*once, "_selected_forward_kernel"):
        assert needed.count(name) == 1
    assert needed.count("_select_kernel") == 6  # a power of 2 of blocks each


@pytest.mark.parametrize(
    "name", [*(f"one {shape}" for shape in SHAPES), "all twin", "all paper", "odd", "long"]
)
def test_warming_up_knows_what_a_run_launches(name: str, found: dict[str, Any]) -> None:
    assert found[name]["missed"] == []


@pytest.mark.parametrize("attention", ["nsa", "full"])
def test_nothing_is_compiled_for_a_cpu(attention: str) -> None:
    config = NSADecoderConfig(
        attention=attention, hidden_size=64, intermediate_size=64, vocab_size=50, num_hidden_layers=1
    )
    made = warm_up(NSADecoderForCausalLM(config), prompts=[100], rows=[1], new_tokens=4)
    assert (made.kernels, made.compile_seconds, made.wall_seconds) == (0, 0, 0)


def test_any_other_model_is_taken_and_left_alone() -> None:
    assert warm_up(torch.nn.Linear(2, 2), prompts=[100]).kernels == 0
