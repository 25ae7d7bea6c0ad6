"""Silence what libraries print while a run works, and keep the warnings that matter."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

_TELLING = (
    "Metrics were not scored on the same number",
    "No aggregation function defined",
    "is not assigned a default aggregation",
    "is missing in",
    "no values found for metric",
    "Could not save",
    "Multiple max token args",
    "do_sample=",
    "Overwriting key",
    "chat template",
    "using test_docs as fewshot_docs",
    "fewshot_split is None",
    "Applied prompt returns empty string",
    "Label index was not in within range",
    "references unknown task",
    "Truncating context",
    "Left truncation applied",
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
    """Silence the logs of lm-eval and transformers, and the progress bars of transformers and datasets.

    Set LMEVAL_LOG_LEVEL to hear everything, as with lm-eval itself. lm-eval's own bars have no switch but
    tqdm's, TQDM_DISABLE, read when tqdm is imported: the command line sets it, a notebook may.

    Yields:
        What lm-eval said that matters for the scores.
    """
    collected = Collected()
    if os.environ.get("LMEVAL_LOG_LEVEL"):
        yield collected
        return
    import datasets
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging as hf_logging

    logger = logging.getLogger("lm_eval")
    before = (logger.level, logger.propagate, list(logger.handlers))
    hf_before, hf_bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hub_bars, bars = not are_progress_bars_disabled(), not datasets.are_progress_bars_disabled()
    data_logger = logging.getLogger("datasets")
    data_level = data_logger.level
    data_logger.setLevel(logging.CRITICAL)  # what it logs on bad data it raises too
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers[:] = [collected]
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=DeprecationWarning)
            warnings.simplefilter("ignore", category=FutureWarning)
            yield collected
    finally:
        data_logger.setLevel(data_level)
        logger.setLevel(before[0])
        logger.propagate = before[1]
        logger.handlers[:] = before[2]
        hf_logging.set_verbosity(hf_before)
        if hf_bars:
            hf_logging.enable_progress_bar()  # and the hub's with them
            if not hub_bars:
                disable_progress_bars()
        elif hub_bars:
            enable_progress_bars()
        if bars:
            datasets.enable_progress_bars()
