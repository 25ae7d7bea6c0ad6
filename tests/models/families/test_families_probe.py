"""A family is chosen by what a model's cached forward does, and never by what its cache is called."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicCache

from nsa_models import ModelLoadError
from nsa_models.families import FamilyError, check_fits, equal_rows, family_of, full_attention
from nsa_models.families._declared import Declared, activation_bytes
from nsa_models.families._probe import Probe

_SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
_BAMBA = {**_MAMBA, "attn_layer_indices": [1]}


def tiny(kind: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**_SHAPE, **fields})
    return AutoModelForCausalLM.from_config(config).eval()


def holds(model: Any, family: Any) -> bool:
    with torch.inference_mode():
        return Probe(model, Declared.of(model)).holds(family)


def test_full_attention_can_do_everything_and_its_cache_is_measured() -> None:
    family = family_of(tiny("llama"))
    assert family.name == "full attention"
    assert family.ragged
    assert family.padded
    assert family.continuable
    assert family.shared
    assert family.caches
    assert family.cache_bytes == 2 * 2 * 2 * 8 * 4  # K and V, layers, groups, width, float32
    assert family.notes == ()


def test_half_precision_is_not_taken_for_a_fault() -> None:
    """Nor is a token that rounding sends to another expert, which moves its logits by half their size."""
    for dtype in (torch.bfloat16, torch.float16):
        assert family_of(tiny("llama", num_hidden_layers=8).to(dtype)).name == "full attention"
        experts = {"num_local_experts": 8, "num_hidden_layers": 6, "initializer_range": 0.2}
        assert family_of(tiny("mixtral", **experts).to(dtype)).name == "full attention"
        window = {"attention_types": [[["global", "local"], 1]], "window_size": 8}
        model = tiny("gpt_neo", num_layers=2, num_heads=4, **window).to(dtype)
        assert not holds(model, full_attention.FullAttentionFamily(model))
        model = tiny("bamba", **_BAMBA).to(dtype)
        assert not holds(model, equal_rows.EqualRowsFamily(model, positions=False))
        assert holds(model, equal_rows.EqualRowsFamily(model))
        with pytest.raises(FamilyError, match="not a causal language model"):
            family_of(tiny("bert", is_decoder=False).to(dtype))


def test_local_windows_counted_in_columns_keep_rows_equal() -> None:
    """GPT-Neo's cache is one of full attention; its config and rows behind its window say otherwise."""
    shape = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8}
    model = tiny("gpt_neo", **shape)
    assert family_of(model).name == "equal rows"
    assert not holds(model, full_attention.FullAttentionFamily(model))
    # A window longer than the probe's rows is believed.
    assert family_of(tiny("gpt_neo", **{**shape, "window_size": 100})).name == "equal rows"


def test_distances_counted_in_columns_are_found_by_feeding_holes() -> None:
    """Nothing in MPT's config that is looked at says ALiBi; rows with holes do."""
    model = tiny("mpt", d_model=32, n_heads=4, n_layers=2, expansion_ratio=2)
    assert Declared.of(model).plain
    assert not holds(model, full_attention.FullAttentionFamily(model, positions=False))
    assert family_of(model).name == "equal rows"


def test_positions_are_handed_on_where_a_model_counts_from_0_without() -> None:
    model = tiny("bamba", **_BAMBA)
    assert not holds(model, equal_rows.EqualRowsFamily(model, positions=False))
    family = family_of(model)
    assert isinstance(family, equal_rows.EqualRowsFamily)
    assert family.positions


def test_a_state_that_begins_anew_in_each_longer_forward_goes_on_by_single_tokens() -> None:
    model = tiny("mamba", state_size=8, time_step_rank=4)
    assert not holds(model, equal_rows.EqualRowsFamily(model, positions=False))
    family = family_of(model)
    assert family.name == "recurrent"
    assert family.caches
    assert not family.continuable
    assert family.first_forward(100) == 100


def test_a_cache_of_the_models_own_class_is_copied_as_a_whole() -> None:
    """MiniMax's linear states aren't in its cache's layers, where transformers' reordering looks."""
    model = tiny("minimax", layer_types=["linear_attention", "full_attention"], block_size=16)
    family = family_of(model)
    assert family.name == "own cache"
    rows = family.empty(3)
    tokens = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]])
    with torch.inference_mode():
        family.absorb(model(**family.inputs(tokens, [4] * 3, rows)), tokens, [4] * 3, rows)
        some = family.select(rows, [2, 2])
    states = [state for state in rows.cache.linear_cache if len(state)]
    copies = [state for state in some.cache.linear_cache if len(state)]
    assert len(states) == 1
    torch.testing.assert_close(copies[0], states[0][[2, 2]])
    assert states[0].shape[0] == 3


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (
            "recurrent_gemma",
            {
                "lru_width": 32,
                "head_dim": 8,
                "block_types": ["recurrent", "attention"],
                "attention_window_size": 8,
            },
        ),
        ("rwkv", {"attention_hidden_size": 32}),
    ],
)
def test_a_model_without_a_cache_to_rely_on_reads_whole_rows(kind: str, fields: dict[str, Any]) -> None:
    family = family_of(tiny(kind, **fields))
    assert family.name == "uncached"
    assert not family.caches
    assert family.ragged
    assert [note.kind for note in family.notes] == ["uncached"]
    assert "every token" in family.notes[0].detail


def test_a_cache_that_is_wrong_is_not_used() -> None:
    """Nothing names the fault: the keys of a cached forward come out a little off."""

    class Leaky(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden_states: torch.Tensor, **given: Any) -> Any:
            if given.get("past_key_values") is not None:
                hidden_states = hidden_states * 1.01
            return self.inner(hidden_states, **given)

    model = tiny("llama")
    layer = model.model.layers[0]
    layer.self_attn.k_proj.weight.data *= 3
    layer.self_attn = Leaky(layer.self_attn)
    assert family_of(model).name == "uncached"


def test_heads_that_differ_by_layer_stop_no_estimate() -> None:
    model = tiny(
        "gemma4_text",
        head_dim=8,
        global_head_dim=16,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=8,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=96,
        num_kv_shared_layers=0,
    )
    family = family_of(model)
    assert family.name == "equal rows"
    full = 2 * 16 * 4  # K and V of the full layer, one float32 head at least
    assert family.cache_bytes >= full
    assert activation_bytes(model) == (2 * 64 + 8 * 32) * 4


def test_a_window_that_is_full_at_once_still_costs_its_tokens() -> None:
    family = family_of(tiny("mistral", sliding_window=6))
    assert family.cache_bytes == 2 * 2 * 2 * 8 * 4


def test_positions_of_an_image_are_not_those_of_the_text() -> None:
    """Gemma 3's vision tower has a table of 4 positions beside its patches."""
    text = {**_SHAPE, "head_dim": 8, "sliding_window": 8}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "gemma3",
        text_config=text,
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=90,
        boi_token_index=91,
        eoi_token_index=92,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert family_of(model).name == "equal rows"
    check_fits(model, tokenizer_of(96), 10_000)


@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_a_model_that_sees_the_future_is_refused(kind: str) -> None:
    with pytest.raises(FamilyError, match=r"is not a causal language model.*is_decoder: true") as caught:
        family_of(tiny(kind, is_decoder=False))
    assert isinstance(caught.value, ModelLoadError)
    assert "\n" not in str(caught.value)
    assert family_of(tiny(kind, is_decoder=True)).caches


def test_a_model_that_needs_more_than_tokens_is_refused() -> None:
    model = tiny("llama")
    model.model.norm = nn.LayerNorm(7)
    with pytest.raises(FamilyError, match="can't be run on 14 token ids alone"):
        family_of(model)


def test_broken_weights_are_left_to_the_run() -> None:
    """NaN tells nothing of a family; the engine names the first request that meets it."""
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    assert family_of(model).name == "full attention"
    with torch.no_grad():
        model.model.norm.weight[:] = float("nan")
    assert family_of(model).name == "uncached"


def test_probing_leaves_no_trace() -> None:
    model = tiny("recurrent_gemma", lru_width=32, head_dim=8, attention_window_size=8)
    tokens = torch.tensor([[5, 9, 17, 30, 2]])
    with torch.inference_mode():
        before = model(input_ids=tokens, use_cache=False).logits
        family_of(model)
        torch.testing.assert_close(model(input_ids=tokens, use_cache=False).logits, before)


def test_the_cache_class_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that can't be made from the config makes the choice safer; nothing stops."""

    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise AttributeError("ambiguous")

    monkeypatch.setattr(DynamicCache, "__init__", refuse)
    assert family_of(tiny("llama")).name == "uncached"


def tokenizer_of(size: int, *, pad: int | None = None) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    words = {f"w{number}": number for number in range(size)}
    if pad is not None:
        words["<pad>"] = pad
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>" if pad is not None else None)


def test_ids_beyond_the_embeddings_are_refused() -> None:
    model = tiny("llama")
    check_fits(model, tokenizer_of(96), 10_000)  # rotary positions have no table
    check_fits(model, tokenizer_of(96, pad=96), 128)  # nothing is padded with it
    with pytest.raises(FamilyError, match=r"2 token\(s\) beyond the model's 96 embeddings, 'w96' = 96"):
        check_fits(model, tokenizer_of(98), 128)


@pytest.mark.parametrize("kind", ["opt", "gpt2", "biogpt"])
def test_a_length_beyond_learned_positions_is_refused(kind: str) -> None:
    fields = {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    }
    model = tiny(kind, **fields)
    check_fits(model, tokenizer_of(96), 128)
    model(input_ids=torch.full((1, 128), 5))
    with pytest.raises(
        FamilyError, match="max_length is 129 tokens, but the model has learned positions for 128"
    ):
        check_fits(model, tokenizer_of(96), 129)


def moshi(window: int) -> Any:
    return tiny("moshi", ffn_dim=64, head_dim=8, sliding_window=window, audio_vocab_size=96)


@pytest.mark.parametrize("window", [8, 48, 3000])
def test_a_sliding_cache_that_no_mask_agrees_with_is_found_behind_any_window(window: int) -> None:
    """Moshi's forward masks by no window, and transformers' cache for its config forgets behind one."""
    model = moshi(window)
    copies = [module.sliding_window for module in model.modules() if hasattr(module, "sliding_window")]
    assert family_of(model).name == "uncached"
    assert model.config.sliding_window == window  # narrowed for the probe alone
    assert [m.sliding_window for m in model.modules() if hasattr(m, "sliding_window")] == copies
    assert copies == [window] * 2


def test_a_long_window_that_masks_agree_with_keeps_its_cache() -> None:
    assert family_of(tiny("mistral", sliding_window=4096)).name == "equal rows"
    assert family_of(tiny("gemma3_text", head_dim=8, sliding_window=512)).name == "equal rows"


def test_keys_that_an_indexer_chooses_are_a_window_whatever_layers_are_called() -> None:
    config = {"index_topk": 12, "layer_types": ["full_attention"] * 2}
    model = tiny("llama", **config)
    assert Declared.of(model).windows == (12,)
    assert not Declared.of(model).plain
    assert family_of(model).name == "equal rows"


def reformer(**fields: Any) -> Any:
    config = AutoConfig.for_model("reformer")
    shape = {
        "vocab_size": 96,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "attention_head_size": 8,
        "feed_forward_size": 64,
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [16, 16],
        "max_position_embeddings": 128,
        "is_decoder": True,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    made = type(config)(**{**shape, **fields})
    return AutoModelForCausalLM.from_config(made).eval()


def test_a_forward_that_is_random_is_refused_for_that() -> None:
    """It was called not causal: what came before a changed token was another draw."""
    with pytest.raises(FamilyError, match=r"is random: two forwards .* hash_seed"):
        family_of(reformer())
    assert family_of(reformer(hash_seed=7)).name == "uncached"


def test_a_config_without_a_limit_is_probed_at_full_length() -> None:
    """XLNet writes -1; four tokens are too few to be read in pieces."""
    config = AutoConfig.for_model("xlnet", d_model=32, n_layer=2, n_head=4, d_inner=64, vocab_size=96)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert Declared.of(model).longest is None
    with pytest.raises(FamilyError, match="at the end of a row of 14 "):
        family_of(model)


def test_a_row_with_the_paddings_id_in_it_is_probed_too() -> None:
    """RoBERTa's forward gives that id no position; its cached one counts it among those before."""
    roberta = {"is_decoder": True, "max_position_embeddings": 130}
    assert family_of(tiny("roberta", **roberta)).name == "uncached"
    assert family_of(tiny("opt", ffn_dim=64, word_embed_proj_dim=32)).name == "full attention"


def test_rows_whose_logits_depend_on_their_width_are_not_padded() -> None:
    """ProphetNet's relative positions do; the same row at the same width hid it."""
    config = type(AutoConfig.for_model("prophetnet"))(
        vocab_size=96,
        hidden_size=32,
        num_decoder_layers=2,
        num_decoder_attention_heads=4,
        decoder_ffn_dim=64,
        max_position_embeddings=128,
        init_std=0.3,
    )
    torch.manual_seed(0)
    family = family_of(AutoModelForCausalLM.from_config(config).eval())
    assert family.name == "uncached"
    assert not family.padded
    assert not family.ragged
    assert family_of(tiny("gpt2", n_embd=32, n_layer=2, n_head=4)).padded
