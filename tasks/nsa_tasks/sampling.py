"""Seeds of documents, and several replies to one.

lm-eval asks a document n times where its task's `repeats` is n, and then throws all replies but the first
away (its default filter, `take_first`). `EveryReply` keeps them: a document's score is the mean over its
replies, so that the mean over documents is avg@n and its standard error counts documents, not replies.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nsa_tasks._random import derive_seed

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask as _Task
else:
    _Task = object


def document_seed(seed: int, task: str, *index: int) -> int:
    """Derive a document's own seed from its place in the task.

    Args:
        seed: The task's seed.
        task: Task name; not its alias, which may not change the documents.
        *index: What the document is: (length, depth index, sample), or its number. Never a position in the
            text: two documents may share that.

    Returns:
        A whole number below 2**63, the same on every machine and Python version.
    """
    return derive_seed(seed, task, *index)


def mean_scores(scores: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Average the metrics of a document's replies.

    Raises:
        ValueError: No reply, or replies with different metrics.
    """
    listed = list(scores)
    if not listed or any(set(row) != set(listed[0]) for row in listed):
        raise ValueError("expected the scores of at least one reply, all with the same metrics")
    return {name: sum(row[name] for row in listed) / len(listed) for name in listed[0]}


class EveryReply(_Task):
    """Mixin for lm-eval task classes, before `ConfigurableTask`: with `repeats` above 1 every reply counts.

    The class's `process_results` is asked for each reply as if it were the only one.
    """

    scores_every_reply = True
    """Tells whoever sets `repeats` that it changes the score."""

    def apply_filters(self) -> Any:  # noqa: ANN401  (lm-eval's signature)
        """Filter replies by the task's own filters; where it has none, keep all of them."""
        from lm_eval.filters import build_filter_ensemble

        repeats = int(self.config.repeats)
        if repeats > 1 and self.config.filter_list is None:
            self._filters = [build_filter_ensemble("none", [("take_first_k", {"k": repeats})])]
        return super().apply_filters()

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
        """Score a document by the mean over its replies."""
        replies = results[0] if results and isinstance(results[0], list) else None
        if replies is None:
            return dict(super().process_results(doc, results))
        return mean_scores(super(EveryReply, self).process_results(doc, [reply]) for reply in replies)
