"""Silence what libraries print while a run works, and keep the warnings that matter."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import subprocess
import warnings
from collections.abc import Callable, Iterator
from typing import Any

_TELLING = (
    "num_fewshot has been set to 0",
    "Metrics were not scored on the same number",
    "No aggregation function defined",
    "chat template is not applied",
    "Could not save",
)
"""Parts of lm-eval's messages that say something about the scores; the rest is about its own workings."""


class Collected(logging.Handler):
    """Keeps the telling messages, each once.

    Attributes:
        messages: What was said, in order.
    """

    def __init__(self) -> None:
        super().__init__(level=logging.INFO)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message if it says something about the scores."""
        text = " ".join(record.getMessage().split())
        telling = record.levelno >= logging.ERROR or any(part in text for part in _TELLING)
        if telling and text not in self.messages:
            self.messages.append(text)


@contextlib.contextmanager
def quiet() -> Iterator[Collected]:
    """Silence lm-eval, transformers, datasets and their progress bars.

    Set LMEVAL_LOG_LEVEL to hear everything, as with lm-eval itself.

    Yields:
        What lm-eval said that matters for the scores.
    """
    collected = Collected()
    if os.environ.get("LMEVAL_LOG_LEVEL"):
        yield collected
        return
    import datasets
    from transformers.utils import logging as hf_logging

    logger = logging.getLogger("lm_eval")
    before = (logger.level, logger.propagate, list(logger.handlers))
    hf_before = hf_logging.get_verbosity()
    bars = datasets.are_progress_bars_disabled()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers[:] = [collected]
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings(), _no_chatter():
            warnings.simplefilter("ignore", category=DeprecationWarning)
            warnings.simplefilter("ignore", category=FutureWarning)
            yield collected
    finally:
        logger.setLevel(before[0])
        logger.propagate = before[1]
        logger.handlers[:] = before[2]
        hf_logging.set_verbosity(hf_before)
        hf_logging.enable_progress_bar()
        if not bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _no_chatter() -> Iterator[None]:
    """Stop what lm-eval prints or does without a switch for it.

    The tqdm bar over each task while it builds the prompts; `git describe` complaining on standard error
    where the current folder is no repository; and 3 seconds of `pip list` for every model of a run, where
    one will do.
    """
    import lm_eval.api.task as tasks
    import lm_eval.evaluator as evaluator

    originals = tasks.tqdm, evaluator.get_git_commit_hash, evaluator.add_env_info
    tasks.tqdm = functools.partial(originals[0], disable=True)
    evaluator.get_git_commit_hash = _git_hash
    evaluator.add_env_info = lambda storage: storage.update(_env_info(originals[2]))
    try:
        yield
    finally:
        tasks.tqdm, evaluator.get_git_commit_hash, evaluator.add_env_info = originals


@functools.cache
def _env_info(collect: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    collect(found)
    return found


def _git_hash() -> str | None:
    """What lm-eval records: the commit of the repository around the current folder."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
