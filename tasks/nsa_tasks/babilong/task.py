"""The lm-eval task class of the BABILong YAMLs."""

import hashlib
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, cast

from nsa_tasks import _kept
from nsa_tasks._files import joint_sha256
from nsa_tasks._tokens import RequestTokens
from nsa_tasks.babilong import FAMILY
from nsa_tasks.babilong.background import Books, open_background
from nsa_tasks.babilong.build import documents
from nsa_tasks.babilong.family import protocol
from nsa_tasks.babilong.parameters import BabilongParams
from nsa_tasks.babilong.prompts import lm_eval, official
from nsa_tasks.babilong.scoring import describe
from nsa_tasks.babilong.sources import facts_source
from nsa_tasks.babilong.stories import read_questions
from nsa_tasks.data import file_sha256, load_data
from nsa_tasks.record_task import Documents, RecordTask

_GPT2 = "openai-community/gpt2"
"""The official tokenizer on the hub."""
_KNOWN, _KNOWN_IDS = "Hello world", [15496, 995]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")


class BabilongTask(RecordTask):
    """A BABILong task: its contexts are built, and scored by the labels that replies name."""

    family = FAMILY

    @property
    def own(self) -> BabilongParams:
        """The task's parameters."""
        return cast("BabilongParams", self.params)

    def documents(self) -> Documents:
        """Build all contexts; they stay here, documents have the hash of their prompt."""
        own = self.own
        wording = official(own.qa, own.data_root) if own.prompt == "official" else lm_eval(own.qa)
        facts = load_data(facts_source(own.qa, own.data_root), own.data_root)
        questions = read_questions(facts.records[0]["text"], facts.places[0])
        background = open_background(own.background, own.data_root)
        counter = self._counter()

        def build(tokens: RequestTokens) -> list[dict[str, Any]]:
            rows = documents(own, questions, background, tokens)
            for row in rows:
                row["input"] = wording.prompt(row.pop("context"), row["question"])
            return rows

        frame = hashlib.sha256(wording.prompt("", "").encode()).hexdigest()
        made_of = {"facts": facts.name, "background": background.name, "frame": frame}
        rows = _kept.documents(own, made_of, counter, build)
        self._prompts: dict[str, str] = {}
        for row in rows:
            prompt = self._prompts[row["id"]] = row.pop("input")
            row["input_sha256"] = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
        about = {"protocol": protocol(own, gpt2=_is_gpt2(counter)), "data_hash": facts.name}
        if isinstance(background, Books):
            about["text_hash"] = f"text:{background.name.partition(':')[2]}"
        if own.count.startswith("tokenizer:"):
            about["tokenizer_hash"] = f"tokenizer:{_tokenizer_hash(own.count.removeprefix('tokenizer:'))}"
        return Documents(rows, about)

    def prompt_of(self, doc: Mapping[str, Any]) -> str:
        """Instruction, examples, context and question."""
        return self._prompts[doc["id"]]

    def reply_budget(self) -> int:
        """20 officially."""
        return self.own.new_tokens

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
        """Score a sample, and leave in it what its replies name instead of the target."""
        scores = super().process_results(doc, results)
        replies = results[0] if results and isinstance(results[0], list) else results
        reasons = [describe(doc["qa"], doc["target"], str(reply), doc["question"]) for reply in replies]
        if any(reasons) and isinstance(doc, MutableMapping):
            doc["reasons"] = reasons
        return scores

    def _counter(self) -> RequestTokens:
        """Whose tokens a length is."""
        name = self.own.count
        if name == "model":
            return self.tokens
        return RequestTokens.load(_GPT2 if name == "gpt2" else name.removeprefix("tokenizer:"))


def _is_gpt2(tokens: RequestTokens) -> bool:
    """Whether a tokenizer is GPT-2's: by what it makes of a text whose tokens are known."""
    return tokens.encode(_KNOWN, special=False).ids == _KNOWN_IDS


def _tokenizer_hash(folder: str) -> str:
    """What a tokenizer's folder is known by, wherever it lies: a hash of the files that make its tokens."""
    files = sorted(path for name in _TOKENIZER_FILES for path in Path(folder).expanduser().glob(name))
    return joint_sha256([file_sha256(path) for path in files])[:16] if files else "unknown"
