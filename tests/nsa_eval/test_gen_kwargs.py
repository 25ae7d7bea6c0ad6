"""One name for aliases, the user's word before the task's, and a sentence for what gives way."""

import json

import pytest

import nsa_eval
from nsa_eval._gen_kwargs import contradiction, merged
from nsa_eval.config import load_config
from nsa_eval.engine import Engine
from nsa_eval.engine._prompts import Origin
from nsa_eval.engine._sampling import GenerationSettings
from nsa_eval.errors import ConfigError, UserError

TASK = {"until": ["\n"], "max_gen_toks": 16, "do_sample": False, "temperature": 0.0}


@pytest.mark.parametrize(
    ("user", "changes", "note"),
    [
        (
            {"max_new_tokens": 2},
            {"max_gen_toks": 2},
            "max_new_tokens: 2 replaces the task's max_gen_toks: 16",
        ),
        ({"max_tokens": 2}, {"max_gen_toks": 2}, "max_tokens: 2 replaces the task's max_gen_toks: 16"),
        ({"max_completion_tokens": 16}, {}, None),
        ({"max_gen_toks": 2}, {"max_gen_toks": 2}, None),
        ({"until": ["x"]}, {"until": ["x"]}, None),
        (
            {"temperature": 0.7},
            {"temperature": 0.7, "do_sample": True},
            "temperature: 0.7 replaces the task's do_sample: false",
        ),
        ({"temperature": 0}, {"temperature": 0}, None),
        ({"top_p": 0.9}, {"top_p": 0.9}, "top_p: 0.9 does nothing: the replies are greedy"),
        (
            {"temperature": 1, "top_k": 5},
            {"temperature": 1, "top_k": 5, "do_sample": True},
            "do_sample: false",
        ),
    ],
)
def test_the_users_settings_win(user, changes, note):
    settings, notes = merged(TASK, user)
    assert settings == TASK | changes
    assert [True for said in notes if note and note in said] == ([True] if note else [])
    assert len(notes) == (1 if note else 0)


@pytest.mark.parametrize(
    ("task", "user", "drawn", "temperature"),
    [
        ({"temperature": 0.0}, {"do_sample": True}, True, 1.0),
        ({"temperature": 0.8}, {"do_sample": False}, False, None),
        ({"do_sample": True, "temperature": 0.8}, {"temperature": 0}, False, None),
        ({"do_sample": True, "temperature": 0.8}, {"temperature": 0.3}, True, 0.3),
    ],
)
def test_what_the_user_says_about_drawing_is_what_the_engine_does(task, user, drawn, temperature):
    settings, _ = merged(task, user)
    sampling = GenerationSettings.parse(settings, Origin("t", 0)).sampling
    assert (sampling is not None) == drawn
    assert sampling is None or sampling.temperature == temperature


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"max_gen_toks": 16, "max_new_tokens": 2},
            "max_gen_toks: 16 and max_new_tokens: 2 are names of one",
        ),
        ({"max_gen_toks": 16, "max_new_tokens": 16}, None),
        ({"do_sample": False, "temperature": 0.7}, "temperature: 0.7 does nothing beside do_sample: false"),
        ({"do_sample": True, "temperature": 0}, "needs a temperature above 0"),
        ({"do_sample": False, "temperature": 0.0}, None),
        ({"temperature": 0.7}, None),
    ],
)
def test_a_source_that_contradicts_itself_is_told(tiny_config, given, said):
    found = contradiction(given)
    assert (found is None) if said is None else (said in found)
    config = tiny_config()
    config["tasks"][0]["gen_kwargs"] = given
    if said is None:
        assert load_config(config).tasks[0].gen_kwargs == given
    else:
        with pytest.raises(ConfigError, match=r"gen_kwargs: .*" + said[:20]):
            load_config(config)


def test_one_request_with_two_budgets_is_refused_and_by_parity_cut_as_lm_eval_does():
    given = {"max_gen_toks": 16, "max_new_tokens": 2}
    with pytest.raises(UserError, match="are names of one setting"):
        GenerationSettings.parse(given, Origin("t", 0))
    assert GenerationSettings.parse(given, Origin("t", 0), parity="lm-eval").budget == 16


def test_a_run_asks_with_the_users_budget_and_says_so(tiny_config, tmp_path):
    config = tiny_config()
    config["models"] = config["models"][:1]
    config["tasks"] = config["tasks"][:1]
    del config["compare"]
    config["tasks"][0]["gen_kwargs"] = {"max_new_tokens": 2, "top_p": 0.5}
    result = nsa_eval.run(config, output=tmp_path / "run", progress=False)
    [file] = (tmp_path / "run" / "one").glob("samples_*.jsonl")
    asked = [json.loads(line)["arguments"] for line in file.read_text().splitlines()]
    settings = asked[0]["gen_args_0"]["arg_1"]
    assert settings["max_gen_toks"] == 2
    assert "max_new_tokens" not in settings
    said = [event["detail"] for event in result.audit if event["kind"] == "setting"]
    assert len(said) == 2
    assert "max_new_tokens: 2 replaces the task's max_gen_toks" in said[0]
    assert "top_p: 0.5 does nothing" in said[1]
    assert any("2 settings did nothing" in note for note in result.notes)


def test_by_parity_the_tasks_settings_stay_as_lm_eval_leaves_them(tiny_config, tmp_path):
    config = tiny_config()
    config["models"], config["tasks"] = config["models"][:1], config["tasks"][:1]
    del config["compare"]
    config["engine"] = {**config.get("engine", {}), "parity": "lm-eval"}
    config["tasks"][0]["gen_kwargs"] = {"max_new_tokens": 2}
    nsa_eval.run(config, output=tmp_path / "run", progress=False)
    [file] = (tmp_path / "run" / "one").glob("samples_*.jsonl")
    settings = json.loads(file.read_text().splitlines()[0])["arguments"]["gen_args_0"]["arg_1"]
    assert (settings["max_new_tokens"], settings["max_gen_toks"] > 2) == (2, True)


def test_a_bos_that_the_tokenizer_never_adds_is_told(tiny_checkpoints):
    from nsa_models import load_model, load_tokenizer

    folder = str(tiny_checkpoints[0])
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    adds = bool(tokenizer.bos_token_id is not None and tokenizer.encode("a")[0] == tokenizer.bos_token_id)
    events = [event.kind for event in Engine(model, tokenizer, add_bos_token=True).audit]
    assert ("setting" in events) != adds
