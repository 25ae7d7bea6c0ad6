"""Documents of the needle tasks: exact lengths, spans, seeds, chat templates, errors."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsa_tasks import TaskParameterError, resolve
from nsa_tasks._tokens import RequestTokens
from nsa_tasks.needle import build
from nsa_tasks.needle.parameters import COUNTS

TASKS = ("needle_single", "needle_multikey", "needle_multivalue", "needle_multiquery")
GOLDEN = Path(__file__).parents[1] / "golden" / "needle" / "documents.json"


def make(task, tokenizer, **params):
    tokens = RequestTokens.load(tokenizer) if isinstance(tokenizer, str) else tokenizer
    return build.documents(resolve(task, params), tokens), tokens


def request_ids(doc, tokens):
    """The request's token ids, made independently of the code that fills it."""
    return tokens.tokenizer(tokens.render(doc["input"], doc["gen_prefix"]))["input_ids"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_request_and_reply_never_exceed_the_length_and_nearly_fill_it(data, bpe_tokenizer):
    task = data.draw(st.sampled_from(TASKS))
    haystack = data.draw(st.sampled_from(["generated", "noise", "needles"]))
    length = data.draw(st.integers(200, 2500))
    params = {
        "haystack": haystack,
        "needle": data.draw(st.sampled_from(["number", "uuid", "word"])),
        "key": data.draw(st.sampled_from(["words", "uuid"])),
        "seed": data.draw(st.integers(0, 10**9)),
        "new_tokens": data.draw(st.integers(1, 60)),
        **({COUNTS[task]: data.draw(st.integers(1, 3))} if task in COUNTS else {}),
    }
    depth = data.draw(st.floats(0, 100))
    try:
        (doc,), tokens = make(task, bpe_tokenizer, lengths=[length], depths=[depth], samples=1, **params)
    except TaskParameterError as error:
        minimum, doc = int(str(error).split("at least ")[1].split(",")[0]), None
    if doc is None:
        assert minimum > length
        return
    ids = request_ids(doc, tokens)
    assert len(ids) == doc["prompt_tokens"]
    left = length - len(ids) - doc["new_tokens"]
    # Prose is cut at a word (the longest is some ten tokens here), the others after a sentence.
    assert 0 <= left <= {"generated": 10, "noise": 20, "needles": 100}[haystack]
    for needle, (start, end) in zip(doc["needles"], doc["needle_spans"], strict=True):
        assert tokens.tokenizer.decode(ids[start:end]).strip() == needle


@pytest.mark.parametrize("haystack", ["generated", "noise", "needles"])
def test_prose_fills_a_cell_to_a_few_tokens(bpe_tokenizer, haystack):
    docs, _ = make("needle_single", bpe_tokenizer, lengths=[2048], depths=11, samples=2, haystack=haystack)
    left = [doc["length"] - doc["prompt_tokens"] - doc["new_tokens"] for doc in docs]
    assert max(left) <= {"generated": 3, "noise": 8, "needles": 45}[haystack]


def test_a_64k_cell_is_filled_to_the_token(bpe_tokenizer):
    (doc,), tokens = make("needle_single", bpe_tokenizer, lengths=["64k"], depths=[50], samples=1)
    assert 65536 - 3 <= doc["prompt_tokens"] + doc["new_tokens"] <= 65536
    assert len(request_ids(doc, tokens)) == doc["prompt_tokens"]
    assert 0.48 < doc["needle_span"][0] / doc["prompt_tokens"] < 0.52


def test_depths_stand_where_the_rule_says(bpe_tokenizer):
    docs, _ = make("needle_single", bpe_tokenizer, lengths=[1500], depths=11, samples=1)
    assert [doc["depth"] for doc in docs] == [10.0 * i for i in range(11)]
    for doc in docs:
        head, tail = doc["input"].index("\n") + 1, doc["input"].rindex("\n")
        context = doc["input"][head:tail]
        at = context.index(doc["needle"])
        filler = len(context) - len(doc["needle"]) - 1
        if doc["depth"] == 0:
            assert at == 0
        elif doc["depth"] == 100:
            assert context.endswith(doc["needle"])
        else:
            assert context[:at].rstrip()[-1] in '.!?"'
            point = int(filler * doc["depth"] / 100)
            assert 0 <= point - (at - 1) < 300  # moved back, by less than a sentence


def test_only_the_asked_key_of_multikey_stands_at_the_depth(bpe_tokenizer):
    docs, _ = make("needle_multikey", bpe_tokenizer, lengths=[1500], depths=[0, 100], samples=4, num_keys=5)
    for doc in docs:
        assert len(doc["needles"]) == len(set(doc["needles"])) == 5
        assert doc["outputs"] == [doc["answer"]]
        assert doc["answer"] in doc["needle"] == doc["needles"][0]
        starts = [start for start, _ in doc["needle_spans"]]
        assert starts[0] == (min(starts) if doc["depth"] == 0 else max(starts))
        assert sum(value in doc["input"] for value in doc["outputs"]) == 1
        assert doc["input"].count("One of the special magic numbers for") == 5
    places = {tuple(doc["needle_spans"][1]) for doc in docs}
    assert len(places) == len(docs)  # the others stand somewhere else each time


def test_multivalue_and_multiquery_ask_for_everything(bpe_tokenizer):
    (doc,), _ = make("needle_multivalue", bpe_tokenizer, lengths=[1500], depths=[50], samples=1, num_values=3)
    key = doc["needle"].removeprefix("One of the special magic numbers for ").split(" is:")[0]
    assert all(key in needle for needle in doc["needles"])
    assert len(set(doc["outputs"])) == 3
    assert doc["input"].endswith(
        f"\nWhat are all the special magic numbers for {key} mentioned in the provided text?"
    )
    (doc,), _ = make(
        "needle_multiquery", bpe_tokenizer, lengths=[1500], depths=[50], samples=1, num_queries=3
    )
    keys = [
        needle.removeprefix("One of the special magic numbers for ").split(" is:")[0]
        for needle in doc["needles"]
    ]
    assert doc["gen_prefix"] == (
        f"The special magic numbers for {keys[0]}, {keys[1]}, and {keys[2]} "
        "mentioned in the provided text are"
    )
    assert doc["new_tokens"] == 3 * 16


def test_single_prompt_is_worded_as_documented(bpe_tokenizer):
    (doc,), tokens = make("needle_single", bpe_tokenizer, lengths=[600], depths=[0], samples=1, needle="uuid")
    key = doc["needle"].removeprefix("One of the special magic uuids for ").split(" is:")[0]
    text = tokens.render(doc["input"], doc["gen_prefix"])
    assert text.startswith(
        "Some special magic uuids are hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the uuids afterwards.\n"
        f"One of the special magic uuids for {key} is: {doc['answer']}. "
    )
    assert text.endswith(
        f"\nWhat is the special magic uuid for {key} mentioned in the provided text? "
        f"The special magic uuid for {key} mentioned in the provided text is"
    )


def test_sentence_needle_is_the_classic_one(bpe_tokenizer):
    (doc,), _ = make("needle_single", bpe_tokenizer, lengths=[600], depths=[50], samples=1, needle="sentence")
    assert doc["needle"] == (
        "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day."
    )
    assert doc["outputs"] == ["eat a sandwich and sit in Dolores Park on a sunny day"]
    assert "magic" not in doc["input"]
    assert doc["input"].endswith("\nWhat is the best thing to do in San Francisco?")


def test_every_sample_has_its_own_seed_filler_and_id(bpe_tokenizer):
    docs, _ = make("needle_single", bpe_tokenizer, lengths=[600, 700], depths=3, samples=3)
    assert len(docs) == 18
    for field in ("id", "seed", "answer", "input"):
        assert len({doc[field] for doc in docs}) == 18
    fillers = {doc["input"].split("\n", 1)[1].replace(doc["needle"], "").strip()[:80] for doc in docs}
    assert len(fillers) == 18


def test_a_sample_does_not_depend_on_the_rest_of_the_grid(bpe_tokenizer):
    alone, _ = make("needle_single", bpe_tokenizer, lengths=[700], depths=[0, 50], samples=1)
    among, _ = make("needle_single", bpe_tokenizer, lengths=[600, 700], depths=[0, 50, 100], samples=2)
    by_id = {doc["id"]: doc for doc in among}
    assert all(by_id[doc["id"]] == doc for doc in alone)
    other_seed, _ = make("needle_single", bpe_tokenizer, lengths=[700], depths=[0, 50], samples=1, seed=1)
    assert not {doc["answer"] for doc in alone} & {doc["answer"] for doc in other_seed}


@pytest.mark.parametrize("task", TASKS)
def test_documents_are_frozen(task, byte_tokenizer):
    """A run published today has to be repeatable: a change here is a new `version` in the YAMLs.

    The expected hashes are SHA-256 of the documents' JSON, for one token a byte.
    """
    docs = []
    for haystack in ("generated", "noise", "needles"):
        docs += make(task, byte_tokenizer, lengths=[1024], depths=3, samples=1, haystack=haystack)[0]
    digest = hashlib.sha256(json.dumps(docs, sort_keys=True).encode()).hexdigest()
    assert digest == json.loads(GOLDEN.read_text(encoding="utf-8"))[task]


def test_bos_is_counted_as_the_model_will_get_it(bpe_tokenizer):
    with_bos, _ = make("needle_single", bpe_tokenizer, lengths=[600], depths=[0], samples=1)
    without = RequestTokens.load(bpe_tokenizer, add_bos_token=False)
    (doc,), _ = make("needle_single", without, lengths=[600], depths=[0], samples=1)
    ids = without.tokenizer(without.render(doc["input"], doc["gen_prefix"]), add_special_tokens=False)[
        "input_ids"
    ]
    assert len(ids) == doc["prompt_tokens"]
    assert with_bos[0]["needle_span"][0] == doc["needle_span"][0] + 1


def test_chat_template_is_inside_the_length(bpe_tokenizer):
    tokens = RequestTokens.load(bpe_tokenizer, apply_chat_template=True)
    docs, _ = make("needle_single", tokens, lengths=[700], depths=3, samples=1)
    for doc in docs:
        text = tokens.render(doc["input"], doc["gen_prefix"])
        assert text.startswith("<s><|user|>\nSome special")
        assert text.endswith(f"<|assistant|>\n{doc['gen_prefix']}")
        ids = tokens.tokenizer(text, add_special_tokens=False)["input_ids"]  # the template brings its own BOS
        assert len(ids) == doc["prompt_tokens"]
        assert 0 <= 700 - len(ids) - 16 <= 3
        start, end = doc["needle_span"]
        assert tokens.tokenizer.decode(ids[start:end]).strip() == doc["needle"]


def test_tokenizer_without_offsets_works(slow_tokenizer):
    docs, tokens = make("needle_multikey", slow_tokenizer, lengths=[1024], depths=3, samples=1, num_keys=2)
    assert not tokens.tokenizer.is_fast
    for doc in docs:
        ids = request_ids(doc, tokens)
        assert len(ids) == doc["prompt_tokens"] <= 1024 - 16
        assert 1024 - len(ids) - 16 <= 12
        for needle, (start, end) in zip(doc["needles"], doc["needle_spans"], strict=True):
            assert tokens.tokenizer.decode(ids[start:end]).strip() == needle


def test_text_haystack_fills_cells_and_is_never_repeated(bpe_tokenizer, tmp_path):
    essay = tmp_path / "essay.txt"
    essay.write_text(
        " ".join(f"The {i}th visitor came to see the garden." for i in range(400)), encoding="utf-8"
    )
    docs, _ = make(
        "needle_single", bpe_tokenizer, lengths=[1000], depths=[0, 50], samples=2, haystack=f"text:{essay}"
    )
    for doc in docs:
        assert 0 <= 1000 - doc["prompt_tokens"] - 16 <= 10
        visitors = [word for word in doc["input"].split() if word.endswith("th") and word[0].isdigit()]
        assert len(visitors) == len(set(visitors)) > 20
    with pytest.raises(
        TaskParameterError, match=r"shorter than the length: it holds [\d,]+ tokens, and a request of 32,768"
    ):
        make("needle_single", bpe_tokenizer, lengths=["32k"], depths=[0], samples=1, haystack=f"text:{essay}")


def test_text_that_just_suffices_is_used_whole(bpe_tokenizer, tmp_path):
    essay = tmp_path / "essay.txt"
    essay.write_text(
        " ".join(f"Visitor number {i} came to see the garden." for i in range(60)), encoding="utf-8"
    )
    tokens = RequestTokens.load(bpe_tokenizer)
    total = tokens.count(essay.read_text(encoding="utf-8"))
    (doc,), _ = make(
        "needle_single", tokens, lengths=[total], depths=[100], samples=1, haystack=f"text:{essay}"
    )
    assert 0 <= total - doc["prompt_tokens"] - 16 <= 10


def test_a_text_is_known_by_its_content_and_not_by_its_path(byte_tokenizer, tmp_path):
    def docs(folder, text):
        file = tmp_path / folder / f"{folder}.txt"
        file.parent.mkdir()
        file.write_text(text, encoding="utf-8")
        return make(
            "needle_single", byte_tokenizer, lengths=[800], depths=[50], samples=1, haystack=f"text:{file}"
        )[0]

    text = " ".join(f"The {i}th visitor came to see the garden." for i in range(99))
    original, copy, other = docs("here", text), docs("there", text), docs("other", text.replace("98", "97"))
    assert original == copy
    assert str(tmp_path) not in json.dumps(original)
    assert original[0]["haystack"] != other[0]["haystack"]
    assert [doc["haystack"].partition(":")[0] for doc in original + other] == ["text", "text"]


def test_too_short_a_length_names_the_minimum(bpe_tokenizer):
    with pytest.raises(TaskParameterError, match="length 64 is too short") as caught:
        make("needle_single", bpe_tokenizer, lengths=[64], depths=[0], samples=1)
    minimum = int(str(caught.value).split("at least ")[1].split(",")[0])
    (doc,), _ = make("needle_single", bpe_tokenizer, lengths=[minimum + 20], depths=[0], samples=1)
    assert doc["prompt_tokens"] + 16 <= minimum + 20


def test_reply_budget_larger_than_the_length_is_an_error(bpe_tokenizer):
    with pytest.raises(TaskParameterError, match="too short"):
        make("needle_single", bpe_tokenizer, lengths=[600], depths=[0], samples=1, new_tokens=700)


def test_text_that_holds_the_answer_is_refused(bpe_tokenizer, tmp_path):
    essay = tmp_path / "essay.txt"
    sentence = "The best thing to do there is to eat a sandwich and sit in Dolores Park on a sunny day. "
    essay.write_text(sentence * 200, encoding="utf-8")
    with pytest.raises(TaskParameterError, match="already holds the needle's keys or values"):
        make(
            "needle_single",
            bpe_tokenizer,
            lengths=[600],
            depths=[0],
            samples=1,
            needle="sentence",
            haystack=f"text:{essay}",
        )
