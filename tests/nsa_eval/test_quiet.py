"""Silence during a run, but for what says something about the scores."""

import logging

from nsa_eval._quiet import quiet


def test_chatter_is_dropped_and_telling_messages_are_kept_once(capfd):
    logger = logging.getLogger("lm_eval.evaluator")
    with quiet() as heard:
        logger.info("Building contexts for arc_easy on rank 0...")
        logger.warning("something about caching")
        for _ in range(2):
            logger.info("[x] No aggregation function defined for metric m. Using mean.")
        logger.error("a   disaster")
    assert heard.messages == [
        "[x] No aggregation function defined for metric m. Using mean.",
        "a disaster",
    ]
    assert capfd.readouterr() == ("", "")


def test_everything_is_put_back():
    import datasets
    from transformers.utils import logging as hf_logging

    def state():
        logger = logging.getLogger("lm_eval")
        return (
            logger.level, logger.propagate, list(logger.handlers), datasets.are_progress_bars_disabled(),
            hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled(),
        )  # fmt: skip

    before = state()
    with quiet():
        assert state() != before
    assert state() == before


def test_lm_evals_own_level_is_heeded(monkeypatch):
    monkeypatch.setenv("LMEVAL_LOG_LEVEL", "DEBUG")
    handlers = list(logging.getLogger("lm_eval").handlers)
    with quiet() as heard:
        logging.getLogger("lm_eval.evaluator").error("a disaster")
        assert logging.getLogger("lm_eval").handlers == handlers
    assert heard.messages == []
