"""The training loop: curriculum by answer loss, exact resume, a JSONL log."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nsa_models.configuration import NSADecoderConfig
from nsa_models.modeling import NSADecoderForCausalLM
from nsa_models.train.corpus import Corpus, load_corpus
from nsa_models.train.facts import FactWriter
from nsa_models.train.recipe import Recipe, Stage

# Weight of the newest step in the running answer loss: about the last 20 steps.
_EMA = 0.05
# Stages end at the earliest after so many steps, when the running loss means something.
_MIN_STEPS = 20
_QUIZ_ROWS = 64


@dataclass(slots=True)
class Progress:
    """Where the run stands; with weights and optimizer state, all that a resumed run needs."""

    step: int = 0
    """Optimizer steps done."""
    stage: int = 0
    stage_step: int = 0
    """Steps done in this stage: the position in the stage's data."""
    answer_loss: float | None = None
    """Running mean of the answer loss in this stage, nats."""
    tokens: int = 0
    seconds: float = 0.0


class Stopped(Exception):  # noqa: N818 - not an error
    """The run saved its state before its end (time limit, SIGTERM or Ctrl-C); run it again to go on."""


def train(recipe: Recipe, *, time_limit: float | None = None, log: Callable[[str], None] = print) -> Path:
    """Train to the end of the last stage, going on from the newest checkpoint in the output folder.

    Args:
        recipe: The run.
        time_limit: Seconds after which the state is saved and `Stopped` raised.
        log: Called with a line of text now and then.

    Returns:
        The folder of the exported model (bf16 safetensors, config, tokenizer).

    Raises:
        Stopped: See `time_limit`; SIGTERM and a first Ctrl-C do the same, after the step at hand.
        FileNotFoundError: No training text.
        ValueError: The text is too short for the recipe's lengths, the output folder holds another recipe's
            run, or the loss became NaN.
    """
    run = _Run(recipe, time_limit, log)
    with _signals_to(run.ask_to_stop):
        return run.run()


@contextlib.contextmanager
def _signals_to(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Hand SIGTERM and SIGINT to `handler` meanwhile; only a main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class _Run:
    def __init__(self, recipe: Recipe, time_limit: float | None, log: Callable[[str], None]) -> None:
        self.recipe, self.time_limit, self.log = recipe, time_limit, log
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.corpus: Corpus = load_corpus(recipe.text)
        _check_lengths(recipe, self.corpus)
        self.facts = FactWriter(self.corpus, recipe.facts, recipe.seed)
        for length in recipe.test_lengths:  # raises now, not after hours, when there is no room for a fact
            self.facts.quiz(rows=1, length=length, seed=length)
        torch.manual_seed(recipe.seed)
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = True
        self.model = NSADecoderForCausalLM(model_config(recipe, self.corpus)).to(self.device)
        if recipe.compile and self.device.type == "cuda":
            # One compilation a length and dtype, for every length used.
            torch._dynamo.config.recompile_limit = 64
            for layer in self.model.model.layers:
                layer.compile(dynamic=False)
        self.optimizer = _optimizer(self.model, recipe)
        self.progress = Progress()
        self.started = time.monotonic()
        self.stop_asked = False

    def run(self) -> Path:
        recipe, progress = self.recipe, self.progress
        self._resume()
        seconds_before = progress.seconds
        while progress.stage < len(recipe.stages):
            stage = recipe.stages[progress.stage]
            self._set_select_count(stage.select_count)
            for ids, answers in self._batches(stage):
                record = self._step(stage, ids, answers)
                progress.seconds = seconds_before + time.monotonic() - self.started
                done = self._stage_done(stage)
                self._report(record, last=done)
                if done:
                    break
                if self._must_stop():
                    self._save()
                    raise Stopped(
                        f"stopped at step {progress.step} with everything saved; run again to go on"
                    )
                if progress.step % recipe.save_every == 0:
                    self._save()
            progress.stage, progress.stage_step, progress.answer_loss = progress.stage + 1, 0, None
            self._save()
        return self._export()

    def _set_select_count(self, count: int | None) -> None:
        """Set n; no weight depends on it. The quiz runs under it too; the exported config has the model's."""
        own = model_config(self.recipe, self.corpus).nsa_select_count
        self.model.config.nsa_select_count = own if count is None else count

    def _batches(self, stage: Stage) -> Iterator[tuple[Tensor, Tensor]]:
        dataset = _StageData(self.facts, self.recipe, self.progress.stage, stage)
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,
            sampler=range(self.progress.stage_step, stage.max_steps),
            num_workers=self.recipe.workers,
            prefetch_factor=4 if self.recipe.workers else None,
            pin_memory=self.device.type == "cuda",
        )
        return iter(loader)

    def _step(self, stage: Stage, ids: Tensor, answers: Tensor) -> dict[str, Any]:
        recipe, progress = self.recipe, self.progress
        lr = self._learning_rate(stage)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        rows = recipe.micro_batch_tokens // ids.shape[1]
        parts = list(zip(ids.split(rows), answers.split(rows), strict=True))
        losses = torch.zeros(2, device=self.device)
        for part_ids, part_answers in parts:
            text_loss, answer_loss = self._losses(part_ids, part_answers)
            ((text_loss + recipe.answer_weight * answer_loss) / len(parts)).backward()
            losses += torch.stack((text_loss.detach(), answer_loss.detach())) / len(parts)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        text, answer = losses.tolist()
        if not math.isfinite(text + answer):
            raise ValueError(
                f"the loss is {text} (text), {answer} (answers) at step {progress.step}: lower the rate"
            )
        progress.step += 1
        progress.stage_step += 1
        progress.tokens += ids.numel()
        last = progress.answer_loss
        progress.answer_loss = answer if last is None else (1 - _EMA) * last + _EMA * answer
        return {"length": ids.shape[1], "loss": text, "answer_loss": answer, "norm": norm.item(), "lr": lr}

    def _losses(self, ids: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
        ids = ids.to(self.device, non_blocking=True)
        answers = answers.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.model(ids, use_cache=False).logits
        each = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        mask = answers[:, 1:].flatten()
        return each.mean(), (each * mask).sum() / mask.sum().clamp(min=1)

    def _learning_rate(self, stage: Stage) -> float:
        optim, progress = self.recipe.optim, self.progress
        rate = optim.lr * min(1.0, (progress.step + 1) / optim.warmup_steps)
        if progress.stage == len(self.recipe.stages) - 1:
            done = progress.stage_step / stage.max_steps
            rate *= 1.0 - (1.0 - optim.final_lr_ratio) * done
        return rate

    def _stage_done(self, stage: Stage) -> bool:
        progress = self.progress
        if progress.stage_step >= stage.max_steps:
            return True
        if stage.until_answer_loss is None or progress.stage_step < _MIN_STEPS:
            return False
        return progress.answer_loss is not None and progress.answer_loss < stage.until_answer_loss

    def _report(self, record: dict[str, Any], *, last: bool) -> None:
        progress, recipe = self.progress, self.recipe
        test = last or progress.step % recipe.test_every == 0
        if not (test or progress.step % recipe.log_every == 0):
            return
        row: dict[str, Any] = {**asdict(progress), **record, "answer_loss_mean": progress.answer_loss}
        if test:
            row["held_out"] = {str(length): self.quiz(length) for length in recipe.test_lengths}
        recipe.output.mkdir(parents=True, exist_ok=True)
        with (recipe.output / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        tested = " ".join(f"{length}:{score:.0%}" for length, score in row.get("held_out", {}).items())
        self.log(
            f"step {progress.step} stage {progress.stage} length {record['length']} "
            f"loss {record['loss']:.3f} answer {record['answer_loss']:.4f} "
            f"norm {record['norm']:.2f} lr {record['lr']:.2e} "
            f"{progress.tokens / 1e6:.0f}M tokens {progress.seconds:.0f}s {tested}"
        )

    @torch.no_grad()
    def quiz(self, length: int) -> float:
        """Share of held-out questions at `length` whose every answer token is the argmax, as in decoding."""
        with torch.compiler.set_stance("force_eager"):
            return self._quiz(length)

    def _quiz(self, length: int) -> float:
        self.model.eval()
        right = 0
        ids, answers = self.facts.quiz(rows=_QUIZ_ROWS, length=length, seed=length)
        rows = max(1, min(_QUIZ_ROWS, self.recipe.micro_batch_tokens // length))
        for part, mask in zip(ids.split(rows), answers.split(rows), strict=True):
            part, mask = part.to(self.device), mask.to(self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
                logits = self.model(part, use_cache=False).logits
            hit = (logits[:, :-1].argmax(-1) == part[:, 1:]) | ~mask[:, 1:]
            right += int(hit.all(-1).sum())
        self.model.train()
        return right / _QUIZ_ROWS

    # --- state on disk ---

    def _save(self) -> None:
        self.recipe.output.mkdir(parents=True, exist_ok=True)
        state = {
            "recipe": self.recipe.model_dump(mode="json"),
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.recipe.output / "state.pt.part"
        torch.save(state, partial)
        os.replace(partial, self.recipe.output / "state.pt")  # a kill leaves the old state or the new one

    def _resume(self) -> None:
        path = self.recipe.output / "state.pt"
        if not path.is_file():
            self._cut_log()
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        now = self.recipe.model_dump(mode="json")
        for text in (now["text"], state["recipe"]["text"]):  # the files may have moved
            del text["folder"], text["cache"]
        changed = [key for key in now if state["recipe"].get(key) != now[key] and key not in _FREE_TO_CHANGE]
        if changed:
            raise ValueError(
                f"{self.recipe.output} holds a run of another recipe (differs in {', '.join(changed)}); "
                "choose another output folder or remove that one"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for key, value in state["progress"].items():
            setattr(self.progress, key, value)
        self._cut_log()
        self.log(f"going on from step {self.progress.step}")

    def _cut_log(self) -> None:
        """Drop rows of steps after the saved state: a killed run logged them, and they will be done again."""
        path = self.recipe.output / "log.jsonl"
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [
            line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self.progress.step
        ]
        if kept != lines:
            partial = path.with_suffix(".part")
            partial.write_text("".join(kept), encoding="utf-8")
            partial.replace(path)

    def _export(self) -> Path:
        folder = self.recipe.output / "model"
        model = NSADecoderForCausalLM(model_config(self.recipe, self.corpus))
        model.load_state_dict(self.model.state_dict())
        model.to(torch.bfloat16).save_pretrained(folder)
        self.corpus.tokenizer.save_pretrained(folder)
        return folder

    def ask_to_stop(self, number: int, _: object) -> None:
        """Signal handler: stop after the step at hand; a second Ctrl-C stops at once."""
        if number == signal.SIGINT and self.stop_asked:
            raise KeyboardInterrupt
        self.stop_asked = True

    def _must_stop(self) -> bool:
        late = self.time_limit is not None and time.monotonic() - self.started > self.time_limit
        return late or self.stop_asked


# Recipe keys that say where and how often, not what is learned.
_FREE_TO_CHANGE = {
    "output",
    "workers",
    "log_every",
    "save_every",
    "test_every",
    "test_lengths",
    "compile",
}


class _StageData(Dataset[tuple[Tensor, Tensor]]):
    """Batches of one stage by step: the same for both twins, in any worker, after any interruption."""

    def __init__(self, facts: FactWriter, recipe: Recipe, index: int, stage: Stage) -> None:
        self.facts, self.recipe, self.index, self.stage = facts, recipe, index, stage

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        length = self.stage.lengths[step % len(self.stage.lengths)]
        rows = self.recipe.batch_tokens // length
        return self.facts.batch(stage=self.index, step=step, rows=rows, length=length)


def _check_lengths(recipe: Recipe, corpus: Corpus) -> None:
    """Refuse, before anything is trained, a text shorter than a sequence."""
    for kind, tokens, lengths in (
        ("training", corpus.train, [length for stage in recipe.stages for length in stage.lengths]),
        ("held-out", corpus.held_out, recipe.test_lengths),
    ):
        if len(tokens) < max(lengths, default=0):
            raise ValueError(
                f"the {kind} text has {len(tokens)} tokens, the recipe asks for sequences of {max(lengths)}: "
                "add text to text.folder (and remove text.cache), or lower the lengths"
            )


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
