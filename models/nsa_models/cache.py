"""The decoder's KV cache: rows of different lengths, compressed keys grown as their blocks complete."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from nsa_kernels import BlockGeometry, num_blocks
from nsa_kernels.heads import place
from nsa_models.batch import RaggedBatch, SteadyBatch

# Growing by half keeps copies at O(1) per token without doubling a 64k cache for one more token.
_GROWTH = 1.5


class NSACacheLayer(CacheLayerMixin):
    """Named token buffers [B, capacity, heads, dim] of one layer, each row with its own length.

    Full attention keeps `k`, `v`; NSA keeps, per branch, `k_cmp_raw`, `v_cmp_raw` (what phi reads), `k_slc`,
    `v_slc`, `k_win`, `v_win`, and the compressed `k_cmp`, `v_cmp`, one entry a complete block. Everything
    past a row's length is never read.
    """

    is_croppable = True
    supports_early_init = False

    def __init__(self, room: int = 0) -> None:
        """An empty layer; buffers appear with the first append.

        Args:
            room: Tokens that rows are known to get: buffers are made for so many at once, not grown.
        """
        super().__init__()
        self.room = room
        self.buffers: dict[str, Tensor] = {}
        self.lengths: list[int] = []

    def append(self, name: str, new: Tensor, batch: RaggedBatch) -> Tensor:
        """Write new [B, N, heads, dim] at each row's start; return its columns [B, S, heads, dim]."""
        buffer = self._reserve(name, new, batch.extent, self.room)
        if batch.start is not None:
            buffer[:, batch.start : batch.start + batch.width] = new
        elif isinstance(batch, SteadyBatch):
            place(buffer, new, batch.positions_)
        else:
            columns = batch.positions()
            buffer[torch.arange(batch.rows, device=new.device)[:, None], columns] = new
        return buffer[:, : batch.extent]

    def grow_compressed(
        self,
        name: str,
        raw: Tensor,
        batch: RaggedBatch,
        geometry: BlockGeometry,
        compress: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Compress the blocks that this chunk completes and return all compressed entries [B, C, H_kv, dim].

        Args:
            name: Buffer of the compressed entries.
            raw: What phi reads, [B, S, H_kv, dim], as `append` returned it.
            batch: The chunk.
            geometry: Block grid.
            compress: (tokens [B, T, H_kv, dim] from a block's first token on, first positions [B, blocks]) ->
                compressed entries [B, blocks, H_kv, dim'].
        """
        if isinstance(batch, SteadyBatch):
            return self._renew_last(name, raw, batch, geometry, compress)
        before = [num_blocks(start, geometry) for start in batch.starts]
        after = [num_blocks(end, geometry) for end in batch.ends]
        fresh = max(b - a for a, b in zip(before, after, strict=True))
        total, room = num_blocks(batch.extent, geometry), num_blocks(self.room, geometry)
        if fresh == 0:
            # An empty run still tells the entries' width before there is a buffer.
            like = self.buffers.get(name)
            if like is None:
                like = compress(raw[:, :0], raw.new_zeros(1, 0, dtype=torch.long))
            return self._reserve(name, like, total, room)[:, :total]
        device = raw.device
        span = (fresh - 1) * geometry.stride + geometry.block
        blocks = torch.arange(fresh, device=device)
        if len(set(before)) == 1:
            first = before[0] * geometry.stride
            tokens = raw[:, first : first + span]
            entries = compress(tokens, (blocks[None] + before[0]) * geometry.stride)
            buffer = self._reserve(name, entries, max(total, before[0] + fresh), room)
            buffer[:, before[0] : before[0] + fresh] = entries
        else:
            offsets = torch.tensor(before, device=device)
            rows = torch.arange(batch.rows, device=device)[:, None]
            # Rows with fewer complete blocks compute a few that aren't complete yet: no query sees those (a
            # block is visible only when complete) and the next chunk writes them again.
            columns = offsets[:, None] * geometry.stride + torch.arange(span, device=device)
            tokens = raw[rows, columns.clamp(max=raw.shape[1] - 1)]
            slots = offsets[:, None] + blocks
            entries = compress(tokens, slots * geometry.stride)
            buffer = self._reserve(name, entries, max(total, max(before) + fresh), room)
            buffer[rows, slots] = entries
        return buffer[:, :total]

    def _renew_last(
        self,
        name: str,
        raw: Tensor,
        batch: SteadyBatch,
        geometry: BlockGeometry,
        compress: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Compress each row's last complete block, whether this token completed it or an earlier one.

        Which of the two it is, only the device knows; the entry comes out the same in every step.
        """
        total = num_blocks(batch.capacity, geometry)
        if not batch.renews and name in self.buffers:
            return self.buffers[name][:, :total]
        slots, columns = batch.last_blocks(geometry)
        rows = torch.arange(batch.rows, device=raw.device)[:, None]
        entries = compress(raw[rows, columns], slots * geometry.stride)
        buffer = self._reserve(name, entries, total)
        place(buffer, entries, slots[:, 0])
        return buffer[:, :total]

    def commit(self, batch: RaggedBatch) -> None:
        """Make the chunk part of the cache."""
        self.lengths = batch.ends
        self.is_initialized = True

    def reserve(self, name: str, columns: int) -> None:
        """Give an existing buffer `columns` columns in all, if it has fewer: these, and no more."""
        old = self.buffers[name]
        if old.shape[1] < columns:
            buffer = old.new_zeros(old.shape[0], columns, *old.shape[2:])
            buffer[:, : old.shape[1]] = old
            self.buffers[name] = buffer

    def _reserve(self, name: str, like: Tensor, columns: int, room: int = 0) -> Tensor:
        old = self.buffers.get(name)
        if old is not None and old.shape[1] >= columns:
            return old
        capacity = max(columns, room, int(old.shape[1] * _GROWTH) if old is not None else 0)
        buffer = like.new_zeros(like.shape[0], capacity, *like.shape[2:])
        if old is not None:
            buffer[:, : old.shape[1]] = old
        self.buffers[name] = buffer
        return buffer

    # --- transformers' cache interface ---

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: buffers are made by `append`."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Refuse the generic update.

        Raises:
            NotImplementedError: Always; the decoder's attention appends by name.
        """
        raise NotImplementedError("NSACacheLayer is filled by the decoder's own attention, through append()")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """K/V length and offset for a mask over the chunk."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths, default=0)

    def get_max_length(self) -> int:
        """-1: the cache grows without a bound."""
        return -1

    def get_max_cache_shape(self) -> int:
        """-1: the cache grows without a bound (the name that transformers before 5.20 asks for)."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.buffers, self.lengths, self.is_initialized = {}, [], False

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last |tokens_to_remove| tokens of every row (a negative number, as transformers asks).

        Raises:
            ValueError: A positive number, or more tokens than a row has.
        """
        drop = -tokens_to_remove
        if drop < 0 or drop > min(self.lengths, default=0):
            raise ValueError(
                "crop takes minus the number of tokens to remove, "
                f"at most {min(self.lengths, default=0)} here, got {tokens_to_remove}"
            )
        self.lengths = [length - drop for length in self.lengths]

    def _each(self, change: Callable[[Tensor], Tensor], rows: list[int]) -> None:
        self.buffers = {name: change(buffer) for name, buffer in self.buffers.items()}
        self.lengths = [self.lengths[row] for row in rows]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times, copies side by side."""
        rows = [row for row in range(len(self.lengths)) for _ in range(repeats)]
        self._each(lambda buffer: buffer.repeat_interleave(repeats, dim=0), rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices` (a LongTensor or a boolean mask), in that order."""
        index = indices.nonzero().flatten() if indices.dtype == torch.bool else indices
        self._each(lambda buffer: buffer.index_select(0, index.to(buffer.device)), index.tolist())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows, for beam search."""
        self.batch_select_indices(beam_idx)


class NSACache(Cache):
    """One `NSACacheLayer` a decoder layer; all rows' lengths agree between layers."""

    def __init__(self, num_layers: int, room: int = 0) -> None:
        """An empty cache of `num_layers` layers, with room for so many tokens a row from the start."""
        super().__init__(layers=[NSACacheLayer(room) for _ in range(num_layers)])

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row; [] before the first forward."""
        return list(self.layers[0].lengths)
