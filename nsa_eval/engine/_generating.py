"""Replies: which requests go together, and which prefixes they share; `_scheduling.py` makes them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedTokenizerBase

from nsa_eval.engine._batching import Limits
from nsa_eval.engine._lines import Endings, ReplyRequest
from nsa_eval.engine._meter import Meter
from nsa_eval.engine._prefixes import Node, prefix_tree
from nsa_eval.engine._reader import Reader
from nsa_eval.engine._scheduling import Emit, Scheduler

# A prefix is worth reading by itself when that saves so many tokens, and so many for each prompt below it:
# below, one forward for all prompts is as fast.
_MIN_SAVED = 64
_MIN_HEAD = 64


class Replier:
    """Generates replies with one reader."""

    def __init__(
        self,
        reader: Reader,
        tokenizer: PreTrainedTokenizerBase,
        limits: Limits,
        *,
        share_prefixes: bool,
        cuda_graphs: bool,
        meter: Meter,
    ) -> None:
        """Args are parts of the Engine."""
        self.reader = reader
        self.limits = limits
        self.cuda_graphs = cuda_graphs
        self.meter = meter
        self.share = share_prefixes and reader.shared
        self.endings = Endings(reader, tokenizer)

    @torch.inference_mode()
    def run(self, requests: list[ReplyRequest], *, wanted: Callable[[int], bool], emit: Emit) -> None:
        """Generate the wanted replies.

        Prefixes and the order of prompts follow from all requests, wanted or not.

        Raises:
            NonFiniteLogitsError: The model's logits can't be compared; replies emitted before are complete.
        """
        regimes: dict[tuple[int, int], list[ReplyRequest]] = {}
        for request in requests:
            regimes.setdefault(self.reader.regime(len(request.tokens)), []).append(request)
        for _, some in sorted(regimes.items()):
            asked = [request for request in some if wanted(request.name)]
            if asked:
                Scheduler(
                    self.reader,
                    self.limits,
                    some,
                    asked,
                    endings=self.endings,
                    meter=self.meter,
                    cuda_graphs=self.cuda_graphs,
                    emit=emit,
                ).run(self._tree(some))

    def _tree(self, requests: list[ReplyRequest]) -> Node:
        if not self.share:
            return Node(0, members=list(range(len(requests))))
        family = self.reader.family
        return prefix_tree(
            # The last token is left to the request itself: its logits start the reply.
            [request.tokens[:-1] for request in requests],
            min_saved=max(_MIN_SAVED, self.reader.worth),
            per_sequence=max(_MIN_HEAD, 2 * family.resume_tokens),
            min_head=max(_MIN_HEAD, self.reader.worth // 4),
            step=self.reader.step_tokens,
            least=max(
                _MIN_HEAD,
                2 * family.resume_tokens,
                self.reader.first_forward([len(request.tokens) for request in requests]),
            ),
        )
