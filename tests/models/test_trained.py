"""Models of transformers that were trained sparse: read back, what they read, and how it is counted."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from nsa_models import load_model, trained_sparsity, with_fields
from nsa_models.dma import settle_ties
from nsa_models.families import FamilyError, family_of
from nsa_models.kv import kv_cost
from nsa_models.lower_right import prefer_lower_right
from nsa_models.methods import MethodError, attach, parse_method

BUDGET = 12
_SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_DSA = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "index_topk": BUDGET,
    "index_head_dim": 12,
    "index_n_heads": 16,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
KINDS: dict[str, dict[str, Any]] = {
    "doge": {"num_key_value_heads": 2, "keep_window_size": BUDGET},
    "deepseek_v32": _DSA,
    "glm_moe_dsa": {**_DSA, "indexer_types": ["full", "shared", "full"]},
}
INDEXERS = {"doge": 0, "deepseek_v32": 3, "glm_moe_dsa": 2}


def made(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **{**_SHAPE, **KINDS[kind], **changes})
    )
    for name, weight in model.named_parameters():
        if name.endswith(".A"):
            torch.nn.init.normal_(weight, std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder of each kind, written by transformers."""
    folder = tmp_path_factory.mktemp("trained")
    for kind in KINDS:
        made(kind).save_pretrained(folder / kind)
    return folder


def tokens(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(2, 64, (1, count), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_checkpoint_is_read_back_and_continues_in_pieces(kind, checkpoints):
    model = load_model(str(checkpoints / kind), device="cpu")
    settle_ties(model)
    original = made(kind)
    settle_ties(original)
    row = tokens(50)
    whole = model(row, use_cache=False).logits
    torch.testing.assert_close(whole, original(row, use_cache=False).logits)
    cache = None
    pieces = []
    for piece in row.split([20, 17, 1, 12], dim=1):
        output = model(piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-4)
    assert family_of(model).name == "equal rows"


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_what_is_counted_is_what_is_read_and_held(kind, checkpoints):
    model = load_model(str(checkpoints / kind), device="cpu")
    model.set_attn_implementation("eager")
    output = model(tokens(40), use_cache=True, output_attentions=True)
    for length in (1, BUDGET, BUDGET + 1, 40):
        read = {int(n) for layer in output.attentions for n in (layer[0, :, length - 1] > 0).sum(-1)}
        assert read == {kv_cost(model, length).read}, "of each head in each layer"
    held = sum(x.nbytes for layer in output.past_key_values.layers for x in (layer.keys, layer.values))
    index = [getattr(layer, "indexer_keys", None) for layer in output.past_key_values.layers]
    index = [keys for keys in index if keys is not None]
    assert len(index) == INDEXERS[kind]
    cost = kv_cost(model, 40)
    assert (cost.kept, cost.kept_bytes) == (40, held + sum(keys.nbytes for keys in index))
    assert cost.read_bytes == held * BUDGET / 40 + sum(keys.nbytes for keys in index)


@pytest.mark.parametrize("kind", KINDS)
def test_its_label_and_remarks_say_what_it_is(kind, checkpoints):
    model = load_model(str(checkpoints / kind), device="cpu")
    field = "keep_window_size" if kind == "doge" else "index_topk"
    found = trained_sparsity(model.config)
    name = "DMA" if kind == "doge" else "DSA"
    assert found.label == f"{name}, {BUDGET} KV tokens a query ({field})"
    said = " ".join(found.notes)
    assert ("softplus" in said) == (kind == "doge")
    assert ("Hadamard" in said) == (kind != "doge")
    assert ("in halves" in said) == (kind == "deepseek_v32")
    narrower = with_fields(model, {field: 5})
    assert trained_sparsity(narrower.config).budget == 5
    assert kv_cost(narrower, 40).read == 5
    with pytest.raises(MethodError, match=f"sparse already \\({name}, {BUDGET} KV tokens"):
        attach(model, parse_method("exact-top:8,first=0,local=2"))


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_the_attention_that_serves_gpus_reads_no_more(kind):
    """DSA's code masks its choice for `eager` and `sdpa` alone: under another name it was full attention."""
    model = made(kind)
    row = tokens(40)
    before = model(row).logits
    replaced = prefer_lower_right(model)
    assert replaced == (kind == "doge")
    torch.testing.assert_close(model(row).logits, before)
    if not replaced:
        model.set_attn_implementation("sdpa_lower_right")
        with pytest.raises(NotImplementedError, match="chooses its keys by indices"):
            model(row)


def seen_by(model: Any, row: torch.Tensor) -> list[dict[str, Any]]:
    """What reaches the attention of each layer."""
    seen: list[dict[str, Any]] = []
    hooks = [
        layer.self_attn.register_forward_pre_hook(lambda _m, _a, given: seen.append(given), with_kwargs=True)
        for layer in model.model.layers
    ]
    model.set_attn_implementation("eager")
    output = model(row, use_cache=False, output_attentions=True)
    for hook in hooks:
        hook.remove()
    return [given | {"weights": weights[0]} for given, weights in zip(seen, output.attentions, strict=True)]


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [N, ..., d] in halves."""
    first, second = x.chunk(2, -1)
    shape = (-1,) + (1,) * (x.dim() - 2) + (x.shape[-1],)
    return x * cos.view(shape) + torch.cat([-second, first], -1) * sin.view(shape)


@torch.inference_mode()
def test_dma_reads_the_largest_biases_and_adds_them():
    model = made("doge").double()
    settle_ties(model)
    for layer, seen in zip(model.model.layers, seen_by(model, tokens(30, seed=3) % 9), strict=True):
        own, x = layer.self_attn, seen["hidden_states"][0]
        cos, sin = (part[0] for part in seen["position_embeddings"])
        q = turned(own.q_norm(own.q_proj(x).view(30, 4, 8)), cos, sin)
        k = turned(own.k_norm(own.k_proj(x).view(30, 2, 8)), cos, sin)
        bias = torch.exp(own.A * F.softplus(own.dt_proj(own.v_proj(x))))
        for t in range(30):
            for head in range(4):
                group = head // 2
                ranked = sorted(range(t + 1), key=lambda s: (-float(bias[s, group]), s))[:BUDGET]
                logits = {
                    s: float(q[t, head] @ k[s, group]) / math.sqrt(8) + float(bias[s, group]) for s in ranked
                }
                most = max(logits.values())
                shares = {s: math.exp(logit - most) for s, logit in logits.items()}
                expected = torch.zeros(30, dtype=torch.float64)
                for s, share in shares.items():
                    expected[s] = share / sum(shares.values())
                # transformers takes the softmax in float32.
                torch.testing.assert_close(seen["weights"][head, t], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [60, 45, 31])
@torch.inference_mode()
def test_equal_tokens_of_dma_tie_the_same_way_whatever_follows(count):
    model = made("doge").double()
    row = tokens(60) % 9  # each token many times
    before = model(row, use_cache=False).logits
    settle_ties(model)
    settle_ties(model)  # twice does nothing
    whole = model(row, use_cache=False).logits
    assert float((whole - before).abs().max()) > 1e-3, "torch.topk has another rule"
    torch.testing.assert_close(model(row[:, :count], use_cache=False).logits, whole[:, :count])
    distinct = torch.arange(2, 62)[None]
    ours = model(distinct).logits
    for layer in model.model.layers:
        del layer.self_attn.prepare_dynamic_mask
    assert torch.equal(model(distinct).logits, ours), "without ties it is transformers' own mask"


@pytest.mark.parametrize("kind", ["deepseek_v32", "glm_moe_dsa"])
@torch.inference_mode()
def test_dsa_reads_the_tokens_of_highest_index(kind):
    model = made(kind, first_k_dense_replace=3).double()  # grouped experts know no float64
    chosen: list[set[int]] = []
    for layer, seen in zip(model.model.layers, seen_by(model, tokens(30)), strict=True):
        own, x = layer.self_attn, seen["hidden_states"][0]
        read = [{int(s) for s in row.nonzero()} for row in seen["weights"][0]]
        assert all(torch.equal(head > 0, seen["weights"][0] > 0) for head in seen["weights"]), (
            "all heads one set"
        )
        if own.indexer is not None:
            cos, sin = (part[0] for part in seen["position_embeddings"])
            q = own.indexer.wq_b(own.q_a_layernorm(own.q_a_proj(x))).view(30, 16, 12)
            k = own.indexer.k_norm(own.indexer.wk(x))
            if kind == "glm_moe_dsa":  # pairs (2i, 2i + 1), laid out as halves: products are the same
                order = [0, 2, 4, 6, 1, 3, 5, 7, 8, 9, 10, 11]
                q, k = q[..., order], k[..., order]
            q = torch.cat([turned(q[..., :8], cos, sin), q[..., 8:]], -1)
            k = torch.cat([turned(k[..., :8], cos, sin), k[..., 8:]], -1)
            w = own.indexer.weights_proj(x) / math.sqrt(16)
            chosen = []
            for t in range(30):
                index = [
                    sum(float(w[t, j]) * max(0.0, float(q[t, j] @ k[s])) / math.sqrt(12) for j in range(16))
                    for s in range(t + 1)
                ]
                chosen.append(set(sorted(range(t + 1), key=lambda s: -index[s])[:BUDGET]))
        assert read == chosen


def test_a_mixture_of_doge_is_refused_as_it_is_not_causal():
    """transformers splits the router's logits across tokens, as it says itself."""
    with pytest.raises(FamilyError, match="not a causal language model"):
        family_of(made("doge", is_moe=True, num_experts=16, num_experts_per_tok=2))
