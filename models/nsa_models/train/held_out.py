"""What a model makes of text that it was never trained on: losses, and questions about single numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from nsa_models.train.corpus import Corpus
from nsa_models.train.facts import FactWriter
from nsa_models.train.learner import Learner
from nsa_models.train.recipe import Recipe

# Tokens whose mean loss is taken, at each length: a token's scatters by some 2.5 nats, the mean by 0.004.
LOSS_TOKENS = 2**19
# Questions of each length: 95 % intervals are 12 points wide at the most.
QUESTIONS = 256
# The trainer's own tests use their length as a seed; these questions are others.
_SEED = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The figures of one length."""

    text: float
    """Mean loss of all tokens, nats."""
    answer: float
    """Mean loss of the answers' tokens, nats."""
    right: int
    """Questions whose answer's tokens are all the likeliest, as in decoding."""
    questions: int


class HeldOutTest:
    """The same sequences and questions for every model of one text, facts and seed.

    Sequences have facts sown in like those of training, in documents that training leaves out; questions ask
    for one number at the end of such text, at depths from its start to its end.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus) -> None:
        """Prepare for models of the recipe's text."""
        self._facts = FactWriter(replace(corpus, train=corpus.held_out), recipe.facts, recipe.seed)

    def __call__(self, learner: Learner, length: int) -> HeldOut:
        """Test the model of a learner, which stands alone, at `length` tokens and the n that it has."""
        rows = max(1, LOSS_TOKENS // length)
        at_once = max(1, learner.recipe.micro_batch_tokens // length)
        sums = torch.zeros(2, dtype=torch.float64)
        asked = 0
        learner.model.eval()
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for first in range(0, rows, at_once):
                ids, answers = self._facts.batch(
                    stage=_SEED, step=length, rows=range(first, min(first + at_once, rows)), length=length
                )
                text, answer, _ = learner.losses(ids, answers)
                sums += torch.tensor([text.item(), answer.item()], dtype=torch.float64)
                asked += int(answers[:, 1:].sum())
        text_sum, answer_sum = sums.tolist()
        ids, answers = self._facts.quiz(rows=QUESTIONS, length=length, seed=_SEED + length)
        return HeldOut(
            text=text_sum / (rows * (length - 1)),
            answer=answer_sum / max(1, asked),
            right=learner.right(ids, answers),
            questions=QUESTIONS,
        )
