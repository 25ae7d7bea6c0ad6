"""Decode steps of fixed shapes: every row gets one token a step, and a CUDA graph replays the step.

A decode step is many short kernels, which the host launches more slowly than a GPU runs them.
Here the K/V buffers get room for all tokens to come at once, lengths live on the device, and no shape and no
choice depends on them: the step that was captured once is right for every later one.

The layers are the ordinary ones; `SteadyBatch` is what makes them write and read in this way.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from nsa_kernels import num_blocks
from nsa_models.attention import FullAttention, causal_attention
from nsa_models.batch import SteadyBatch
from nsa_models.cache import NSACache
from nsa_models.configuration import NSADecoderConfig
from nsa_models.modeling import NSADecoderForCausalLM

# Kernels are compiled for sizes that are multiples of 16, and some choose their split by the capacity: whole
# pages of tokens let batches share what was compiled.
PAGE = 256
# cuBLAS picks and allocates at its first calls, Triton compiles at its first: both before the capture.
_WARM_UPS = 2
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
        self._left = self.capacity - max(lengths)
        self._expected = lengths
        device = model.device
        self._lengths = torch.tensor(lengths, dtype=torch.long, device=device)
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
        if self._left == 0:
            raise ValueError(
                f"the {self.capacity} columns of the buffers are full: make a new decoder with more "
                "max_new_tokens"
            )
        if self.cache.lengths != self._expected:
            raise ValueError("the cache was changed since the last step: make a new decoder for it")
        self._tokens.copy_(ids[:, None])
        logits = self._run()
        self._left -= 1
        self._expected = [length + 1 for length in self._expected]
        for layer in self.cache.layers:
            layer.lengths = self._expected
        return logits

    def _run(self) -> Tensor:
        return self._forward()

    def _forward(self) -> Tensor:
        """The step on the device; the host learns nothing from it."""
        decoder = self.model.model
        batch = SteadyBatch.of(self._lengths, self.capacity)
        x = decoder.embed_tokens(self._tokens)
        cos, sin = decoder.rotary_emb(x, position_ids=batch.positions())
        for layer, store in zip(decoder.layers, self.cache.layers, strict=True):
            x = layer(x, cos, sin, batch, store)
        logits: Tensor = self.model.lm_head(decoder.norm(x[:, 0]))
        self._lengths.add_(1)
        return logits


class DecodeGraph(StaticDecoder):
    """A `StaticDecoder` whose step is captured in a CUDA graph at the first call and replayed from then on.

    Where no graph can be captured (see `why_not_captured`), each step runs as it is, kernel by kernel.
    """

    def __init__(self, model: NSADecoderForCausalLM, cache: NSACache, *, max_new_tokens: int) -> None:
        """Make room, as `StaticDecoder`; nothing is captured yet."""
        super().__init__(model, cache, max_new_tokens=max_new_tokens)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None
        self._eager = why_not_captured(model) is not None

    @property
    def captured(self) -> bool:
        """Whether steps are replayed."""
        return self._graph is not None

    def _run(self) -> Tensor:
        if self._graph is None and not self._eager:
            self._capture()
        if self._graph is None:
            return self._forward()
        self._graph.replay()
        assert self._logits is not None  # made by the capture
        return self._logits

    def _capture(self) -> None:
        """Record the step, leaving cache and lengths as they were.

        A warm-up writes where the first real step writes again; only the lengths have to be put back.
        """
        before = self._lengths.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._lengths.device):
            stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    self._forward()
                    self._lengths.copy_(before)
            current.wait_stream(stream)
            try:
                # Kernels are recorded and don't run. Other threads may go on using the device meanwhile.
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    self._logits = self._forward()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                warnings.warn(
                    f"the decode step could not be captured in a CUDA graph and runs without: {reason}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                self._eager, self._logits = True, None
                return
        self._graph = graph
