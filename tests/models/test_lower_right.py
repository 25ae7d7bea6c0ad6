"""A chunk against a cache without a mask is the chunk with one."""

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import nsa_models.attention
import nsa_models.lower_right
from nsa_kernels.spans import takes_flash
from nsa_models.lower_right import (
    IMPLEMENTATION,
    lower_right_attention,
    prefer_lower_right,
    stock_attention,
)

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
}


def plain(q, k, v, scale):
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    last = torch.arange(k.shape[2] - q.shape[2], k.shape[2], device=q.device)
    hidden = torch.arange(k.shape[2], device=q.device) > last[:, None]
    return logits.masked_fill(hidden, float("-inf")).softmax(-1) @ v


def tensors(heads, groups, length, total, width=16, value_width=None, **kind):
    make = torch.Generator().manual_seed(length * 31 + total)
    sizes = ((heads, length, width), (groups, total, width), (groups, total, value_width or width))
    return [torch.randn(2, *size, generator=make, dtype=torch.float64).to(**kind) for size in sizes]


CASES = [(4, 4, 5, 5), (4, 2, 7, 30), (4, 1, 1, 9), (6, 2, 600, 1300), (4, 4, 513, 514)]


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("case", CASES)
def test_it_is_attention_up_to_each_querys_own_position(case, scale):
    q, k, v = tensors(*case, value_width=8)
    torch.testing.assert_close(lower_right_attention(q, k, v, scale=scale), plain(q, k, v, scale))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("case", [*CASES, (32, 8, 1024, 9000), (32, 8, 1024, 9216), (8, 1, 2048, 4096)])
def test_on_a_gpu_too(case, dtype):
    q, k, v = tensors(*case, width=64, device="cuda", dtype=dtype)
    with torch.no_grad():
        assert takes_flash(q, v) == (dtype != torch.float32)
        found = lower_right_attention(q, k, v)
        wanted = plain(*(x.double() for x in (q, k, v)), None)
    error = (found.double() - wanted).norm() / wanted.norm()
    assert error < (1e-4 if dtype == torch.float32 else 1e-2)


def llama(**more):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, **more)).eval()


def in_pieces(model, tokens, cuts, masks=None):
    cache, found, begin = None, [], 0
    with torch.no_grad():
        for end in (*cuts, tokens.shape[1]):
            mask = None if masks is None else masks[:, :end]
            out = model(tokens[:, begin:end], past_key_values=cache, use_cache=True, attention_mask=mask)
            cache, begin = out.past_key_values, end
            found.append(out.logits)
    return torch.cat(found, dim=1)


def test_pieces_of_a_prompt_give_what_sdpa_gives(monkeypatch):
    tokens = torch.randint(128, (2, 90), generator=torch.Generator().manual_seed(1))
    model = llama()
    whole = in_pieces(model, tokens, ())
    used = []
    assert prefer_lower_right(model)
    assert model.config._attn_implementation == IMPLEMENTATION
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda q, k, v, **g: used.append(g.get("attn_mask")) or original(q, k, v, **g),
    )
    torch.testing.assert_close(in_pieces(model, tokens, ()), whole, rtol=0, atol=1e-5)
    assert all(mask is None for mask in used)
    torch.testing.assert_close(in_pieces(model, tokens, (30, 31, 77)), whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "ours"])
def test_decode_steps_go_the_same_way(kind, monkeypatch, tiny_model):
    """CUDA's first choice may be cuDNN, which plans each new length of the keys anew."""
    tokens = torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(7))
    model = llama() if kind == "llama" else tiny_model(attention="full")
    wanted = in_pieces(model, tokens, range(9, 12))
    if kind == "llama":
        assert prefer_lower_right(model)
    asked = []

    def noted(q, k, v, **given):
        asked.append((q.shape[2], k.shape[2]))
        return lower_right_attention(q, k, v, **given)

    for module in (nsa_models.lower_right, nsa_models.attention):
        monkeypatch.setattr(module, "lower_right_attention", noted)
    torch.testing.assert_close(in_pieces(model, tokens, range(9, 12)), wanted)
    layers = model.config.num_hidden_layers
    assert asked == [step for step in ((1, 10), (1, 11), (1, 12)) for _ in range(layers)]


def test_padding_still_makes_a_mask():
    tokens = torch.randint(128, (2, 60), generator=torch.Generator().manual_seed(2))
    masks = torch.ones(2, 60, dtype=torch.long)
    masks[1, :11] = 0
    model = llama()
    before = in_pieces(model, tokens, (20, 45), masks)
    prefer_lower_right(model)
    torch.testing.assert_close(in_pieces(model, tokens, (20, 45), masks), before, rtol=0, atol=1e-5)


def test_sliding_windows_keep_their_mask():
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=16)).eval()
    tokens = torch.randint(128, (1, 80), generator=torch.Generator().manual_seed(3))
    before = in_pieces(model, tokens, (30, 31, 70))
    prefer_lower_right(model)
    torch.testing.assert_close(in_pieces(model, tokens, (30, 31, 70)), before, rtol=0, atol=1e-5)


@pytest.fixture
def exact_float32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def one_kv_head(**more):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | {"num_key_value_heads": 1}, **more)).eval()


def padded(length):
    tokens = torch.randint(128, (2, length), generator=torch.Generator().manual_seed(length))
    masks = torch.ones(2, length, dtype=torch.long)
    masks[1, :11] = 0
    return tokens, masks


# Whole, and in chunks of which some leave one query over the tiles of CUDA's kernel.
CUTS = [(65, ()), (97, ()), (98, (65,)), (150, (33, 98)), (64, (31,))]


@pytest.mark.parametrize(("length", "cuts"), CUTS)
def test_one_kv_head_for_all_reads_the_mask_of_each_query(length, cuts, request):
    tokens, masks = padded(length)
    model = one_kv_head()
    wanted = in_pieces(model, tokens, cuts, masks)
    prefer_lower_right(model)
    request.getfixturevalue("kernel_with_lone_queries")
    found = in_pieces(model, tokens, cuts, masks)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_a_mask_for_each_head_is_read_to_its_end(kernel_with_lone_queries):
    module = one_kv_head().model.layers[0].self_attn
    q, k, v = tensors(4, 1, 33, 40)
    bias = torch.randn(2, 4, 33, 40, generator=torch.Generator().manual_seed(5), dtype=q.dtype)
    found, _ = stock_attention(module, q, k, v, bias, scaling=0.3)
    wanted = ((q @ k.transpose(-1, -2)) * 0.3 + bias).softmax(-1) @ v
    torch.testing.assert_close(found, wanted.transpose(1, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("length", "cuts"), CUTS)
def test_one_kv_head_for_all_on_a_gpu(length, cuts, exact_float32):
    tokens, masks = padded(length)
    model = one_kv_head()
    wanted = in_pieces(model, tokens, cuts, masks)
    model.cuda()
    prefer_lower_right(model)
    found = in_pieces(model, tokens.cuda(), cuts, masks.cuda()).cpu()
    real = masks.bool()
    torch.testing.assert_close(found[real], wanted[real], rtol=0, atol=1e-3)


def test_a_model_with_another_attention_keeps_it():
    model = llama(attn_implementation="eager")
    assert not prefer_lower_right(model)
    assert model.config._attn_implementation == "eager"


def test_generate_gives_the_same_tokens():
    tokens = torch.randint(128, (1, 40), generator=torch.Generator().manual_seed(4))
    model = llama()
    wanted = model.generate(tokens, max_new_tokens=12, do_sample=False)
    prefer_lower_right(model)
    assert torch.equal(model.generate(tokens, max_new_tokens=12, do_sample=False), wanted)
    assert torch.equal(
        model.generate(tokens, max_new_tokens=12, do_sample=False, prefill_chunk_size=16), wanted
    )
