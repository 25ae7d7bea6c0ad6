"""Block-sparse prefill: for each block of queries the blocks of keys whose means agree most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from nsa_kernels import block_choice
from nsa_kernels.blocks import BlockLists
from nsa_models.methods._base import Budgeted
from nsa_models.methods._block import keep_top
from nsa_models.methods._listed import Listed, Run
from nsa_models.methods._order_free import means, products
from nsa_models.methods._planned import Planned, causal_blocks, keys_of_blocks, shared_means
from nsa_models.methods._prompt import PromptRow


@dataclass(frozen=True, kw_only=True)
class BlockSparse(Listed, Planned, Budgeted):
    """Block-sparse: the third pattern of MInference (arXiv 2407.02490), by itself on all heads.

    Prompts are cut into blocks of `block` tokens. A block of queries reads the `budget // block` blocks, of
    those that begin no later than itself, whose mean key has the highest product with its mean query. None is
    forced, not even its own. A query in its own block sees what stands before it there, so it reads fewer
    than the budget when that block is chosen. Decode steps are dense.

    An incomplete last block is averaged over its tokens; the authors' code fills it with zeros first. Means
    and products are made in float64 and rounded to float32; of equal products the earlier block is read.

    Attributes:
        budget: KV tokens a query reads per layer and head, rounded down to whole blocks. The authors' 100
            blocks are a budget of 6400.
        block: Tokens of a block, of queries and of keys. Default 64 (the authors').
        fast: Read the chosen blocks by kernels, on a GPU and in 16 bits (`Listed`). Default false.
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "block-sparse"
    title: ClassVar[str] = "Block-sparse: blocks of highest mean q . mean k, in prefill"
    paper: ClassVar[str] = "2407.02490"
    budget_unit: ClassVar[str] = "KV tokens read per query of a prompt, layer and head, in whole blocks"
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "query head"
    version: ClassVar[int] = 2
    lists_by_itself: ClassVar[bool] = True

    block: int = 64

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: An empty block, or a budget below one block.
        """
        super().__post_init__()
        if self.block < 1:
            self.refuse("block", "must be at least 1 token")
        if self.budget < self.block:
            self.refuse("budget", f"must be at least one block of {self.block} KV tokens")

    def plan(self, row: PromptRow) -> Tensor:
        """Chosen blocks, booleans [H, blocks, blocks]."""
        scores = products(means(row.q, self.block)[None], means(row.k, self.block)[None])[0]
        return choose(scores, self.budget // self.block)

    def reads(self, plan: Tensor, positions: Tensor, width: int) -> Tensor:
        """[H, n, S]."""
        return keys_of_blocks(plan, positions, rows=self.block, columns=self.block, width=width)

    def lists(self, run: Run, plan: None) -> BlockLists:
        """What `plan` chooses, by the kernels' chooser."""
        return block_choice.block_sparse(
            *run.with_tokens_first(),
            top=self.budget // self.block,
            block=self.block,
            query_block=self.tile,
        )

    def kv_reads(self, tokens: int) -> int:
        """Of a head that doesn't choose the query's own block."""
        return min(tokens, self.budget // self.block * self.block)

    def kv_reads_least(self, tokens: int) -> int:
        """Of a head that does."""
        before, own = divmod(tokens - 1, self.block)
        return min(before, self.budget // self.block - 1) * self.block + own + 1

    def index_reads(self, tokens: int) -> int:
        """The mean keys of the blocks up to the query's, shared by the block's queries."""
        return shared_means(tokens, self.block)


def choose(scores: Tensor, count: int) -> Tensor:
    """The `count` highest of the causal blocks for each block of queries, scores [H, blocks, blocks]."""
    return keep_top(scores, count, causal_blocks(scores.shape[-1], scores.device))
