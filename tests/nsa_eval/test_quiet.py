"""Silence during a run, but for what says something about the scores."""

import logging

from nsa_eval._quiet import quiet


def test_chatter_is_dropped_and_telling_messages_are_kept_once(capfd):
    logger = logging.getLogger("lm_eval.evaluator")
    with quiet() as heard:
        logger.info("Building contexts for arc_easy on rank 0...")
        logger.warning("something about caching")
        for _ in range(2):
            logger.info(
                "num_fewshot has been set to 0 for x in its config. Manual configuration will be ignored."
            )
        logger.error("a   disaster")
    assert heard.messages == [
        "num_fewshot has been set to 0 for x in its config. Manual configuration will be ignored.",
        "a disaster",
    ]
    assert capfd.readouterr() == ("", "")


def test_everything_is_put_back():
    import datasets
    import lm_eval.api.task
    import lm_eval.evaluator

    def state():
        logger = logging.getLogger("lm_eval")
        return (
            logger.level, logger.propagate, list(logger.handlers), datasets.are_progress_bars_disabled(),
            lm_eval.api.task.tqdm, lm_eval.evaluator.get_git_commit_hash, lm_eval.evaluator.add_env_info,
        )  # fmt: skip

    before = state()
    with quiet():
        assert state() != before
    assert state() == before


def test_a_folder_without_a_repository_is_no_complaint(tmp_path, monkeypatch, capfd):
    import lm_eval.evaluator

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with quiet():
        assert lm_eval.evaluator.get_git_commit_hash() is None
    assert capfd.readouterr().err == ""


def test_lm_evals_own_level_is_heeded(monkeypatch):
    import lm_eval.api.task

    monkeypatch.setenv("LMEVAL_LOG_LEVEL", "DEBUG")
    tqdm = lm_eval.api.task.tqdm
    with quiet() as heard:
        assert lm_eval.api.task.tqdm is tqdm
    assert heard.messages == []
