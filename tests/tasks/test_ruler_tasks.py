"""RULER's tasks through lm-eval, their parameters, and what their protocol is called."""

import gzip
import json
import re
import sys

import pytest
from lm_eval import evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from nsa_tasks import TASKS_DIR, TaskDataError, TaskParameterError, families, group_of, resolve, task_spec
from nsa_tasks._random import Draw
from nsa_tasks._tokens import RequestTokens
from nsa_tasks.haystack import generate_text
from nsa_tasks.ruler import build, wording
from nsa_tasks.ruler.essays import GeneratedWords, TextWords, cut_sentences, open_essay
from nsa_tasks.ruler.words import list_words

FAMILY = families()["ruler"]
NEW_TOKENS = {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
ESSAYS = [f"ruler_niah_{name}" for name in ("single_2", "single_3", "multikey_1", "multivalue", "multiquery")]
WORDS = ["ruler_niah_single_1", "ruler_niah_multikey_2", "ruler_cwe"]
FREE = ["ruler_niah_multikey_3", "ruler_vt", "ruler_fwe", "ruler_qa_1", "ruler_qa_2"]


class Finder(LM):
    """Looks values up in the prompt; leaves the last one out where it is told to."""

    tokenizer_name = "finder"

    def __init__(self, tokenizer, drop=0):
        super().__init__()
        self.tokenizer, self.drop, self.asked = AutoTokenizer.from_pretrained(tokenizer), drop, []

    def generate_until(self, requests, disable_tqdm=False):
        self.asked += [request.args for request in requests]
        replies = []
        for request in requests:
            question = request.args[0].rsplit("\nWhat", 1)[1]
            found = re.findall(r"numbers for (\S+) is: (\d+)\.", request.args[0])
            values = [value for key, value in found if key in question]
            replies.append(f"\x01{', '.join(values[: len(values) - self.drop])}\x02")
        return replies

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )


@pytest.mark.parametrize("chat", [False, True])
def test_lm_eval_asks_and_scores_them(chat, bpe_tokenizer):
    given = {"lengths": [1536, 2048], "samples": 2}
    spec = task_spec(
        "ruler_niah_multivalue", given, tokenizer=bpe_tokenizer, apply_chat_template=chat, alias="mine"
    )
    loaded = TaskManager(include_defaults=False).load([spec])
    model = Finder(bpe_tokenizer, drop=1)
    results = evaluate(model, loaded, bootstrap_iters=0, apply_chat_template=chat)
    assert results["results"]["mine"]["score,none"] == 0.75
    samples = results["samples"]["mine"]
    assert [sample["doc"]["reasons"] for sample in samples] == [["3 of 4 answers"]] * 4
    tokens = RequestTokens.load(bpe_tokenizer, apply_chat_template=chat)
    for (prompt, settings), sample in zip(model.asked, samples, strict=True):
        assert settings["max_gen_toks"] == 128
        assert settings["until"] == []
        assert tokens.count(prompt) == sample["doc"]["prompt_tokens"] <= sample["doc"]["length"] - 128
        assert prompt.rstrip().endswith("mentioned in the provided text are")
    metadata = results["configs"]["mine"]["metadata"]
    assert metadata["protocol"] == "offline (lexicon words, generated text, own sentence cuts)"
    assert metadata["essay"] == "generated"
    assert "input" not in samples[0]["doc"]


def test_the_trailing_space_of_variable_trackings_prefix_is_sent(bpe_tokenizer):
    spec = task_spec("ruler_vt", {"lengths": ["2k"], "samples": 1}, tokenizer=bpe_tokenizer)
    task = TaskManager(include_defaults=False).load([spec])["tasks"]["ruler_vt"]
    task.build_all_requests()
    assert task.instances[0].args[0].endswith("they are: ")


def test_lm_evals_own_command_line_finds_the_group(bpe_tokenizer):
    metadata = {"tokenizer": bpe_tokenizer, "lengths": ["2k"], "samples": 1}
    manager = TaskManager(include_path=str(TASKS_DIR), include_defaults=False, metadata=metadata)
    assert "ruler" in manager.all_groups
    loaded = manager.load(["ruler_fwe"])
    assert len(loaded["tasks"]["ruler_fwe"].eval_docs) == 1


def test_the_group_has_all_tasks_and_counts_them_alike():
    group = group_of("ruler")
    assert [leaf.task for leaf in group.leaves()][-1] == "ruler_qa_2"
    assert {leaf.task for leaf in group.leaves()} == set(FAMILY.tasks)
    assert len(FAMILY.tasks) == 13
    assert FAMILY.effective_score == 0.856


@pytest.mark.parametrize("task", FAMILY.tasks)
def test_budgets_and_sizes(task):
    params = resolve(task)
    assert (params.lengths, params.samples, params.random_seed) == ((4096,), 500, 42)
    assert params.setting.new_tokens == NEW_TOKENS.get(task.removeprefix("ruler_"), 128)
    params = resolve(task, {"lengths": "4k,8k", "samples": 3})
    assert FAMILY.size(params) == (6, 3 * (4096 + 8192))
    assert FAMILY.sample(params, 2) == (0, 3)  # one of each length


def test_the_label_says_what_is_not_official(tmp_path):
    for task in FREE:
        for protocol in ("official", "offline"):
            assert resolve(task, {"protocol": protocol}).label == "official"
    for task in WORDS:
        assert resolve(task).label == "offline (lexicon words)"
        assert resolve(task, {"protocol": "official"}).label == "official"
    own = tmp_path / "own.txt"
    own.write_text("One. Two.")
    for task in ESSAYS:
        assert resolve(task, {"essay": "official"}).label == "offline (lexicon words, own sentence cuts)"
        label = "offline (lexicon words, own text, own sentence cuts)"
        assert resolve(task, {"essay": f"text:{own}"}).label == label
        assert resolve(task, {"protocol": "official"}).essay == "official"


@pytest.mark.parametrize("essay", ["generated", "own.txt"])
def test_another_text_is_not_official(essay, tmp_path):
    (tmp_path / "own.txt").write_text("One. Two.")
    given = essay if essay == "generated" else f"text:{tmp_path / essay}"
    with pytest.raises(TaskParameterError, match="is not the official text"):
        resolve("ruler_niah_single_2", {"protocol": "official", "essay": given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"essay": "essays"}, "expected auto, generated, official, or text:PATH"),
        ({"essay": "text:none.json"}, "no such file"),
        ({"essay": "text:none.txt"}, "no such file or folder"),
        ({"protocol": "lm-eval"}, "expected one of official, offline"),
        ({"depths": 3}, "unknown parameter 'depths'"),
        ({"random_seed": -1}, "expected a whole number from 0"),
    ],
)
def test_wrong_parameters_are_told(given, message):
    with pytest.raises(TaskParameterError, match=message):
        resolve("ruler_niah_single_2", given)


def test_official_words_need_their_package(monkeypatch, bpe_tokenizer):
    from nsa_tasks.ruler.words import key_words

    key_words.cache_clear()
    list_words.cache_clear()
    monkeypatch.setitem(sys.modules, "wonderwords", None)
    monkeypatch.setitem(sys.modules, "wonderwords.random_word", None)
    for task in WORDS:
        params = resolve(task, {"protocol": "official", "samples": 1})
        with pytest.raises(TaskDataError, match=r"nsa-eval\[ruler\].*protocol: offline"):
            build.documents(params, RequestTokens.load(bpe_tokenizer))


def test_official_sentences_need_punkt(monkeypatch):
    from nsa_tasks.ruler.essays import splitter

    monkeypatch.setitem(sys.modules, "nltk.tokenize", None)
    with pytest.raises(TaskDataError, match=r"nltk.*protocol: offline"):
        splitter(official=True)


def test_the_official_text_is_found_under_the_data_root(tmp_path, bpe_tokenizer):
    text = generate_text(Draw("essay"), 30_000)
    (tmp_path / "ruler").mkdir()
    with gzip.open(tmp_path / "ruler" / "PaulGrahamEssays.json.gz", "wt") as file:
        json.dump({"text": text}, file)
    given = {"essay": "official", "data_root": str(tmp_path), "lengths": ["2k"], "samples": 1}
    params = resolve("ruler_niah_single_2", given)
    [doc] = build.documents(params, RequestTokens.load(bpe_tokenizer))
    assert doc["input"].split("\n")[1].split()[:5] == text.split()[:5]
    hashes = build.content_hashes(params)
    assert hashes["data_hash"].startswith("data:")
    assert [path.name for path in FAMILY.local_files(params)] == ["PaulGrahamEssays.json.gz"]
    named = f"text:{tmp_path}/ruler/PaulGrahamEssays.json.gz"
    again = resolve("ruler_niah_single_2", {**given, "essay": named})
    assert build.documents(again, RequestTokens.load(bpe_tokenizer)) == [doc]
    assert build.content_hashes(again)["text_hash"].startswith("text:")


def test_an_essay_that_is_nowhere_says_how_to_get_it(tmp_path):
    with pytest.raises(TaskDataError, match=r"no .*PaulGrahamEssays\.json.*essay: generated"):
        open_essay("official", str(tmp_path))


def test_data_sources_are_those_that_are_read():
    def files(task, **given):
        return [source.file for source in FAMILY.data_sources(resolve(task, given))]

    assert files("ruler_vt") == files("ruler_niah_single_2") == files("ruler_cwe") == []
    assert files("ruler_niah_single_2", protocol="official") == ["ruler/PaulGrahamEssays.json"]
    assert files("ruler_cwe", protocol="official") == ["ruler/english_words.json"]
    assert files("ruler_qa_1") == ["ruler/dev-v2.0.json"]
    assert files("ruler_qa_2") == ["ruler/hotpot_dev_distractor_v1.json"]
    assert len(FAMILY.data_sources()) == 4


def test_a_text_is_repeated_and_the_generated_one_goes_on():
    words = TextWords("a  b\n\nc", "text:x")
    assert words.first(7) == ["a", "b", "c", "a", "b", "c", "a"]
    prose = GeneratedWords()
    short = prose.first(100)
    long = prose.first(30_000)
    assert long[:100] == short
    assert GeneratedWords().first(30_000) == long
    assert len(set(zip(long, long[1:], long[2:], long[3:], strict=False))) > 15_000


def test_sentences_are_cut_without_loss():
    assert cut_sentences('One. Two! "Three?" four') == ["One.", "Two!", '"Three?"', "four"]
    text = " ".join(generate_text(Draw("cuts"), 5000).split())
    assert " ".join(cut_sentences(text)) == text


def test_the_lexicon_has_lower_case_words_once_each():
    words = list_words(False, 42)
    assert len(words) == len(set(words)) > 1000
    assert all(re.fullmatch("[a-z]{3,}", word) for word in words)
    assert words != list_words(False, 43)
    assert sorted(words) == sorted(list_words(False, 43))


def test_lists_longer_than_the_lexicon_take_pairs(byte_tokenizer):
    params = resolve("ruler_cwe", {"lengths": ["128k"], "samples": 1})
    [doc] = build.documents(params, RequestTokens.load(byte_tokenizer))
    assert doc["size"] > len(list_words(False, 42))
    assert all("-" in answer for answer in doc["outputs"])


def test_the_wording_is_whole():
    """Fields and slips: the texts themselves are lm-eval's files, known by their hash."""
    for words, fields in (
        (wording.niah(), {"type_needle_v", "context", "query"}),
        (wording.niah().singular(), {"type_needle_v", "context", "query"}),
        (wording.vt(), {"context", "query", "num_v"}),
        (wording.cwe(), {"context"}),
        (wording.fwe(), {"context"}),
        (wording.qa(), {"context", "query"}),
    ):
        assert set(re.findall(r"\{(\w+)\}", words.template + words.prefix)) == fields
        assert not words.prefix.startswith(" ")
    assert "assgined" not in wording.vt().prefix
    assert wording.vt().prefix.endswith(": ")
    assert not re.search(r"\bare\b|\bSome\b", wording.niah().singular().template)
