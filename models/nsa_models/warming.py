"""Compiling a model's kernels before it is used: in parallel, and with a cost of its own.

A copy of one layer, without memory, reads prompts and decodes as the model will, in a rehearsal
(`nsa_kernels.compile_ahead`): all that decides what is launched, from the cache's layout to the room that a
graph makes for replies, decides here too.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from nsa_kernels import Compilations, compile_ahead, rehearsal
from nsa_models.cache import NSACache
from nsa_models.configuration import NSADecoderConfig
from nsa_models.modeling import NSADecoderForCausalLM
from nsa_models.static import StaticDecoder, capacity

_META = torch.device("meta")
_STEPS = 8
"""Sizes between two powers of 2 that are told apart: what is launched changes with these at most."""


def warm_up(
    model: torch.nn.Module,
    *,
    prompts: Iterable[int],
    rows: Iterable[int] = (1,),
    chunk: int = 8192,
    new_tokens: int = 0,
    graphs: bool = True,
    workers: int | None = None,
) -> Compilations:
    """Compiles what the model will launch for such prompts and replies, and loads it onto its GPU.

    Nothing is computed, and the model isn't touched. What is forgotten here is compiled when it is needed.

    Args:
        model: Any; only NSA decoders on a GPU, with the triton backend, have anything to compile.
        prompts: Tokens of the prompts.
        rows: Sizes of the batches. Batches that get smaller as replies end have several.
        chunk: Tokens of a row to a forward.
        new_tokens: Tokens of a reply at most; 0 = none is decoded.
        graphs: Whether replies come from CUDA graphs, in buffers for all of their tokens, or from forwards.
        workers: Threads; None = one a core, 16 at most.

    Returns:
        How many kernels were compiled, their seconds one after another, and the seconds that it took.
    """
    config = getattr(model, "config", None)
    device = next(model.parameters()).device
    if not isinstance(config, NSADecoderConfig) or config.attention != "nsa" or device.type != "cuda":
        return Compilations()
    if config.nsa_backend not in ("auto", "triton"):
        return Compilations()
    with compile_ahead(device, workers=workers) as compiled:
        rehearse(
            config,
            next(model.parameters()).dtype,
            device,
            prompts=prompts,
            rows=rows,
            chunk=chunk,
            new_tokens=new_tokens,
            graphs=graphs,
        )
    return compiled


@torch.inference_mode()
def rehearse(
    config: NSADecoderConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    prompts: Iterable[int],
    rows: Iterable[int],
    chunk: int,
    new_tokens: int,
    graphs: bool = True,
) -> None:
    """Goes through the calls of a run, within a rehearsal for `device`; arguments as in `warm_up`."""
    lengths, batches = sorted(set(prompts)), sorted(set(rows))
    if not lengths or not batches:
        return
    layer = _one_layer(config, dtype)
    for count in batches:
        cache = NSACache(1)
        with rehearsal(device):  # what reading all of it at once would launch is none of the run's
            layer(_tokens(count, lengths[-1]), past_key_values=cache)
        for width, end in _pieces(lengths, chunk) if count in (batches[0], batches[-1]) else ():
            _stand(cache, count, end - width)
            layer(_tokens(count, width), past_key_values=cache)
        for length in _distinct(config, lengths, new_tokens) if new_tokens else ():
            _stand(cache, count, length)
            if graphs:
                StaticDecoder(layer, cache, max_new_tokens=new_tokens).step([0] * count)
            else:
                layer(_tokens(count, 1), past_key_values=cache)


def _one_layer(config: NSADecoderConfig, dtype: torch.dtype) -> NSADecoderForCausalLM:
    """One layer of the model, with a single word and plain frequencies: kernels ask how many they are."""
    rotary = {"rope_type": "default", "rope_theta": 10_000.0}
    share = (config.rope_parameters or {}).get("partial_rotary_factor")
    if share is not None:
        rotary["partial_rotary_factor"] = share
    changes = {"num_hidden_layers": 1, "vocab_size": 1, "pad_token_id": None, "rope_parameters": rotary}
    small = NSADecoderConfig.from_dict(config.to_dict() | changes)
    with _META:
        layer: NSADecoderForCausalLM = NSADecoderForCausalLM(small).to(dtype).eval()
    return layer


def _tokens(rows: int, width: int) -> torch.Tensor:
    return torch.zeros(rows, width, dtype=torch.long, device=_META)


def _stand(cache: NSACache, rows: int, tokens: int) -> None:
    """Lets the cache hold so many tokens a row: what it held, or less."""
    for layer in cache.layers:
        layer.lengths = [tokens] * rows


def _pieces(lengths: list[int], chunk: int) -> list[tuple[int, int]]:
    """Width and end of the forwards that read such prompts, one of those that are alike."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for length in lengths:
        for end in [*range(chunk, length, chunk), length]:
            width = (end - 1) % chunk + 1
            found[_coarse(width), _coarse(end)] = width, end
    return list(found.values())


def _distinct(config: NSADecoderConfig, lengths: list[int], new_tokens: int) -> list[int]:
    """Of the prompts, one for each kind of buffers."""
    return list({_coarse(capacity(config, length + new_tokens)): length for length in lengths}.values())


def _coarse(size: int) -> int:
    """The size, rounded up to one of the `_STEPS` between two powers of 2."""
    step = max(1, (1 << (size - 1).bit_length()) // _STEPS // 2)
    return -(-size // step) * step
