"""An auxiliary loss on the choice of blocks: compressed keys learn to rank as the selected branch attends.

The choice is discrete, so in the paper's training its ranking learns through the compressed branch's own
output alone. Here a few queries of each sequence are also asked which blocks the selected branch would attend
to most if every block were selected, and the compressed branch's importance is drawn towards those: KL
divergence, as for DeepSeek-V3.2's indexer (arXiv 2512.02556). Architecture and forward pass stay the paper's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsa_kernels import BlockGeometry
from nsa_kernels.selection import block_importance
from nsa_models.attention import NSAAttention


class BlockRanking:
    """Sums the loss over the NSA layers of a model while it watches a forward."""

    def __init__(self, model: nn.Module, geometry: BlockGeometry, queries: int) -> None:
        """Watch the layers of `model`; `queries` of each row are asked, half of them those that answer.

        The geometry's n is the one that the model will be used with, whatever a stage of training selects:
        what is ranked below a stage's n is asked for later.
        """
        self._layers = [module for module in model.modules() if isinstance(module, NSAAttention)]
        self._geometry, self._queries = geometry, queries
        self._positions: Tensor | None = None
        self._sums: list[Tensor] = []

    @contextlib.contextmanager
    def watch(self, ids: Tensor, answers: Tensor) -> Iterator[None]:
        """Take part in the forward passes of ids [B, N]; `answers` [B, N]: which of them are answers."""
        self._positions, self._sums = asked_positions(ids, answers, self._queries), []
        for layer in self._layers:
            layer.on_keys = self._take
        try:
            yield
        finally:
            for layer in self._layers:
                layer.on_keys = None

    def total(self) -> Tensor:
        """Of the last watch: the sum over rows of the mean over layers, KV groups and asked queries, nats."""
        return torch.stack(self._sums).mean()

    def _take(self, q: Tensor, k_cmp: Tensor, k_slc: Tensor) -> None:
        assert self._positions is not None
        asked = q.gather(1, self._positions[:, :, None, None].expand(-1, -1, *q.shape[2:]))
        losses = ranking_losses(asked, k_cmp, k_slc, self._positions, self._geometry)
        self._sums.append(losses.mean((1, 2)).sum())


def asked_positions(ids: Tensor, answers: Tensor, count: int) -> Tensor:
    """Positions [B, count] whose queries are asked: half over those that predict an answer, half over all.

    What is chosen in a row depends on that row alone, so that any division of a batch chooses the same. A row
    without answers asks its last position instead.

    Args:
        ids: [B, N]; their sum shifts the even steps, so that no place within a block is preferred.
        answers: Which of them are answers, [B, N].
        count: Positions of a row.
    """
    length, half = ids.shape[1], count // 2
    predicting = answers.roll(-1, dims=1)
    predicting[:, -1] = False
    ranks = predicting.cumsum(1)
    steps = (torch.arange(half, device=ids.device) + 0.5) / max(1, half)
    wanted = (steps * ranks[:, -1:]).long() + 1  # the so manieth of them, from 1
    of_answers = torch.searchsorted(ranks, wanted).clamp(max=length - 1)
    others = count - half
    even = torch.arange(others, device=ids.device) * length // others
    return torch.cat((of_answers, (even + ids.sum(1, keepdim=True)) % length), dim=1)


def ranking_losses(
    q: Tensor, k_cmp: Tensor, k_slc: Tensor, positions: Tensor, geometry: BlockGeometry
) -> Tensor:
    """KL divergence of the compressed branch's importance of blocks from the selected branch's attention.

    Importance is a distribution over the blocks that are free to be chosen, not forced (a first block that
    takes the attention that has nowhere to go, and the newest, are selected in any case) and with a
    compressed key that the query sees. The attention is that on the best of them, as many as can be chosen:
    what is spread thinly over hundreds of others would count for more in sum than a single fact. A query's
    divergence is weighted by the share of its attention that falls on those best. No gradient reaches
    `k_slc`, and `q` has it through the importance alone.

    Args:
        q: Queries [B, Q, H, d_k], rotated.
        k_cmp: Compressed keys [B, C, H_kv, d_k].
        k_slc: Keys of the selected branch [B, N, H_kv, d_k].
        positions: Of the queries, [B, Q].
        geometry: Block sizes, n and the forced blocks.

    Returns:
        [B, Q, H_kv] nats, float32; zero where no block is free.
    """
    scale, groups = q.shape[-1] ** -0.5, k_slc.shape[2]
    count = -(-k_slc.shape[1] // geometry.select_block)
    grouped = q.unflatten(2, (groups, -1)).movedim(1, 3)  # [B, H_kv, G, Q, d_k]
    heads = grouped.shape[2:4]
    at = positions[:, None, None, :, None]
    own = positions[:, None, :, None] // geometry.select_block
    index = torch.arange(count, device=q.device)
    free = (index >= geometry.first_blocks) & (index <= own - geometry.last_blocks)  # [B, 1, Q, blocks]
    # Where compressed keys are longer than blocks, the first one of a block may end behind the query.
    earliest = ((index * geometry.select_block - geometry.block) // geometry.stride + 1).clamp(min=0)
    free &= earliest * geometry.stride + geometry.block - 1 <= positions[:, None, :, None]

    with torch.no_grad():
        scores = (grouped.flatten(2, 3) @ k_slc.movedim(1, 3)).unflatten(2, heads).float() * scale
        scores.masked_fill_(torch.arange(k_slc.shape[1], device=q.device) > at, -torch.inf)
        attention = scores.softmax(-1).mean(2)  # [B, H_kv, Q, N]
        padded = F.pad(attention, (0, count * geometry.select_block - k_slc.shape[1]))
        wanted = padded.unflatten(-1, (count, -1)).sum(-1).masked_fill(~free, 0.0)
        best = wanted.topk(min(count, geometry.select_count - geometry.forced_blocks), dim=-1)
        wanted = torch.zeros_like(wanted).scatter(-1, best.indices, best.values)
        mass = wanted.sum(-1, keepdim=True)

    with torch.autocast(q.device.type, enabled=False):
        scores = grouped.float().flatten(2, 3) @ k_cmp.float().movedim(1, 3)
        scores = scores.unflatten(2, heads) * scale
        # A compressed key is seen once its block has ended.
        ends = torch.arange(k_cmp.shape[1], device=q.device) * geometry.stride + geometry.block - 1
        seen = ends <= at
        chances = scores.masked_fill(~seen, torch.finfo(torch.float32).min).softmax(-1) * seen
        importance = block_importance(chances.sum(2), geometry, count).masked_fill(~free, 0.0)
        total = importance.sum(-1, keepdim=True)
    tiny = torch.finfo(torch.float32).tiny
    logs = importance.clamp(min=tiny).log() - total.clamp(min=tiny).log()
    divergence = torch.xlogy(wanted, wanted / mass.clamp(min=tiny)) - wanted * logs
    losses: Tensor = divergence.sum(-1).movedim(1, 2)
    return losses
