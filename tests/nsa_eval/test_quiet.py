"""Silence during a run, but for what says something about the scores."""

import logging

import pytest

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


def test_lm_evals_warnings_about_settings_that_do_nothing_are_kept():
    from lm_eval.models.utils import normalize_gen_kwargs

    with quiet() as heard:
        normalize_gen_kwargs({"max_gen_toks": 17, "max_new_tokens": 3})
        normalize_gen_kwargs({"do_sample": False, "temperature": 0.37})
    multiple, greedy = (
        heard.messages
    )  # lm-eval says each once in a process, so the numbers are this test's own
    assert multiple.startswith("Multiple max token args provided: {'max_gen_toks': 17, 'max_new_tokens': 3}")
    assert "temperature=0.37" in greedy


def _switch(library, on):
    """Turn one library's progress bars on or off; transformers' switch moves the hub's too."""
    import datasets
    import huggingface_hub.utils as hub
    from transformers.utils import logging as hf_logging

    enable, disable = {
        "transformers": (hf_logging.enable_progress_bar, hf_logging.disable_progress_bar),
        "hub": (hub.enable_progress_bars, hub.disable_progress_bars),
        "datasets": (datasets.enable_progress_bars, datasets.disable_progress_bars),
    }[library]
    (enable if on else disable)()


@pytest.fixture
def bars_on():
    yield
    for library in ("transformers", "hub", "datasets"):
        _switch(library, True)


@pytest.mark.parametrize("datasets_on", [True, False])
@pytest.mark.parametrize("hub_on", [True, False])
@pytest.mark.parametrize("transformers_on", [True, False])
def test_everything_is_put_back(bars_on, transformers_on, hub_on, datasets_on):
    import datasets
    import huggingface_hub.utils as hub
    from transformers.utils import logging as hf_logging

    _switch("transformers", transformers_on)
    _switch("hub", hub_on)
    _switch("datasets", datasets_on)

    def state():
        logger = logging.getLogger("lm_eval")
        return (
            logger.level, logger.propagate, list(logger.handlers), datasets.are_progress_bars_disabled(),
            hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled(),
            hub.are_progress_bars_disabled(),
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
