"""The training loop: curriculum by answer loss, exact resume, a JSONL log."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nsa_models.train.corpus import Corpus, load_corpus
from nsa_models.train.facts import FactWriter
from nsa_models.train.learner import Learner, Learnt
from nsa_models.train.parallel import Group, joined
from nsa_models.train.recipe import Recipe, Stage
from nsa_models.train.state import Progress, RunFolder

# Weight of the newest step in the running answer loss: about the last 20 steps.
_EMA = 0.05
# Stages end at the earliest after so many steps, when the running loss means something.
_MIN_STEPS = 20
# Held-out questions of a length: so many, but for long ones as many as fit into so many tokens (22 at 64k,
# two at each of 11 depths).
_QUIZ_ROWS = 64
_QUIZ_TOKENS = 22 * 65_536


class Stopped(Exception):  # noqa: N818 - not an error
    """The run saved its state before its end (time limit, SIGTERM or Ctrl-C); run it again to go on."""


class StopRequest:
    """Whether SIGTERM or Ctrl-C asked for a stop; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hear of signals meanwhile; only a main thread may."""
        with _signals_to(self._hear):
            yield

    def _hear(self, number: int, _: object) -> None:
        if number == signal.SIGINT and self.asked:
            raise KeyboardInterrupt
        self.asked = True


def train(
    recipe: Recipe,
    *,
    minutes: float | None = None,
    log: Callable[[str], None] = print,
    group: Group | None = None,
    stop: StopRequest | None = None,
) -> Path:
    """Train to the end of the last stage, going on from the newest state in the output folder.

    Args:
        recipe: The run.
        minutes: Time after which the state is saved and `Stopped` raised.
        log: Called with a line of text now and then, in the leading process.
        group: The processes that train together; default: those that `torchrun` started, or this one.
        stop: Of a caller that listens for signals itself, for longer than this run; default: its own.

    Returns:
        The folder of the exported model (bf16 safetensors, config, tokenizer).

    Raises:
        Stopped: See `minutes`; SIGTERM and a first Ctrl-C do the same, after the step at hand.
        FileNotFoundError: No training text.
        ValueError: The text is too short for the recipe's lengths, the output folder holds another recipe's
            run, or the loss became NaN.
    """
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        if group is None:
            group = stack.enter_context(joined())
        if stop is None:
            stop = StopRequest()
            stack.enter_context(stop.listening())
        run = _Run(recipe, group, log if group.leads else _silent, stop)
        run.started, run.ends = started, None if minutes is None else started + 60 * minutes
        return run.run()


def open_corpus(recipe: Recipe, group: Group) -> Corpus:
    """The tokenised text, made by the leading process where it isn't there, and checked to be long enough."""
    if not group.leads:
        group.wait()
    corpus = load_corpus(recipe.text)
    if group.leads:
        group.wait()
    _check_lengths(recipe, corpus)
    return corpus


def _silent(_: str) -> None:
    return


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
    def __init__(self, recipe: Recipe, group: Group, log: Callable[[str], None], stop: StopRequest) -> None:
        self.recipe, self.group, self.log, self.stop = recipe, group, log, stop
        self.corpus = open_corpus(recipe, group)
        self.facts = FactWriter(self.corpus, recipe.facts, recipe.seed)
        for length in recipe.test_lengths:  # raises now, not after hours, when there is no room for a fact
            self.facts.quiz(rows=1, length=length, seed=length)
        self.learner = Learner(recipe, self.corpus, group)
        self.folder = RunFolder(recipe, self.corpus)
        self.progress = Progress()
        self.started, self.ends = time.monotonic(), None
        self._counted_tokens, self._counted_from = 0, 0.0

    started: float
    ends: float | None
    """Moments of the monotonic clock."""

    def run(self) -> Path:
        recipe, progress, group = self.recipe, self.progress, self.group
        if self.folder.load(self.learner, progress):
            self.log(f"going on from step {progress.step}")
        if group.leads:
            self.folder.cut_log(progress.step)
        seconds_before = progress.seconds
        self._count_anew()
        while progress.stage < len(recipe.stages):
            stage = recipe.stages[progress.stage]
            self.learner.select(stage.select_count)
            for ids, answers in self._batches(stage):
                lr = self._learning_rate(stage)
                learnt = self._step(stage, ids, answers, lr)
                progress.seconds = seconds_before + time.monotonic() - self.started
                done = self._stage_done(stage)
                self._report(learnt, length=ids.shape[1], lr=lr, last=done)
                if done:
                    break
                if group.any(self._must_stop()):
                    self._save()
                    if group.leads:  # what there is, for those who can't keep a state
                        self.folder.export(self.learner)
                    group.wait()
                    raise Stopped(
                        f"stopped at step {progress.step} with everything saved; run again to go on"
                    )
                if progress.step % recipe.save_every == 0:
                    self._save()
            progress.stage, progress.stage_step, progress.answer_loss = progress.stage + 1, 0, None
            self._save()
        if group.leads:
            self.folder.export(self.learner)
        group.wait()
        return recipe.output / "model"

    def _save(self) -> None:
        if self.group.leads:
            self.folder.save(self.learner, self.progress)

    def _batches(self, stage: Stage) -> Iterator[tuple[Tensor, Tensor]]:
        dataset = _StageData(self.facts, self.recipe, self.progress.stage, stage, self.group)
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,
            sampler=range(self.progress.stage_step, stage.max_steps),
            num_workers=self.recipe.workers,
            worker_init_fn=_deaf if self.recipe.workers else None,
            prefetch_factor=4 if self.recipe.workers else None,
            pin_memory=self.group.device.type == "cuda",
        )
        return iter(loader)

    def _step(self, stage: Stage, ids: Tensor, answers: Tensor, lr: float) -> Learnt:
        progress, rows = self.progress, self.recipe.batch_tokens // ids.shape[1]
        try:
            learnt = self.learner.learn(ids, answers, rows=rows, lr=lr)
        except ValueError as error:
            raise ValueError(f"step {progress.step}: {error}: lower optim.lr") from error
        progress.step += 1
        progress.stage_step += 1
        progress.tokens += rows * ids.shape[1]
        last, new = progress.answer_loss, learnt.answer
        progress.answer_loss = new if last is None else (1 - _EMA) * last + _EMA * new
        return learnt

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
        if stage.until_answer_loss is None or progress.stage_step < max(_MIN_STEPS, stage.min_steps):
            return False
        return progress.answer_loss is not None and progress.answer_loss < stage.until_answer_loss

    def _report(self, learnt: Learnt, *, length: int, lr: float, last: bool) -> None:
        progress, recipe = self.progress, self.recipe
        test = last or progress.step % recipe.test_every == 0
        if not (test or progress.step % recipe.log_every == 0):
            return
        row: dict[str, Any] = {
            **asdict(progress),
            "length": length,
            "loss": learnt.text,
            "answer_loss": learnt.answer,
            "ranking_loss": learnt.ranking,
            "norm": learnt.norm,
            "lr": lr,
            "answer_loss_mean": progress.answer_loss,
            "tokens_per_second": self._speed(),
        }
        if self.group.device.type == "cuda":
            row["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if test:
            row["held_out"] = {str(length): self.quiz(length) for length in recipe.test_lengths}
        if self.group.leads:
            self.folder.log(row)
        tested = " ".join(f"{length}:{score:.0%}" for length, score in row.get("held_out", {}).items())
        self.log(
            f"step {progress.step} stage {progress.stage} length {length} "
            f"loss {learnt.text:.3f} answer {learnt.answer:.4f} "
            + (f"ranking {learnt.ranking:.4f} " if learnt.ranking else "")
            + f"norm {learnt.norm:.2f} lr {lr:.2e} "
            f"{progress.tokens / 1e6:.0f}M tokens {progress.seconds:.0f}s "
            f"{row['tokens_per_second'] / 1e3:.0f}k tokens/s {tested}"
        )
        self._count_anew()

    def _speed(self) -> float:
        """Tokens of all processes a second since the last report, its tests not counted."""
        elapsed = max(1e-9, time.monotonic() - self._counted_from)
        return (self.progress.tokens - self._counted_tokens) / elapsed

    def _count_anew(self) -> None:
        self._counted_tokens, self._counted_from = self.progress.tokens, time.monotonic()

    def quiz(self, length: int) -> float:
        """Share of held-out questions at `length` whose every answer token is the argmax, as in decoding."""
        rows = min(_QUIZ_ROWS, max(1, _QUIZ_TOKENS // length))
        ids, answers = self.facts.quiz(rows=rows, length=length, seed=length, only=self.group.share(rows))
        right = torch.tensor([self.learner.right(ids, answers)], device=self.group.device)
        return int(self.group.sum_(right).item()) / rows

    def _must_stop(self) -> bool:
        return self.stop.asked or (self.ends is not None and time.monotonic() > self.ends)


def _deaf(_: int) -> None:
    """Let a worker outlive what a terminal or a scheduler sends to all: the trainer ends it itself."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class _StageData(Dataset[tuple[Tensor, Tensor]]):
    """Batches of one stage by step: the same for both twins, in any worker, after any interruption.

    A process makes its rows alone; together they are the batch, whatever the number of processes.
    """

    def __init__(self, facts: FactWriter, recipe: Recipe, index: int, stage: Stage, group: Group) -> None:
        self.facts, self.recipe, self.index, self.stage, self.group = facts, recipe, index, stage, group

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        length = self.stage.lengths[step % len(self.stage.lengths)]
        own = self.group.share(self.recipe.batch_tokens // length)
        return self.facts.batch(stage=self.index, step=step, rows=own, length=length)


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
