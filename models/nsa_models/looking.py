"""Where a model of Native Sparse Attention looks: the blocks that its selected branch chose.

The blocks are those that the running backend attended to, as it reports them itself (`return_blocks` of
`nsa_kernels`), not a second computation of them: torch, triton and the reference alike. They are exact for
the pass that is recorded. Another pass over the same tokens, in other chunks or another batch, may round two
close scores the other way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from nsa_kernels import BlockGeometry
from nsa_models.attention import NSAAttention
from nsa_models.cache import NSACache
from nsa_models.modeling import NSADecoderForCausalLM

CHUNK = 8192
"""Tokens of a prompt that are read at once."""


class BlockRecord:
    """The blocks that each layer chose, forward after forward."""

    def __init__(self, layers: int) -> None:
        """Nothing recorded yet of so many layers."""
        self._found: list[list[Tensor]] = [[] for _ in range(layers)]

    def note(self, layer: int, blocks: Tensor) -> None:
        """Take up one layer's blocks of one forward, [B, N, H_kv, n]."""
        self._found[layer].append(blocks.detach().cpu())

    @property
    def blocks(self) -> Tensor:
        """All of them: int32 [L, B, N, H_kv, n], N over all forwards.

        As the kernels write them: ascending, then -1 for unused slots, all -1 at padding. Rows are padded on
        the right, whatever side the forward's mask pads.

        Raises:
            ValueError: Nothing was recorded: no forward took place meanwhile.
        """
        if not all(self._found):
            raise ValueError("no blocks were recorded: run the model inside of recorded_blocks()")
        return torch.stack([torch.cat(found, dim=1) for found in self._found])


@contextmanager
def recorded_blocks(model: nn.Module) -> Iterator[BlockRecord]:
    """Record what the NSA layers of a model choose meanwhile, in any forward: prefill, pieces, decode.

    Args:
        model: A decoder of this package with attention "nsa", those of imported checkpoints among them.

    Raises:
        ValueError: The model has no such layers, or is being recorded already.

    Example:
        >>> with recorded_blocks(model) as record:
        ...     model(tokens)
        >>> record.blocks  # [layers, rows, queries, KV heads, n]
    """
    layers = [module for module in model.modules() if isinstance(module, NSAAttention)]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} chooses no blocks: it needs layers of Native Sparse Attention "
            "(attention: nsa)"
        )
    if any(layer.on_blocks is not None for layer in layers):
        raise ValueError("the model's blocks are being recorded already")
    record = BlockRecord(len(layers))
    for index, layer in enumerate(layers):
        layer.on_blocks = partial(record.note, index)
    try:
        yield record
    finally:
        for layer in layers:
            layer.on_blocks = None


@torch.inference_mode()
def chosen_blocks(
    model: NSADecoderForCausalLM,
    tokens: Sequence[int],
    continuations: Sequence[Sequence[int]] = (),
    *,
    last: int,
    chunk: int = CHUNK,
) -> tuple[Tensor, list[Tensor]]:
    """The blocks that a prompt's last queries choose in every layer and KV group, and what may follow it.

    One prefill of the prompt by itself, without logits: what stands before the last queries is read in
    chunks, and only the rest is recorded. Memory is that of the cache and of one chunk.

    Args:
        model: A decoder with attention "nsa".
        tokens: The prompt's ids.
        continuations: Ids that follow the prompt, each of them as if it alone did.
        last: Queries to tell of, from the prompt's last token backwards.
        chunk: Tokens that are read at once.

    Returns:
        int32 [L, Q, H_kv, n] on the CPU, Q = min(last, len(tokens)), ascending, then -1 for unused slots; and
        for each continuation the same of its tokens.

    Raises:
        ValueError: No tokens or no queries, or a model that chooses no blocks.
    """
    if not tokens or last < 1 or chunk < 1:
        raise ValueError(f"give tokens, last and chunk: got {len(tokens)} tokens, last {last}, chunk {chunk}")
    before = max(0, len(tokens) - last)
    room = len(tokens) + max(map(len, continuations), default=0)
    cache = NSACache(model.config.num_hidden_layers, room=room)

    def read(ids: Sequence[int]) -> None:
        for start in range(0, len(ids), chunk):
            row = torch.tensor([list(ids[start : start + chunk])], device=model.device)
            model.model(row, past_key_values=cache, use_cache=True)

    def read_and_record(ids: Sequence[int]) -> Tensor:
        with recorded_blocks(model) as record:
            read(ids)
        return record.blocks[:, 0]

    read(tokens[:before])
    found = read_and_record(tokens[before:])
    following = []
    for ids in continuations:
        if not ids:
            following.append(found[:, :0])
            continue
        following.append(read_and_record(ids))
        for layer in cache.layers:
            layer.crop(-len(ids))
    return found, following


def blocks_of(tokens: range, geometry: BlockGeometry) -> tuple[int, ...]:
    """The selection blocks in which tokens at these positions lie, ascending."""
    if not tokens:
        return ()
    size = geometry.select_block
    return tuple(range(tokens[0] // size, tokens[-1] // size + 1))


def forced_blocks(position: int, geometry: BlockGeometry) -> tuple[int, ...]:
    """The blocks that the token at a position chooses whatever their scores, ascending.

    The paper's are block 0, its own and the one before it (section 4.1).
    """
    own = position // geometry.select_block
    first = range(min(geometry.first_blocks, own + 1))
    return tuple(sorted({*first, *range(max(0, own - geometry.last_blocks + 1), own + 1)}))


def hold(blocks: Tensor, wanted: Sequence[int]) -> Tensor:
    """Which choices have all of some blocks among them.

    Args:
        blocks: Chosen blocks [..., n].
        wanted: The blocks to look for; none are always held.

    Returns:
        bool [...].
    """
    if not wanted:
        return torch.ones(blocks.shape[:-1], dtype=torch.bool, device=blocks.device)
    each = torch.stack([(blocks == block).any(-1) for block in wanted])
    return each.all(0)
