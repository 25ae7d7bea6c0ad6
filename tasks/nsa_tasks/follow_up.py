"""Requests that follow from replies: a task that asks a document again, with its first reply in the prompt.

lm-eval builds all requests before the first is answered. A second request is therefore made and answered
between the two halves of its evaluation: when all first replies are in, lm-eval has each task apply its
filters, and only then reads the task's requests for scoring. `FollowUps` asks there, and puts the new
requests behind the document's first one, as lm-eval keeps the requests of documents that have several:
samples show every prompt and every reply, in lm-eval's own form.

Whoever evaluates says who answers (`task.ask = lm.generate_until`). A run of the harness does, so follow-ups
come from its store, go into it, and are answered by its executor as any other request. In lm-eval's own
command line the model comes with its chat template.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nsa_tasks._errors import TaskError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask as _Task

    Ask = Callable[[list[Instance]], list[str]]
    """Answers requests: the `generate_until` of a model."""
else:
    _Task = object

_PROMPT, _REPLY = "follow_up", "of_reply"
"""Keys of a follow-up's own copy of the document: its prompt, and which of the replies it follows."""
COUNT = "follow_ups"
"""Key of a sample's document: how many of its requests, the last ones, were made from replies. What a model
was asked by its own words isn't what another was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowUp:
    """What a document is asked after its first reply."""

    prompt: str
    """Before any chat template."""
    new_tokens: int
    """Budget of the reply; the other generation settings are the task's."""


class FollowUps(_Task):
    """Mixin for lm-eval task classes, before all others: asks a document a second time."""

    _instances: "list[Instance]"
    ask: "Ask | None" = None
    """Who answers follow-ups; None leaves it to what comes with the chat template."""

    @abstractmethod
    def follow_up(self, doc: Mapping[str, Any], reply: str) -> FollowUp | None:
        """Make the second request from a first reply; None where there is nothing more to ask."""

    def build_all_requests(
        self,
        *,
        world_size: int = 1,
        apply_chat_template: bool = False,
        chat_template: Callable[..., Any] | None = None,
        system_instruction: str | None = None,
        **kwargs: Any,  # noqa: ANN401  (lm-eval's arguments)
    ) -> None:
        """Build the first requests, and keep how they are worded for the second ones.

        Raises:
            TaskError: Nobody to ask again. It is said before the first request costs anything.
        """
        name = self.config.task
        if world_size > 1:
            raise TaskError(
                f"{name} asks again after its first replies, which lm-eval's ranks ({world_size}) can't do "
                "together: run it in one process, or with nsa-eval, whose executors use all GPUs."
            )
        # lm-eval hands over the model's own method, and with it the model.
        model = getattr(chat_template, "__self__", None)
        self._ask = self.ask or getattr(model, "generate_until", None)
        if self._ask is None:
            raise TaskError(
                f"{name} asks again after its first replies, and lm-eval tells a task its model only with "
                "a chat template: add --apply_chat_template, run it with nsa-eval, or set task.ask = "
                "lm.generate_until before lm_eval.evaluate()."
            )
        self._wording = {
            "apply_chat_template": apply_chat_template,
            "chat_template": chat_template,
            "system_instruction": system_instruction,
        }
        super().build_all_requests(world_size=world_size, **self._wording, **kwargs)

    def doc_to_text(self, doc: Mapping[str, Any], doc_to_text: object = None) -> str:
        """The prompt of a document, or of a follow-up's copy of it."""
        return str(doc[_PROMPT]) if _PROMPT in doc else str(super().doc_to_text(doc, doc_to_text))

    def apply_filters(self) -> Any:  # noqa: ANN401  (lm-eval's signature)
        """Ask again, now that the first replies are in; then filter all replies."""
        requests = list(self._requests())
        if requests:
            assert self._ask is not None, "build_all_requests has made sure of it"
            replies = self._ask(requests)
            for request, reply in zip(requests, replies, strict=True):
                request.resps.append(reply)
            self._instances = [*self._instances, *requests]
        return super().apply_filters()

    def dialogues(self, doc: Mapping[str, Any], results: Sequence[Any]) -> list[tuple[str, ...]]:
        """Sort the filtered replies of a document, as `process_results` gets them.

        Returns:
            For each first reply: it alone, or with the reply to its follow-up.
        """
        firsts, *rest = ([str(one) for one in result] if isinstance(result, list) else [str(result)]
                         for result in results)  # fmt: skip
        seconds = iter(reply for result in rest for reply in result)
        return [
            (first, next(seconds)) if self.follow_up(doc, first) is not None else (first,) for first in firsts
        ]

    def _requests(self) -> "Iterator[Instance]":
        from lm_eval.api.instance import Instance

        for first in self._instances:
            for number, reply in enumerate(first.resps):
                asked = self.follow_up(first.doc, reply)
                if asked is None:
                    continue
                doc = {**first.doc, _PROMPT: asked.prompt, _REPLY: number}
                settings = deepcopy(self.config.generation_kwargs)
                yield Instance(
                    request_type="generate_until",
                    doc=doc,
                    arguments=(
                        self.fewshot_context(doc, num_fewshot=0, **self._wording),
                        {**settings, "max_gen_toks": asked.new_tokens},
                    ),
                    idx=1 + number,
                    metadata=(first.task_name, first.doc_id, 1),
                )
