"""A stored value of another type than its request is answered with is refused, with file and line."""

import json

import pytest
from pydantic import ValidationError

from nsa_eval.engine import Engine
from nsa_eval.store import Response, ResponseStore, StoreError


def test_json_gives_back_what_was_stored():
    for value in ("a reply", (-1.5, True), -2.25):
        response = Response(value=value, prompt_tokens=1, new_tokens=1)
        assert Response.model_validate(json.loads(response.model_dump_json())) == response


@pytest.mark.parametrize(
    "change",
    [
        {"value": None},
        {"value": True},
        {"value": ["-1.5", True]},
        {"value": [-1.5, 1]},
        {"value": [-1.5]},
        {"value": {"text": "x"}},
        {"prompt_tokens": "7"},
        {"new_tokens": 1.5},
        {"new_tokens": -1},
        {"events": "none"},
        {"events": [{"kind": "truncated", "before": "9"}]},
    ],
)
def test_values_of_other_types_are_refused(change, tmp_path):
    good = {"value": "a reply", "prompt_tokens": 7, "new_tokens": 3, "events": []}
    with pytest.raises(ValidationError):
        Response.model_validate({**good, **change})
    file = tmp_path / "responses.jsonl"
    lines = [[{"key": "a", "response": good}], [{"key": "b", "response": {**good, **change}}], []]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(StoreError, match=r"responses\.jsonl, line 2: not a stored response"):
        ResponseStore.open(file)


@pytest.mark.parametrize("value", [1.5, [1.5, True]])
def test_a_number_is_no_reply_and_a_reply_no_score(value, tmp_path, tiny_checkpoints):
    from lm_eval.api.instance import Instance

    import nsa_models

    folder = str(tiny_checkpoints[0])
    model, tokenizer = nsa_models.load_model(folder), nsa_models.load_tokenizer(folder)
    file = tmp_path / "responses.jsonl"
    request = Instance("generate_until", {"q": 1}, ("the text", {"max_gen_toks": 2}), 0, ("t", 0, 1))
    with ResponseStore.open(file) as store:
        Engine(model, tokenizer, store=store).generate_until([request])
    [[record]] = [json.loads(line) for line in file.read_text().splitlines()]
    record["response"]["value"] = value
    file.write_text("[]\n" + json.dumps([record]) + "\n")
    with (
        ResponseStore.open(file) as store,
        pytest.raises(
            StoreError, match=r"responses\.jsonl, line 2: .*1\.5.* is stored as the answer to a generate"
        ),
    ):
        Engine(model, tokenizer, store=store).generate_until([request])
