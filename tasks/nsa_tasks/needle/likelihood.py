"""The right answer's log-likelihood on the documents of the tasks that ask for a reply."""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._tokens import RequestTokens, added_tokens, without_ends
from nsa_tasks.needle import build
from nsa_tasks.needle.task import NeedleTask

NOT_GREEDY = "not what greedy decoding gives"


class NeedleLikelihoodTask(NeedleTask):
    """A needle task with one answer, scored by the answer's log-likelihood after the prompt.

    Its documents are those of the task without `_nll` in its name, up to the last character of the prompt:
    the place that the reply would take is the answer's.
    """

    def build(self, tokens: RequestTokens) -> list[dict[str, Any]]:
        """Build every document of the grid, and count the answer's tokens."""
        try:
            rows = build.documents(replace(self.needle, task=self.form.removesuffix("_nll")), tokens)
        except TaskParameterError as error:
            raise TaskParameterError(f"{self.form}: its documents are those of {error}") from None
        for row in rows:
            row["answer_tokens"] = answer_tokens(row, tokens)
            if row["answer_tokens"] > self.needle.new_tokens:
                raise TaskParameterError(
                    f"{self.form}: new_tokens = {self.needle.new_tokens}: the answer of {row['id']} takes "
                    f"{row['answer_tokens']} tokens; take as many, or new_tokens = auto"
                )
        return rows

    def doc_to_target(self, doc: Mapping[str, Any], doc_to_target: object = None) -> str:
        """The answer as it follows the prompt: behind a space."""
        return target(doc)

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
        """Score a document, and say in it where greedy decoding would have replied otherwise."""
        found = scores(doc, results)
        if not found["greedy"] and isinstance(doc, MutableMapping):
            doc["reasons"] = [NOT_GREEDY]
        return found


def target(doc: Mapping[str, Any]) -> str:
    """The scored text."""
    return f" {doc['answer']}"


def answer_tokens(doc: Mapping[str, Any], tokens: RequestTokens) -> int:
    """Count the tokens of a document's answer, as they are scored.

    Raises:
        TaskParameterError: The tokenizer joins the answer with the prompt: it has no tokens of its own.
    """
    ends = added_tokens(tokens)[1]
    request = tokens.render(doc["input"], doc["gen_prefix"])
    # White space at the prompt's end is scored with the answer: lm-eval moves it over.
    prompt = without_ends(tokens.ids(request.rstrip()), ends)
    whole = without_ends(tokens.ids(request + target(doc)), ends)
    if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
        raise TaskParameterError(
            f"{doc['id']}: this tokenizer joins the answer {doc['answer']!r} with the end of the prompt, so "
            "it can't be scored apart; take another needle, or the task without _nll"
        )
    return len(whole) - len(prompt)


def scores(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Nats a token of the answer, and whether greedy decoding gives it (lm-eval's `process_results`)."""
    [(value, greedy)] = results
    return {"nll": -float(value) / doc["answer_tokens"], "greedy": float(greedy)}
