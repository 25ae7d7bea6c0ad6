"""Methods whose choice is whole blocks of keys: kernels that read the blocks, in place of masks.

The reference makes a mask of all keys and looks at every one. A method that is `Listed` can say the same
choice as lists of blocks, and `nsa_kernels.blocks` reads what the lists name and nothing else. What chooses
is `nsa_kernels.block_choice`, to the bits of the reference's scores (`_order_free.py`), or the reference's
own plan; so the sets are the same, and outputs differ by the rounding of 16 bits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PretrainedConfig, PreTrainedModel

from nsa_kernels import NUMERICS
from nsa_kernels.blocks import (
    BlockLists,
    PageLists,
    block_attention,
    choose_block_backend,
    page_decode,
)
from nsa_kernels.spans import Merger, Part
from nsa_models.methods._base import Method, MethodError
from nsa_models.methods._placement import Placement

BACKENDS: dict[str, str] = {"cuda": "auto"}
"""What attends by lists on a type of device, by its name in `nsa_kernels.blocks`; "auto" is the kernels or an
error. On a CPU masks are as good: there lists are for tests, which name a backend."""

# Queries to a tile: the most that the kernels have configurations for.
_TILE = 128


@dataclass(frozen=True, kw_only=True)
class Run:
    """Queries of one row in one layer, one behind another, with the row's keys up to the last of them."""

    q: Tensor
    """[H, n, d], after RoPE, as the model made it; in front of `first` zeros, whose outputs nobody sees."""
    k: Tensor
    """[H_kv, S, d], after RoPE; S is the position behind the last query."""
    start: int
    """Position of q's first entry: whole tiles from the row's first token."""
    first: int
    """Position of the first query."""
    scaling: float
    """Factor of q.k in the logits."""

    def with_tokens_first(self) -> tuple[Tensor, Tensor]:
        """q [1, n, H, d] and k [1, S, H_kv, d], as `nsa_kernels` takes them."""
        return self.q.transpose(0, 1)[None], self.k.transpose(0, 1)[None]


@dataclass(frozen=True, kw_only=True)
class Listed(Method):
    """A method that can say its choice as lists of blocks.

    Attributes:
        fast: Attend by kernels that read the chosen blocks alone, on a GPU and in 16 bits. The same choice,
            rounded as kernels round; times and memory are then the method's own. Default false.
    """

    sized: ClassVar[str] = "block"
    """The field that says how many tokens a block of keys has."""
    lists_by_itself: ClassVar[bool] = False
    """`lists` chooses from the queries and keys as the model made them, and takes no plan."""

    fast: bool = False

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: Blocks that the kernels don't have.
        """
        super().__post_init__()
        if self.fast:
            self._check_blocks()
            self.redeclare(simulated=False)

    def _check_blocks(self) -> None:
        """Refuse blocks that the kernels don't have.

        Raises:
            MethodError: Such blocks.
        """
        if self._size < 16 or self._size & (self._size - 1):
            self.refuse(self.sized, "must be a power of 2 from 16 on with fast")

    @property
    def _size(self) -> int:
        return int(getattr(self, self.sized))

    @property
    def tile(self) -> int:
        """Queries that share a list."""
        return min(self._size, _TILE)

    @abstractmethod
    def lists(self, run: Run, plan: Any) -> BlockLists:  # noqa: ANN401 - a method's own
        """The blocks that tiles of `tile` queries read; a batch of one row.

        Args:
            run: The queries; tile i begins at position run.start + i * tile.
            plan: What `plan` decided for the row's prompt; None in a method that takes prompts in pieces, or
                whose lists need none.
        """

    def parts(self, run: Run, v: Tensor, plan: Any) -> list[tuple[Tensor, Tensor, BlockLists]]:  # noqa: ANN401
        """Keys, values and lists of them that the queries read, each key once: what they give is merged.

        Args:
            run: As in `lists`.
            v: [H_kv, S, d_v] values of run.k.
            plan: As in `lists`.

        Returns:
            One part of the row's own keys, unless the method has them in another order; queries stand at
            their positions in each. [H_kv or H, S, d_k], [the same, S, d_v], and the lists.
        """
        return [(run.k, v, self.lists(run, plan))]

    def pages(self, lengths: Tensor, *, heads: int, kv_heads: int, size: int) -> PageLists:
        """The pages that one query a row reads while decoding; of methods that act there.

        Args:
            lengths: [B] tokens of each row, the query's own among them; 0 for a row without one.
            heads: H.
            kv_heads: H_kv.
            size: S, what no length exceeds.
        """
        raise NotImplementedError(f"{self.name} acts on prompts alone")

    def describe(self) -> dict[str, Any]:
        """As `Method.describe`; kernels round by their own version."""
        kernels = {"kernels": {"numerics": NUMERICS, "triton": _triton()}} if self.fast else {}
        return {**super().describe(), **kernels}


def listed(method: Method) -> Listed | None:
    """The method, where it is to attend by lists."""
    return method if isinstance(method, Listed) and method.fast else None


def backend_for(
    method: Listed, device: torch.device, dtype: torch.dtype, *, width: int, value_width: int
) -> str:
    """What attends by lists of such tensors: a backend of `nsa_kernels.blocks`.

    Raises:
        MethodError: Nothing does: masks in its place would time something else.
    """
    named = BACKENDS.get(device.type)
    if named == "auto":
        chosen = choose_block_backend(device, dtype, width=width, value_width=value_width)
        named = chosen if chosen == "triton" else None
    if named is None:
        widths = f"{width}" if width == value_width else f"{width} and {value_width}"
        raise MethodError(
            f"{method.name}: fast needs a GPU with Triton, bfloat16 or float16, and heads of 16, 32, 64 or "
            f"128 numbers, got {str(dtype).removeprefix('torch.')} on {device.type} and heads of {widths}; "
            "leave fast out: the reference runs everywhere and chooses the same keys"
        )
    return named


def backend_of_model(method: Listed, model: PreTrainedModel) -> str:
    """As `backend_for`, by what a model's config says of its heads.

    Raises:
        MethodError: Nothing attends by lists of its tensors.
    """
    config = model.config
    width = _width(config)
    value_width = int(getattr(config, "v_head_dim", None) or width)
    return backend_for(method, model.device, model.dtype, width=width, value_width=value_width)


def attend_by_lists(
    method: Listed,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    place: Placement,
    *,
    scaling: float,
    plans: Sequence[Any] | None,
) -> tuple[Tensor, Tensor]:
    """Attention to the blocks that `method` lists: what `attend` gives, without a mask of keys.

    Rows are taken one by one, so that padding of any kind costs nothing; nothing makes a GPU wait.

    Args:
        method: Says which blocks.
        q: [B, H, n, d_k].
        k: [B, H_kv, S, d_k], column s at position s.
        v: [B, H_kv, S, d_v].
        place: Where the queries stand.
        scaling: Factor of q.k.
        plans: Of the rows' prompts, see `QueryBlock`.

    Returns:
        [B, H, n, d_v] in q's dtype, 0 at padding; and the KV tokens read by each row's real queries over all
        heads, a LongTensor [B].
    """
    heads = q.shape[1]
    backend = backend_for(method, q.device, q.dtype, width=q.shape[3], value_width=v.shape[3])
    out = q.new_zeros(q.shape[0], q.shape[2], heads, v.shape[3])  # as the kernel writes, and a model goes on
    read = torch.zeros(q.shape[0], dtype=torch.long, device=q.device)
    for row, new in enumerate(place.tokens()):
        if not new.count:
            continue
        where, first, end = new.where, new.position, new.end
        front = first % method.tile
        queries = pad(q[row][:, where], (0, 0, front, 0)) if front else q[row][:, where]
        keys, values = k[row, :, :end], v[row, :, :end]
        run = Run(q=queries, k=keys, start=first - front, first=first, scaling=scaling)
        found = []
        for listed_keys, listed_values, lists in method.parts(
            run, values, None if plans is None else plans[row]
        ):
            part = block_attention(
                queries.transpose(0, 1)[None],
                listed_keys.transpose(0, 1)[None],
                listed_values.transpose(0, 1)[None],
                lists,
                start=run.start,
                scale=scaling,
                backend=backend,
            )
            found.append(Part(part.out[0], part.lse[0].T))
            read[row] += lists.reads(heads, start=run.start, first=first, end=end)
        out[row, where] = merged(found)[front:].to(out.dtype)
    return out.transpose(1, 2), read


def step_by_lists(
    method: Listed, q: Tensor, k: Tensor, v: Tensor, place: Placement, *, scaling: float
) -> tuple[Tensor, Tensor]:
    """A decode step by pages: as `attend_by_lists`, of one query a row; all reads in one number."""
    backend = backend_for(method, q.device, q.dtype, width=q.shape[3], value_width=v.shape[3])
    lengths = place.positions[:, 0] + 1
    if place.real is not None:
        lengths = lengths * place.real[:, 0]
    pages = method.pages(lengths, heads=q.shape[1], kv_heads=k.shape[1], size=k.shape[2])
    out = page_decode(
        q[:, :, 0],
        k.transpose(1, 2),
        v.transpose(1, 2),
        pages,
        lengths=lengths,
        scale=scaling,
        backend=backend,
    )
    return out[:, :, None], pages.reads(q.shape[1], lengths)


def lists_of_plan(chosen: Tensor, run: Run, *, block: int, tile: int) -> BlockLists:
    """Lists of a prompt's chosen blocks, booleans [L, blocks of queries, blocks of keys], causal."""
    tiles = -(-run.q.shape[1] // tile)
    each = chosen.repeat_interleave(block // tile, dim=1)[:, :tiles] if block > tile else chosen
    return BlockLists.from_mask(each[None], query_block=tile, key_block=block)


def own_blocks(run: Run, *, block: int, tile: int) -> Tensor:
    """The block of keys in which each tile of a run begins, [tiles]; tiles of no more than a block."""
    tiles = -(-run.q.shape[1] // tile)
    return (run.start + torch.arange(tiles, device=run.q.device) * tile) // block


def pages_of(chosen: Tensor, page: int, most: int) -> PageLists:
    """Pages of chosen blocks, booleans [B, L, blocks]; no list has more than `most`."""
    lists = BlockLists.from_mask(chosen[:, :, None], query_block=_TILE, key_block=page)
    return PageLists(
        firsts=lists.firsts[:, :, 0, :most].contiguous(), counts=lists.counts[:, :, 0].contiguous(), page=page
    )


def merged(parts: Sequence[Part]) -> Tensor:
    """[N, H, d_v] of parts of all N queries."""
    if len(parts) == 1:
        return parts[0].out
    whole = Merger(parts[0])
    for part in parts[1:]:
        whole.add(part, slice(0, part.out.shape[0]))
    return whole.out


def _width(config: PretrainedConfig) -> int:
    for name in ("qk_head_dim", "head_dim"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    return int(config.hidden_size) // int(config.num_attention_heads)


def _triton() -> str | None:
    try:
        return version("triton")
    except PackageNotFoundError:
        return None
