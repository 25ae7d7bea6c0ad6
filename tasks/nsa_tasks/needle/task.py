"""The lm-eval task class of the needle YAMLs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lm_eval.api.task import ConfigurableTask

from nsa_tasks._parameters import TaskParameterError
from nsa_tasks._tokens import ChatTemplate
from nsa_tasks.needle import build


class NeedleTask(ConfigurableTask):
    """A YAML task whose requests never exceed their length, however lm-eval is called.

    Plain `ConfigurableTask` reads `generation_kwargs` from the YAML alone and learns of a chat template only
    after the documents are made. Here the reply budget follows `new_tokens`, and the documents are made again
    if the requests turn out to be worded differently from what they were sized for (a chat template or a
    system instruction given to lm-eval's own command line).
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Read the parameters and build the documents.

        Args:
            config: The YAML's keys, with the run's metadata merged in.

        Raises:
            TaskParameterError: A parameter, length, haystack or tokenizer that cannot be used.
        """
        fields = {key: value for key, value in config.items() if key != "class"}
        self.form: str = fields["dataset_kwargs"]["form"]
        self.values = build.settings(self.form, fields["metadata"])
        # Results show what ran, not what was written; of a text also which it was, wherever it lay.
        haystack = build.open_haystack(self.values).name
        text = {"text_hash": haystack} if haystack.startswith("text:") else {}
        fields["metadata"] = {**fields["metadata"], **self.values, **text}
        fields["generation_kwargs"] = {
            **fields["generation_kwargs"],
            "max_gen_toks": self.values["new_tokens"],
        }
        super().__init__(config=fields)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: object) -> None:
        """Build the documents (the base class does the same, with a warning at every load)."""
        self.dataset = self.config.custom_dataset(**self.config.metadata, **(dataset_kwargs or {}))

    def build_all_requests(
        self,
        *,
        apply_chat_template: bool = False,
        chat_template: ChatTemplate | None = None,
        system_instruction: str | None = None,
        cache_requests: bool = False,
        rewrite_requests_cache: bool = False,
        **kwargs: object,
    ) -> None:
        """Build the requests, after making sure that the documents were sized for them.

        lm-eval's request cache is not used: its key knows the task's name and not its lengths.

        Raises:
            TaskParameterError: `gen_kwargs` asked for more new tokens than the lengths leave room for.
        """
        asked = int(self.config.generation_kwargs["max_gen_toks"])
        if asked > self.values["new_tokens"]:
            raise TaskParameterError(
                f"{self.form}: max_gen_toks = {asked} in gen_kwargs exceeds the {self.values['new_tokens']} "
                f"tokens inside each length; set new_tokens = {asked} in the task's parameters instead."
            )
        wording = {
            "apply_chat_template": apply_chat_template,
            "chat_template": chat_template,
            "system_instruction": system_instruction,
        }
        doc = self.dataset["test"][0]
        sized_for = build.request_tokens(self.form, self.config.metadata)
        sent = self.fewshot_context(doc, num_fewshot=0, gen_prefix=doc["gen_prefix"], **wording)
        if sent != sized_for.render(doc["input"], doc["gen_prefix"]):
            template = chat_template if apply_chat_template else None
            tokens = replace(sized_for, chat_template=template, system_instruction=system_instruction)
            self.dataset = {"test": build.documents(self.form, self.values, tokens)}
            self.task_docs = self.eval_docs
        super().build_all_requests(**wording, **kwargs)
