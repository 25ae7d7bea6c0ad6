"""A run on disk: its log, the state that it goes on from, and the exported model."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nsa_models.modeling import NSADecoderForCausalLM
from nsa_models.train.corpus import Corpus
from nsa_models.train.learner import Learner, model_config
from nsa_models.train.recipe import Recipe


@dataclass(slots=True)
class Progress:
    """Where the run stands; with weights and optimizer state, all that a resumed run needs.

    Nothing in it speaks of processes: positions are those of whole batches.
    """

    step: int = 0
    """Optimizer steps done."""
    stage: int = 0
    stage_step: int = 0
    """Steps done in this stage: the position in the stage's data."""
    answer_loss: float | None = None
    """Running mean of the answer loss in this stage, nats."""
    tokens: int = 0
    seconds: float = 0.0


class RunFolder:
    """The files of a run; only the leading process writes them."""

    def __init__(self, recipe: Recipe, corpus: Corpus) -> None:
        """The folder that the recipe names; made with the first file."""
        self.recipe, self.corpus, self.folder = recipe, corpus, recipe.output

    def save(self, learner: Learner, progress: Progress) -> None:
        """Write weights, optimizer state and progress; a kill leaves the old state or the new one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "recipe": self.recipe.model_dump(mode="json"),
            "progress": asdict(progress),
            "model": learner.model.state_dict(),
            "optimizer": learner.optimizer.state_dict(),
        }
        partial = self.folder / "state.pt.part"
        torch.save(state, partial)
        os.replace(partial, self.folder / "state.pt")

    def load(self, learner: Learner, progress: Progress) -> bool:
        """Set all three to what was saved; False where nothing was.

        Raises:
            ValueError: The folder holds another recipe's run.
        """
        path = self.folder / "state.pt"
        if not path.is_file():
            return False
        state = torch.load(path, map_location=learner.group.device, weights_only=True)
        refuse_another(state["recipe"], self.recipe, state["progress"]["stage"])
        learner.model.load_state_dict(state["model"])
        learner.optimizer.load_state_dict(state["optimizer"])
        for key, value in state["progress"].items():
            setattr(progress, key, value)
        return True

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to log.jsonl."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def cut_log(self, step: int) -> None:
        """Drop rows of steps after `step`: a killed run logged them, and they will be done again."""
        path = self.folder / "log.jsonl"
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        if kept != lines:
            partial = path.with_suffix(".part")
            partial.write_text("".join(kept), encoding="utf-8")
            partial.replace(path)

    def export(self, learner: Learner) -> Path:
        """Write the model as a checkpoint: bf16 safetensors, config and tokenizer."""
        folder = self.folder / "model"
        model = NSADecoderForCausalLM(model_config(self.recipe, self.corpus))
        model.load_state_dict(learner.model.state_dict())
        model.to(torch.bfloat16).save_pretrained(folder)
        self.corpus.tokenizer.save_pretrained(folder)
        return folder


# Recipe keys that say where, how fast and how often, not what is learned.
_FREE_TO_CHANGE = {
    "output",
    "micro_batch_tokens",
    "workers",
    "log_every",
    "save_every",
    "test_every",
    "test_lengths",
    "compile",
}


def refuse_another(then: dict[str, Any], recipe: Recipe, stage: int) -> None:
    """Refuse to go on in a folder with another recipe than its run's.

    Args:
        then: The run's recipe, as plain data.
        recipe: The one that is to go on, in its own output folder.
        stage: In which the run stands: later ones may differ.

    Raises:
        ValueError: They differ in keys that the steps done so far depend on.
    """
    changed = _changed(then, recipe.model_dump(mode="json"), stage)
    if changed:
        raise ValueError(
            f"{recipe.output} holds a run of another recipe (differs in {', '.join(changed)}); "
            "choose another output folder or remove that one"
        )


def _changed(then: dict[str, Any], now: dict[str, Any], stage: int) -> list[str]:
    """Keys in which two recipes differ, of those that the steps done so far depend on."""
    return [
        key
        for key in now
        if key not in _FREE_TO_CHANGE and _past(key, then.get(key), stage) != _past(key, now[key], stage)
    ]


def _past(key: str, value: Any, stage: int) -> Any:  # noqa: ANN401 - any field of a recipe
    if key == "text" and value is not None:  # its files may have moved
        return {name: item for name, item in value.items() if name not in ("folder", "cache")}
    if key == "stages" and value is not None:  # later stages may change; but whether this is the last may not
        return value[: stage + 1], len(value) <= stage + 1
    return value
