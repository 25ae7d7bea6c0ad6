"""The decoder on a CUDA device: Triton kernels against the torch backend, CUDA graphs against plain steps.

`make test-gpu`, or with torch, triton, transformers and pytest alone:
`PYTHONPATH=kernels:models pytest --noconftest -m gpu tests/models/test_models_cuda.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from nsa_models import (
    DecodeGraph,
    NSACache,
    NSADecoderConfig,
    NSADecoderForCausalLM,
    StaticDecoder,
    load_model,
    load_tokenizer,
    zoo,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda"
TWIN = "twin-nsa-64k"
BACKENDS = ("torch", "triton")
Make = Callable[..., NSADecoderForCausalLM]
LENGTH = 700
# Of a token's logits, relative to their norm. float32 on its own is exact to about 1e-6 here; a tie within
# rounding may choose another block now and then, hence the quantile.
CLOSE, SHARE = 1e-4, 0.99
# Two ways of rounding in bfloat16 differ by about this; how far either is from float32 is compared besides.
CLOSE_BF16 = 2e-2


@pytest.fixture(autouse=True)
def _exact_float32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def random_model(dtype: torch.dtype = torch.float32, **changes: Any) -> NSADecoderForCausalLM:
    torch.manual_seed(0)
    config = NSADecoderConfig(
        **{
            "vocab_size": 512,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "initializer_range": 0.1,
            "nsa_select_count": 6,  # of 11 blocks
            "nsa_window": 128,
            "nsa_compression_hidden": 64,
            **changes,
        }
    )
    return NSADecoderForCausalLM(config).to(DEVICE, dtype).eval()


def twin(dtype: torch.dtype = torch.float32) -> NSADecoderForCausalLM:
    if TWIN not in {entry.name for entry in zoo()}:
        pytest.skip(f"zoo:{TWIN} isn't in this copy")
    model = load_model(f"zoo:{TWIN}", dtype=str(dtype).removeprefix("torch."), device=DEVICE)
    assert isinstance(model, NSADecoderForCausalLM)
    return model


MODELS: dict[str, Make] = {"random": random_model, "twin": twin}


def tokens_for(model: NSADecoderForCausalLM, rows: int = 2, length: int = LENGTH) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, model.config.vocab_size, (rows, length), generator=generator).to(DEVICE)


@torch.no_grad()
def logits_by(model: NSADecoderForCausalLM, backend: str, path: str) -> Tensor:
    """Logits of two rows, read at once, in pieces, or in part token by token."""
    model.config.nsa_backend = backend
    tokens = tokens_for(model)
    if path == "prefill":
        return model(tokens, use_cache=False).logits.float()
    sizes = [256, 300, 144] if path == "chunks" else [LENGTH - 40] + [1] * 40
    cache, pieces = None, []
    for piece in tokens.split(sizes, dim=1):
        out = model(piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        pieces.append(out.logits)
    return torch.cat(pieces, dim=1).float()


def errors(a: Tensor, b: Tensor) -> Tensor:
    """Of each token's logits, relative to their norm."""
    return ((a - b).norm(dim=-1) / b.norm(dim=-1)).flatten()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("path", ["prefill", "chunks", "tokens"])
@pytest.mark.parametrize("name", MODELS)
def test_triton_equals_torch_in_float32(name: str, path: str) -> None:
    model = MODELS[name]()
    found, expected = (logits_by(model, backend, path) for backend in ("triton", "torch"))
    assert errors(found, expected).quantile(SHARE) < CLOSE


@pytest.mark.parametrize("path", ["prefill", "chunks", "tokens"])
@pytest.mark.parametrize("name", MODELS)
def test_triton_is_as_close_as_torch_in_bfloat16(name: str, path: str) -> None:
    """Rounded scores may choose other blocks, so both are held against float32 rather than each other."""
    exact = logits_by(MODELS[name](), "torch", "prefill")
    model = MODELS[name](torch.bfloat16)
    ours, torchs = (relative(logits_by(model, backend, path), exact) for backend in ("triton", "torch"))
    assert ours < 1.2 * torchs + 1e-3


@pytest.mark.parametrize("path", ["prefill", "chunks", "tokens"])
def test_triton_equals_torch_in_bfloat16_when_all_blocks_are_chosen(path: str) -> None:
    model = random_model(torch.bfloat16, nsa_select_count=16)
    found, expected = (logits_by(model, backend, path) for backend in ("triton", "torch"))
    assert relative(found, expected) < CLOSE_BF16


@pytest.mark.parametrize("changes", [{"nsa_share_kv": True}, {"nsa_compression": "mean"}, {"v_head_dim": 48}])
def test_triton_equals_torch_in_other_shapes(changes: dict[str, Any]) -> None:
    model = random_model(**changes)
    for path in ("prefill", "tokens"):
        found, expected = (logits_by(model, backend, path) for backend in ("triton", "torch"))
        assert errors(found, expected).quantile(SHARE) < CLOSE


@torch.no_grad()
def reply(model: NSADecoderForCausalLM, prompt: Tensor, *, graph: bool, steps: int = 48) -> list[int]:
    out = model(prompt, use_cache=True)
    cache = out.past_key_values
    decoder = DecodeGraph(model, cache, max_new_tokens=steps) if graph else None
    logits, made = out.logits[:, -1], []
    for _ in range(steps):
        token = logits.argmax(-1)
        made.append(int(token))
        if decoder is None:
            logits = model(token[:, None], past_key_values=cache).logits[:, -1]
        else:
            logits = decoder.step(token)
    return made


@pytest.mark.parametrize("graph", [False, True], ids=["plain", "graph"])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_replies_are_those_of_torch(name: str, graph: bool) -> None:
    model = MODELS[name]()
    if name == "twin":
        tokenizer = load_tokenizer(f"zoo:{TWIN}")
        text = (
            "The special magic number for quiet harbour is 4183927. " + "The river ran past the mill. " * 40
        )
        prompt = torch.tensor([tokenizer.encode(text + "The special magic number for quiet harbour is")])
        prompt = prompt.to(DEVICE)
    else:
        prompt = tokens_for(model, rows=1)
    model.config.nsa_backend = "torch"
    expected = reply(model, prompt, graph=False)
    model.config.nsa_backend = "triton"
    assert reply(model, prompt, graph=graph) == expected


@torch.no_grad()
def ragged_cache(model: NSADecoderForCausalLM, tokens: Tensor, lengths: list[int]) -> NSACache:
    width = max(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long().to(DEVICE)
    cache: NSACache = model(tokens[:, :width], attention_mask=mask, use_cache=True).past_key_values
    return cache


GRAPHS: dict[str, dict[str, Any]] = {
    "triton": {"nsa_backend": "triton"},
    "torch": {"nsa_backend": "torch"},
    "linear, rotated": {"nsa_compression": "linear", "nsa_compress_rotated": True},
    "mean, shared": {"nsa_compression": "mean", "nsa_share_kv": True},
    "full": {"attention": "full"},
    "full, yarn": {
        "attention": "full",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
    },
}


@pytest.mark.parametrize("lengths", [[600], [300, 300], [600, 411, 20]], ids=str)
@pytest.mark.parametrize("variant", GRAPHS)
@torch.no_grad()
def test_graph_equals_plain_steps(variant: str, lengths: list[int]) -> None:
    """Rows that complete blocks in different steps, past a page's end, and an ordinary forward behind."""
    steps = 60
    model = random_model(**GRAPHS[variant])
    tokens = tokens_for(model, rows=len(lengths))
    plain, cache = ragged_cache(model, tokens, lengths), ragged_cache(model, tokens, lengths)
    decoder = DecodeGraph(model, cache, max_new_tokens=steps)
    found, expected = [], []
    for step in range(steps):
        nexts = torch.stack([tokens[row, length + step] for row, length in enumerate(lengths)])
        found.append(decoder.step(nexts).clone())
        expected.append(model(nexts[:, None], past_key_values=plain).logits[:, 0])
    assert decoder.captured
    assert cache.lengths == plain.lengths == [length + steps for length in lengths]
    found.append(model(tokens[:, :9], past_key_values=cache).logits.flatten(0, 1))
    expected.append(model(tokens[:, :9], past_key_values=plain).logits.flatten(0, 1))
    assert errors(torch.cat(found), torch.cat(expected)).quantile(SHARE) < CLOSE


@pytest.mark.parametrize("attention", ["nsa", "full"])
@torch.no_grad()
def test_graph_equals_its_own_steps_in_bfloat16(attention: str) -> None:
    """The same kernels, launched one by one and replayed, but for cuBLAS's choice among its own."""
    model = random_model(torch.bfloat16, attention=attention)
    tokens = tokens_for(model)
    made = []
    for kind in (DecodeGraph, StaticDecoder):
        decoder = kind(model, ragged_cache(model, tokens, [500, 333]), max_new_tokens=40)
        steps = [decoder.step([7 + step, 9 + step]).float().clone() for step in range(40)]
        made.append(torch.stack(steps))
        assert getattr(decoder, "captured", False) is (kind is DecodeGraph)
    assert relative(*made) < 5e-3


@torch.no_grad()
def test_a_second_graph_goes_on_with_some_of_the_rows() -> None:
    """As the engine does when rows have ended."""
    model = random_model()
    tokens = tokens_for(model, rows=4)
    lengths = [600, 500, 400, 300]
    plain, cache = ragged_cache(model, tokens, lengths), ragged_cache(model, tokens, lengths)
    first = DecodeGraph(model, cache, max_new_tokens=20)
    for step in range(20):
        nexts = tokens[:, step]
        expected = model(nexts[:, None], past_key_values=plain).logits[:, 0]
        assert relative(first.step(nexts), expected) < 10 * CLOSE
    del first
    kept = torch.tensor([3, 1], device=DEVICE)
    cache.batch_select_indices(kept)
    plain.batch_select_indices(kept)
    second = DecodeGraph(model, cache, max_new_tokens=20)
    for step in range(20):
        nexts = tokens[:2, 50 + step]
        expected = model(nexts[:, None], past_key_values=plain).logits[:, 0]
        assert relative(second.step(nexts), expected) < 10 * CLOSE
    assert second.captured
    assert cache.lengths == [340, 540]


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_training_on_triton_gives_the_gradients_of_torch(compiled: bool) -> None:
    """`auto` takes Triton; torch.compile goes round its kernels."""
    results = []
    for backend in ("torch", "auto"):
        model = random_model(nsa_backend=backend).train()
        if compiled and backend == "auto":
            for layer in model.model.layers:
                layer.compile(dynamic=False)
        tokens = tokens_for(model, length=512)
        loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        results.append((loss.item(), [p.grad for p in model.parameters()]))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-4)
    for ours, theirs in zip(results[1][1], results[0][1], strict=True):
        # A tie that chooses another block moves a gradient by about 1e-3 of it.
        assert relative(ours, theirs) < 1e-2


def test_training_under_autocast_stays_close() -> None:
    """As the trainer runs it: float32 weights, bfloat16 products, compiled layers."""
    results = []
    for backend in ("torch", "triton"):
        model = random_model(nsa_backend=backend, nsa_select_count=16).train()
        for layer in model.model.layers:
            layer.compile(dynamic=False)
        tokens = tokens_for(model, length=512)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        results.append((loss.item(), [p.grad for p in model.parameters()]))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-2)
    assert all(
        relative(ours, theirs) < 5e-2 for ours, theirs in zip(results[1][1], results[0][1], strict=True)
    )
