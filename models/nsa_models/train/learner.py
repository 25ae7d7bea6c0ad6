"""The model that is trained: one optimizer step on a batch, and questions about held-out text."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nsa_models.configuration import NSADecoderConfig
from nsa_models.modeling import NSADecoderForCausalLM, SwiGLU
from nsa_models.train.corpus import Corpus
from nsa_models.train.loss import token_losses
from nsa_models.train.parallel import FlatGradients, Group
from nsa_models.train.ranking import BlockRanking
from nsa_models.train.recipe import Recipe
from nsa_models.train.warm import warm_start

# cuDNN's is the fastest dense attention on Hopper, and torch doesn't prefer it by itself in every version.
_DENSE = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """What a step was like."""

    text: float
    """Mean loss of all tokens of the step, nats."""
    answer: float
    """Mean loss of its answer tokens."""
    ranking: float
    """Mean divergence of the asked queries' ranking of blocks, nats; 0 without a ranking loss."""
    norm: float
    """Of the gradient, before it was clipped."""


class Learner:
    """Model and optimizer of one process; the same in all of a group, as they make the same steps."""

    def __init__(self, recipe: Recipe, corpus: Corpus, group: Group) -> None:
        """Make the model with the recipe's seed, on the group's device, or with `init_from`'s weights."""
        self.recipe, self.group = recipe, group
        self.config = model_config(recipe, corpus)
        torch.manual_seed(recipe.seed)
        if group.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = True
        self.model = NSADecoderForCausalLM(model_config(recipe, corpus))
        if recipe.init_from is not None:
            warm_start(self.model, recipe.init_from)
        self.model.to(group.device).train()
        self.compiled = recipe.compile and group.device.type == "cuda"
        if self.compiled:
            for part in self.model.modules():
                if isinstance(part, SwiGLU):
                    part.compile(dynamic=True)  # one compilation for all lengths
        self.ranking: BlockRanking | None = None
        if recipe.ranking is not None and self.config.attention == "nsa":
            self.ranking = BlockRanking(self.model, self.config.geometry, recipe.ranking.queries)
        self.gradients = FlatGradients(self.model.parameters(), beside=3)
        self.optimizer = _optimizer(self.model, recipe)

    def select(self, count: int | None) -> None:
        """Set n, or the model's own again; no weight depends on it."""
        self.model.config.nsa_select_count = self.config.nsa_select_count if count is None else count

    def learn(self, ids: Tensor, answers: Tensor, *, rows: int, lr: float) -> Learnt:
        """Make a step.

        Args:
            ids: [own rows, L] of the batch, those of this process.
            answers: Which of them are answers, of the same shape.
            rows: Of the whole batch.
            lr: Learning rate.

        Raises:
            ValueError: The loss or the gradient is no number; the weights are as they were.
        """
        length, device = ids.shape[1], self.group.device
        for each in self.optimizer.param_groups:
            each["lr"] = lr
        asked = self.group.sum_(answers[:, 1:].sum().to(device)).clamp(min=1)
        self.gradients.clear()
        at_once = max(1, self.recipe.micro_batch_tokens // length)
        for some, mask in zip(ids.split(at_once), answers.split(at_once), strict=True):
            if not len(some):  # fewer rows than processes
                continue
            # Means over the whole batch, so that their sum is the same however it is divided.
            text, answer, ranking = self.losses(some, mask)
            text, answer, ranking = text / (rows * (length - 1)), answer / asked, ranking / rows
            loss = text + self.recipe.answer_weight * answer
            if self.recipe.ranking is not None:
                loss = loss + self.recipe.ranking.weight * ranking
            loss.backward()
            self.gradients.beside += torch.stack((text.detach(), answer.detach(), ranking.detach()))
        self.gradients.sum_(self.group)
        norm = self.gradients.clip_(self.recipe.optim.clip)
        text, answer, ranking, norm = torch.cat((self.gradients.beside, norm[None])).tolist()
        if not math.isfinite(text + answer + ranking + norm):
            raise ValueError(f"the loss is {text} (text), {answer} (answers), the gradient's norm {norm}")
        self.optimizer.step()
        return Learnt(text=text, answer=answer, ranking=ranking, norm=norm)

    def losses(self, ids: Tensor, answers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Summed losses, nats: of all tokens but the rows' first, of the answers among them, of the ranking.

        The last is a sum over rows of means over queries, zero without a ranking loss and in tests.
        """
        ids = ids.to(self.group.device, non_blocking=True)
        answers = answers.to(self.group.device, non_blocking=True)
        # Each position is asked for its next token; the last one's is beyond the row and counts nothing.
        # All flat and of their own storage: what is compiled then depends on no number of rows.
        within = torch.ones(ids.shape, device=ids.device)
        within[:, -1] = 0.0
        wanted = ids.roll(-1, dims=1).flatten().clone()
        ranking = self.ranking if self.model.training else None  # a test has no use for it
        watched = contextlib.nullcontext() if ranking is None else ranking.watch(ids, answers)
        with self._precision(), watched:
            hidden = self.model.model(ids, use_cache=False).last_hidden_state
            each = token_losses(
                hidden.flatten(0, 1),
                self.model.lm_head.weight,
                wanted,
                compiled=self.compiled,
            )
        counted = each * within.flatten()
        ranked = torch.zeros((), device=ids.device) if ranking is None else ranking.total()
        return counted.sum(), (counted * answers.roll(-1, dims=1).flatten()).sum(), ranked

    @torch.no_grad()
    def right(self, ids: Tensor, answers: Tensor) -> int:
        """How many rows have every answer token as the argmax after the tokens before it, as in decoding."""
        self.model.eval()
        right = 0
        at_once = max(1, self.recipe.micro_batch_tokens // ids.shape[1])
        with torch.compiler.set_stance("force_eager"), self._precision():
            for some, mask in zip(ids.split(at_once), answers.split(at_once), strict=True):
                if not len(some):
                    continue
                some, mask = some.to(self.group.device), mask.to(self.group.device)[:, 1:]
                hidden = self.model.model(some, use_cache=False).last_hidden_state
                said = self.model.lm_head(hidden[:, :-1][mask]).argmax(-1)
                wrong = torch.zeros_like(mask)
                wrong[mask] = said != some[:, 1:][mask]
                right += int((~wrong.any(-1)).sum())
        self.model.train()
        return right

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        if self.group.device.type != "cuda":
            yield
            return
        with torch.autocast("cuda", dtype=torch.bfloat16), sdpa_kernel(_DENSE, set_priority=True):
            yield


def model_config(recipe: Recipe, corpus: Corpus) -> NSADecoderConfig:
    """The recipe's model with the tokenizer's vocabulary and special tokens."""
    tokenizer = corpus.tokenizer
    return NSADecoderConfig(
        **recipe.model,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _optimizer(model: NSADecoderForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only."""
    optim = recipe.optim
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=optim.lr,
        betas=optim.betas,
        fused=next(model.parameters()).is_cuda,
    )
