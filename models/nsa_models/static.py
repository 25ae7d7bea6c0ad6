"""Decode steps of fixed shapes: every row gets one token a step, and a CUDA graph replays the step.

A decode step is many short kernels, which the host launches more slowly than a GPU runs them.
Here the K/V buffers get room for all tokens to come at once, lengths live on the device, and no shape and no
choice depends on them: the step that was captured once is right for every later one.

The layers are the ordinary ones; `SteadyBatch` is what makes them write and read in this way.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from nsa_kernels import num_blocks
from nsa_models.attention import FullAttention, causal_attention
from nsa_models.batch import SteadyBatch
from nsa_models.cache import NSACache
from nsa_models.configuration import NSADecoderConfig
from nsa_models.graphs import ReplayedStep
from nsa_models.modeling import NSADecoderForCausalLM

# Kernels are compiled for sizes that are multiples of 16, and some choose their split by the capacity: whole
# pages of tokens let batches share what was compiled.
PAGE = 256
# These frequencies depend on the longest position, which the host would have to ask the device for.
_MOVING_ROPE = ("dynamic", "longrope")


def why_not_captured(model: NSADecoderForCausalLM) -> str | None:
    """Why no CUDA graph can hold this model's decode step, or None when one can."""
    config: NSADecoderConfig = model.config
    rope = str((config.rope_parameters or {}).get("rope_type", "default"))
    if model.device.type != "cuda":
        return f"the model is on {model.device.type}, and CUDA graphs need a GPU"
    if any(kind in rope for kind in _MOVING_ROPE):
        return f"rope_type {rope!r} changes its frequencies with the length"
    if config.attention == "nsa" and config.nsa_backend == "reference":
        return "the reference backend runs on the host"
    if any(isinstance(m, FullAttention) and m.attend is not causal_attention for m in model.modules()):
        return "a sparse method is attached, whose reference asks the device for numbers"
    return None


def capacity(config: NSADecoderConfig, tokens: int) -> int:
    """Columns of buffers for rows of up to `tokens` tokens: whole pages, and a compression block at least."""
    least = config.nsa_block if config.attention == "nsa" else 1
    return -(-max(tokens, least) // PAGE) * PAGE


class StaticDecoder:
    """One token a step for each row of a filled cache, in buffers that never move.

    Logits equal those of the model's own forward up to rounding. While it is in use nothing else may change
    the cache; afterwards ordinary forwards can go on from it.

    Example:
        >>> cache = model(prompts, use_cache=True).past_key_values
        >>> decoder = StaticDecoder(model, cache, max_new_tokens=64)
        >>> logits = decoder.step([17, 4])  # [2, vocab]
    """

    def __init__(self, model: NSADecoderForCausalLM, cache: NSACache, *, max_new_tokens: int) -> None:
        """Make room.

        Args:
            model: The model that filled the cache.
            cache: Rows of one token at least, each of its own length.
            max_new_tokens: Steps that will be asked for at most.

        Raises:
            ValueError: An empty cache, or no step to make room for.
        """
        lengths = cache.lengths
        if not lengths:
            raise ValueError("the cache is empty: read the prompts with the model first, with use_cache=True")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        self.model, self.cache = model, cache
        self.capacity = capacity(model.config, max(lengths) + max_new_tokens)
        self._expected = lengths
        self._grows = [1] * len(lengths)
        device = model.device
        self._lengths = torch.tensor(lengths, dtype=torch.long, device=device)
        self._growth = torch.ones_like(self._lengths)
        self._tokens = torch.zeros(len(lengths), 1, dtype=torch.long, device=device)
        blocks = num_blocks(self.capacity, model.config.geometry) if model.config.attention == "nsa" else 0
        for layer in cache.layers:
            for name in layer.buffers:
                layer.reserve(name, blocks if name in ("k_cmp", "v_cmp") else self.capacity)

    @torch.no_grad()
    def step(self, tokens: Sequence[int] | Tensor) -> Tensor:
        """Feed one token to every row.

        Args:
            tokens: B token ids.

        Returns:
            Logits [B, vocab] of the next token, good until the next step.

        Raises:
            ValueError: Another number of tokens than rows, no room left, or a cache that was changed since.
        """
        ids = torch.as_tensor(tokens, dtype=torch.long)
        if ids.shape != self._lengths.shape:
            raise ValueError(f"give one token a row, {len(self._lengths)} in all, got {list(ids.shape)}")
        if max(self._expected) == self.capacity:
            raise ValueError(
                f"the {self.capacity} columns of the buffers are full: make a new decoder with more "
                "max_new_tokens"
            )
        if self.cache.lengths != self._expected:
            raise ValueError("the cache was changed since the last step: make a new decoder for it")
        self._tokens.copy_(ids[:, None])
        logits = self._run(renews=self._renews())
        self._expected = [length + by for length, by in zip(self._expected, self._grows, strict=True)]
        for layer in self.cache.layers:
            layer.lengths = self._expected
        return logits

    def replaced(self, row: int, length: int, *, grows: bool = True) -> None:
        """Take note that another row stands in a row's place.

        Args:
            row: Its number.
            length: Tokens of it that the caller has put into the cache, one at least.
            grows: Whether steps add to it; False: each step's token is written over the last one's.
        """
        self._expected = [*self._expected]
        self._expected[row], self._grows[row] = length, int(grows)
        self._lengths[row], self._growth[row] = length, int(grows)
        for layer in self.cache.layers:
            layer.lengths = self._expected

    def _renews(self) -> bool:
        """Whether the next token completes a compression block of some row."""
        config = self.model.config
        if config.attention != "nsa":
            return False
        ends = [length + 1 for length, grows in zip(self._expected, self._grows, strict=True) if grows]
        return any(
            end >= config.nsa_block and (end - config.nsa_block) % config.nsa_stride == 0 for end in ends
        )

    def _run(self, *, renews: bool) -> Tensor:
        return self._forward(renews=renews)

    def _forward(self, *, renews: bool) -> Tensor:
        """The step on the device; the host learns nothing from it."""
        decoder = self.model.model
        batch = SteadyBatch.of(self._lengths, self.capacity, renews=renews)
        x = decoder.embed_tokens(self._tokens)
        cos, sin = decoder.rotary_emb(x, position_ids=batch.positions())
        for layer, store in zip(decoder.layers, self.cache.layers, strict=True):
            x = layer(x, cos, sin, batch, store)
        logits: Tensor = self.model.lm_head(decoder.norm(x[:, 0]))
        self._lengths.add_(self._growth)
        return logits


class DecodeGraph(StaticDecoder):
    """A `StaticDecoder` whose step is captured in a CUDA graph at the first call and replayed from then on.

    Where no graph can be captured (see `why_not_captured`), each step runs as it is, kernel by kernel.
    """

    def __init__(self, model: NSADecoderForCausalLM, cache: NSACache, *, max_new_tokens: int) -> None:
        """Make room, as `StaticDecoder`; nothing is captured yet."""
        super().__init__(model, cache, max_new_tokens=max_new_tokens)
        # Two graphs: most steps complete no block, and need not compress one.
        self._replayed = {
            renews: ReplayedStep(
                functools.partial(self._forward, renews=renews),
                state=(self._lengths,),
                enabled=why_not_captured(model) is None,
            )
            for renews in (False, True)
        }

    @property
    def captured(self) -> bool:
        """Whether steps are replayed."""
        return any(step.captured for step in self._replayed.values())

    def _run(self, *, renews: bool) -> Tensor:
        return self._replayed[renews]()


class CacheSlots:
    """Rows that decode together in slots of one static cache; rows come and go between steps.

    Attributes:
        tokens: [R] int64 on the device: what the next step feeds; anything in a slot without a row.
    """

    def __init__(self, model: NSADecoderForCausalLM, *, slots: int, tokens: int, graphs: bool) -> None:
        """Note sizes; the cache is made like that of the first row.

        Args:
            model: The model.
            slots: R.
            tokens: Most tokens of a row, those to come among them.
            graphs: Whether steps are replayed from a CUDA graph.
        """
        self.tokens = torch.zeros(slots, dtype=torch.long, device=model.device)
        self._model, self._room, self._graphs = model, tokens, graphs
        self._decoder: StaticDecoder | None = None

    @property
    def captured(self) -> bool:
        """Whether steps are replayed."""
        return isinstance(self._decoder, DecodeGraph) and self._decoder.captured

    def admit(self, slot: int, cache: NSACache, row: int) -> None:
        """Copy a row of another cache into a slot.

        Args:
            slot: One without a row.
            cache: The cache that the row's prompt was read into.
            row: The row's number there.
        """
        if self._decoder is None:
            self._decoder = self._made(cache)
        length = cache.lengths[row]
        for layer, given in zip(self._decoder.cache.layers, cache.layers, strict=True):
            for name, buffer in given.buffers.items():
                columns = min(buffer.shape[1], layer.buffers[name].shape[1])
                layer.buffers[name][slot, :columns] = buffer[row, :columns]
        self._decoder.replaced(slot, length)

    def release(self, slot: int) -> None:
        """Take the row out of a slot."""
        assert self._decoder is not None, "no row was admitted"
        self._decoder.replaced(slot, 1, grows=False)

    def step(self) -> Tensor:
        """Feed `tokens`; logits [R, V], good until the next step."""
        assert self._decoder is not None, "no row was admitted"
        return self._decoder.step(self.tokens)

    def _made(self, like: NSACache) -> StaticDecoder:
        """A decoder over a cache of idle rows of one token."""
        slots, config = len(self.tokens), self._model.config
        cache = NSACache(config.num_hidden_layers)
        columns = capacity(config, self._room)
        widths = (config.head_dim, config.v_head_dim)
        for layer, given in zip(cache.layers, like.layers, strict=True):
            buffers = {name: x.new_zeros(slots, columns, *x.shape[2:]) for name, x in given.buffers.items()}
            if config.attention == "nsa":  # a row shorter than a block has no compressed entry yet
                some = next(iter(given.buffers.values()))
                blocks = num_blocks(columns, config.geometry)
                for name, width in zip(("k_cmp", "v_cmp"), widths, strict=True):
                    buffers[name] = some.new_zeros(slots, blocks, config.num_key_value_heads, width)
            layer.buffers, layer.lengths, layer.is_initialized = buffers, [1] * slots, True
        made = DecodeGraph if self._graphs else StaticDecoder
        decoder = made(self._model, cache, max_new_tokens=columns - 1)
        for slot in range(slots):
            decoder.replaced(slot, 1, grows=False)
        return decoder
