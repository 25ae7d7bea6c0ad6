"""SeerAttention: blocks of keys chosen for blocks of a prompt's queries by a trained gate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_kernels.blocks import BlockLists
from nsa_models.methods._base import MethodError
from nsa_models.methods._block import Rotate, keep_top
from nsa_models.methods._gate import Gated, Pooling, like, pooled
from nsa_models.methods._listed import Listed, Run, lists_of_plan
from nsa_models.methods._planned import Planned, causal_blocks, keys_of_blocks, shared_means
from nsa_models.methods._prompt import PromptRow

_THRESHOLD = 2e-3
# Numbers of queries or keys that are turned back and pooled at once.
_CELLS = 2**24


@dataclass(frozen=True, kw_only=True)
class SeerAttentionPrefill(Listed, Gated, Planned):
    """SeerAttention: a gate scores blocks of keys for blocks of a prompt's queries (arXiv 2410.13276).

    The gate is trained on a frozen model and published apart from it: give the model's own path as the model
    and the gate's as `weights`. Queries and keys as they are before RoPE are pooled over blocks. Pooled keys
    go through a linear layer of each query head; or of each KV head, where the weights have a linear layer
    for queries too (`mask_linear_q`). Both get RoPE at their block's first position. A block's share is its
    part in the softmax of the products / sqrt(width), over the blocks up to the queries' own.

    Read are the blocks whose share is above `threshold`. Where `ratio` is given, each block of queries reads
    its best ones instead, (1 - sqrt(1 - ratio)) times the prompt's number of blocks, rounded down and at
    least one: so about that part of all causal blocks is read. The last two blocks of queries read
    everything. The queries' own block has no privilege. Decode steps are dense.

    Where no share is above the threshold, the authors' kernel divides by zero; here the best block is read,
    as their ratio has it. Their block grid begins at a batch's padding, here at a row's own first token.
    Models whose rotary embedding scales queries (YaRN) or changes with the length are refused: what a key was
    before can't be told.

    Attributes:
        threshold: Share of the gate's softmax, from 0 and below 1 (seerattn_threshold; they name 5e-4 to
            5e-3). At 0 all blocks are whose share isn't 0. Default 0.002 (the authors' in LongBench).
        ratio: The part of causal blocks to read (seerattn_nz_ratio), in place of the threshold. Default 0:
            the threshold decides.
        weights: A folder or a file with the gate as safetensors; theirs is a pickle (attn_gate_weights.pth).
        block: Tokens of a block (seerattn_gate_block_size). Default 64 (the authors').
        pooling: What is taken of a block's keys, in this order (what follows K in seerattn_gate_type).
            Default maxminavg (the authors').
        query_pooling: What is taken of a block's queries (what follows Q there). Default avg (the authors').
        rope: RoPE in the gate. Default true (the authors').
        dense_rows: Blocks of queries at a prompt's end that read everything. Default 2 (the authors'; 0 is
            seerattn_last_block_dense=false).
        fast: Read the chosen blocks by kernels, on a GPU and in 16 bits (`Listed`). Default false.
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "seer-attention-prefill"
    title: ClassVar[str] = "SeerAttention: blocks by a trained gate, in prefill"
    paper: ClassVar[str] = "2410.13276"
    budget_unit: ClassVar[str] = (
        "none: threshold, the share of the gate's softmax above which a block is read"
    )
    stated: ClassVar[tuple[str, ...]] = ("threshold",)
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "query head"
    version: ClassVar[int] = 2
    marks: ClassVar[tuple[str, ...]] = (".mask_linear_",)

    threshold: float = _THRESHOLD
    ratio: float = 0.0
    query_pooling: Pooling = "avg"
    dense_rows: int = 2

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: A number out of its range, a threshold beside a ratio, or weights that aren't there.
        """
        super().__post_init__()
        if not 0 <= self.threshold < 1:
            self.refuse("threshold", "must be from 0 and below 1")
        if not 0 <= self.ratio <= 1:
            self.refuse("ratio", "must be within 0 and 1")
        if self.dense_rows < 0:
            self.refuse("dense_rows", "must be at least 0 blocks")
        if self.ratio:
            if self.threshold != _THRESHOLD:
                self.refuse("threshold", f"must be left out where ratio = {self.ratio} decides")
            self.redeclare(stated=("ratio",), budget_unit="none: ratio, the part of causal blocks to read")

    def scores(self, row: PromptRow) -> Tensor:
        """Logits of blocks, [H, blocks of queries, blocks of keys], later ones too.

        Raises:
            MethodError: The gate has none of this layer, or is of another shape.
        """
        assert row.rotate is not None  # declared by needs_rotary
        q = self._pooled(row.q, row.rotate, self.query_pooling)
        k = self._pooled(row.k, row.rotate, self.pooling)
        heads, groups = q.shape[0], k.shape[0]
        of_keys = self.tensor(row.layer, "mask_linear_k.weight")
        of_queries = self.maybe_tensor(row.layer, "mask_linear_q.weight")
        if of_queries is None:
            k = k.repeat_interleave(heads // groups, dim=0)
        else:
            shape, name = [heads, q.shape[-1]], "mask_linear_q.weight"
            self.expect(row.layer, of_queries, shape, name, self.query_pooling)
            q = q @ like(of_queries, q)
        self.expect(row.layer, of_keys, [k.shape[0], k.shape[-1]], "mask_linear_k.weight", self.pooling)
        k = k @ like(of_keys, k)
        if q.shape[-1] != k.shape[-1]:
            raise MethodError(
                f"{self.name}: the gate of layer {row.layer} makes queries of width {q.shape[-1]} and keys "
                f"of width {k.shape[-1]}; they must be the same"
            )
        firsts = torch.arange(0, row.length, self.block, device=q.device)[None]
        q = self.turned(q[None], firsts, row.rotate, row.layer)[0]
        k = self.turned(k[None], firsts, row.rotate, row.layer)[0]
        logits: Tensor = row.dot(q, k) * q.shape[-1] ** -0.5
        return logits

    def _pooled(self, x: Tensor, rotate: Rotate, pooling: Pooling) -> Tensor:
        """Pools [h, blocks, d * pools] of x [h, n, d] as it is before RoPE, some blocks at a time."""
        step = max(1, _CELLS // (x.shape[0] * x.shape[2] * self.block)) * self.block
        parts = []
        for begin in range(0, x.shape[1], step):
            some = x[None, :, begin : begin + step]
            at = torch.arange(begin, begin + some.shape[2], device=x.device)[None]
            parts.append(pooled(rotate(some, -at)[0], self.block, pooling))
        return torch.cat(parts, dim=1)

    def plan(self, row: PromptRow) -> Tensor:
        """Chosen blocks, booleans [H, blocks, blocks]."""
        scores = self.scores(row)
        blocks = scores.shape[-1]
        causal = causal_blocks(blocks, scores.device)
        if self.ratio:
            count = max(1, int((1 - math.sqrt(1 - self.ratio)) * blocks))
            chosen = keep_top(scores, count, causal, waits=not self.fast)
        else:
            shares = scores.masked_fill(~causal, float("-inf")).softmax(-1)
            best = shares.argmax(-1, keepdim=True)  # of equal ones the first
            chosen = (shares > self.threshold).scatter(-1, best, True)
        dense = torch.arange(blocks, device=scores.device) >= blocks - self.dense_rows
        found: Tensor = (chosen | dense[:, None]) & causal
        return found

    def reads(self, plan: Tensor, positions: Tensor, width: int) -> Tensor:
        """[H, n, S]."""
        return keys_of_blocks(plan, positions, rows=self.block, columns=self.block, width=width)

    def lists(self, run: Run, plan: Tensor) -> BlockLists:
        """The plan, as lists."""
        return lists_of_plan(plan, run, block=self.block, tile=self.tile)

    def kv_reads(self, tokens: int) -> int:
        """Everything, at a prompt's end."""
        return tokens

    def kv_reads_least(self, tokens: int) -> int:
        """One block: the query's own, which has the fewest tokens up to it."""
        return (tokens - 1) % self.block + 1

    def index_reads(self, tokens: int) -> int:
        """A key of every block up to the query's own, shared by the queries of that."""
        return shared_means(tokens, self.block)
