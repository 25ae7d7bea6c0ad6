"""The NSA / full-attention decoder as a transformers model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from nsa_models.attention import BlockCompression, FullAttention, HeadRMSNorm, NSAAttention
from nsa_models.batch import RaggedBatch
from nsa_models.cache import NSACache, NSACacheLayer
from nsa_models.configuration import NSADecoderConfig
from nsa_models.feeding import current_feed
from nsa_models.rope import RotaryEmbedding


class SwiGLU(nn.Module):
    """Gated MLP: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: NSADecoderConfig) -> None:
        """Three projections without biases."""
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, N, hidden] to the same shape."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class NSADecoderLayer(GradientCheckpointingLayer):
    """Pre-norm attention and MLP with residuals."""

    def __init__(self, config: NSADecoderConfig, rotary: RotaryEmbedding) -> None:
        """One layer; `rotary` is the decoder's."""
        super().__init__()
        self.input_layernorm = HeadRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = FullAttention(config) if config.attention == "full" else NSAAttention(config, rotary)
        self.post_attention_layernorm = HeadRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, batch: RaggedBatch, cache: NSACacheLayer | None
    ) -> Tensor:
        """Map x [B, N, hidden] to the same shape, appending to the cache."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, batch, cache)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class NSADecoderPreTrainedModel(PreTrainedModel):
    """Weight initialisation and loading, shared by the bare decoder and the language model."""

    config_class = NSADecoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NSADecoderLayer"]  # noqa: RUF012 - transformers reads a plain list
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, HeadRMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, BlockCompression) and module.kind != "mean":
            init.normal_(module.pe, mean=0.0, std=self.config.initializer_range)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        # generate() would make a DynamicCache; the decoder makes its own NSACache on the first forward.
        return False


class NSADecoderModel(NSADecoderPreTrainedModel):
    """The decoder without a language-model head."""

    def __init__(self, config: NSADecoderConfig) -> None:
        """Build the layers of `config`."""
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.rotary_emb = RotaryEmbedding(config)
        self.layers = nn.ModuleList(
            NSADecoderLayer(config, self.rotary_emb) for _ in range(config.num_hidden_layers)
        )
        self.norm = HeadRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,  # noqa: ANN401 - whatever generate() hands on
    ) -> BaseModelOutputWithPast:
        """Run the decoder over a chunk of new tokens.

        Args:
            input_ids: [B, N] new tokens (or `inputs_embeds` [B, N, hidden], exactly one of the two).
            attention_mask: None = all N are tokens; else [B, >= N], 1 for tokens, of which the last N columns
                speak of the chunk. Padding on the right or on the left of a row; never in between.
            position_ids: Accepted for `generate()`, not read: a token's position is its index in its own row.
                Only while packed rows are fed (`nsa_models.packed`), [1, N], are they the tokens' positions.
            past_key_values: The NSACache that earlier chunks filled; None or an empty cache starts anew.
            inputs_embeds: See `input_ids`.
            use_cache: Return the cache; default: config.use_cache, and False while training.
            output_hidden_states: Return the states before each layer and after the last norm.
            return_dict: Accepted for transformers; a ModelOutput is returned whatever it says.
            kwargs: Ignored arguments that `generate()` hands to every model.

        Returns:
            last_hidden_state [B, N, hidden] in the order given, and the cache.

        Raises:
            ValueError: Not exactly one of input_ids and inputs_embeds, a cache of another kind, or a mask
                with holes.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if self.gradient_checkpointing and self.training:
            use_cache = False
        cache = self._cache(past_key_values, use_cache)
        rows, width = x.shape[:2]
        starts = (cache.lengths if cache is not None else []) or [0] * rows
        batch = RaggedBatch.from_mask(attention_mask, starts=starts, width=width, device=x.device)
        x = batch.to_right_padded(x)

        packed = current_feed() is not None
        positions = position_ids if packed and position_ids is not None else batch.positions()
        cos, sin = self.rotary_emb(x, position_ids=positions)
        states: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            if output_hidden_states:
                states.append(batch.to_given_order(x))
            x = layer(x, cos, sin, batch, cache.layers[index] if cache is not None else None)
        x = batch.to_given_order(self.norm(x))
        if cache is not None:
            for layer_cache in cache.layers:
                layer_cache.commit(batch)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=cache,
            hidden_states=(*states, x) if output_hidden_states else None,
        )

    def _cache(self, given: Cache | None, use_cache: bool) -> NSACache | None:
        if isinstance(given, NSACache):
            return given
        if given is not None and given.get_seq_length() > 0:
            raise ValueError(f"past_key_values must be an NSACache, got a filled {type(given).__name__}")
        return NSACache(self.config.num_hidden_layers) if use_cache else None


class NSADecoderForCausalLM(NSADecoderPreTrainedModel, GenerationMixin):
    """The decoder with a language-model head; `generate()` works on it."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: NSADecoderConfig) -> None:
        """Build the decoder and its head."""
        super().__init__(config)
        self.model = NSADecoderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,  # noqa: ANN401 - whatever generate() hands on
    ) -> CausalLMOutputWithPast:
        """Next-token logits of a chunk; arguments as `NSADecoderModel.forward`.

        Args:
            labels: [B, N] for the mean next-token loss (shifted inside; -100 = not counted).
            logits_to_keep: 0 = all positions; n = the last n; a 1-D LongTensor = these columns. Only they are
                multiplied by the vocabulary.

        Returns:
            logits [B, kept, vocab], loss when labels are given, and the cache.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )


AutoConfig.register(NSADecoderConfig.model_type, NSADecoderConfig, exist_ok=True)
AutoModel.register(NSADecoderConfig, NSADecoderModel, exist_ok=True)
AutoModelForCausalLM.register(NSADecoderConfig, NSADecoderForCausalLM, exist_ok=True)
