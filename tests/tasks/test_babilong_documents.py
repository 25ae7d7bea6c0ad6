"""BABILong's contexts: filled and never passed, facts in order, the same everywhere, no two alike."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from lm_eval import evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nsa_tasks import TaskDataError, TaskParameterError, _kept, resolve, task_spec
from nsa_tasks._random import Draw
from nsa_tasks._tokens import Encoding, RequestTokens
from nsa_tasks.babilong import build
from nsa_tasks.babilong.background import Books, Generated
from nsa_tasks.babilong.build import choose
from nsa_tasks.babilong.family import FAMILY
from nsa_tasks.babilong.fill import SHORTEST, Filler
from nsa_tasks.babilong.stories import read_questions
from nsa_tasks.haystack import generate_text

PEOPLE = ("Mary", "John", "Sandra", "Daniel")
PLACES = ("garden", "office", "kitchen", "hallway")


def stories(count):
    """bAbI's form: each story has five facts and asks after the second and the fifth."""
    lines = []
    for number in range(count):
        people = [PEOPLE[(number + i) % 4] for i in range(5)]
        places = [PLACES[(number // (4**i)) % 4] for i in range(5)]
        facts = [f"{a} went to the {b}." for a, b in zip(people, places, strict=True)]
        lines += [f"{i} {fact}" for i, fact in zip((1, 2), facts, strict=False)]
        lines.append(f"3 Where is {people[1]}? \t{places[1]}\t2")
        lines += [f"{i} {fact}" for i, fact in zip((4, 5, 6), facts[2:], strict=True)]
        lines.append(f"7 Where is {people[4]}? \t{places[4]}\t6")
    return "\n".join(lines) + "\n"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data/needle/babi_en"
    folder.mkdir(parents=True)
    (folder / "qa1_single-supporting-fact_train.txt").write_text(stories(40), encoding="utf-8")
    return tmp_path / "data"


def load(root, tokenizer, **parameters):
    given = {"data_root": str(root), "prompt": "lm-eval", "background": "generated", "lengths": "0k,1k",
             "samples": 4, **parameters}  # fmt: skip
    spec = task_spec("babilong_qa1", given, tokenizer=tokenizer)
    return TaskManager(include_defaults=False).load([spec])


def task_of(*arguments, **parameters):
    return load(*arguments, **parameters)["tasks"]["babilong_qa1"]


@pytest.fixture(scope="session")
def sentencepiece_tokenizer(tmp_path_factory):
    """A Unigram model with `▁` for spaces, as SentencePiece makes them."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=500, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([generate_text(Draw("unigram"), 30_000)], trainer)
    return _saved(tokenizer, tmp_path_factory.mktemp("unigram"))


@pytest.fixture(scope="session")
def wordpiece_tokenizer(tmp_path_factory):
    """A WordPiece model, whose tokens know no spaces."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator([generate_text(Draw("wordpiece"), 30_000)], trainer)
    return _saved(tokenizer, tmp_path_factory.mktemp("wordpiece"))


def _saved(tokenizer, folder):
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return str(folder)


TOKENIZERS = [f"{kind}_tokenizer" for kind in ("byte", "bpe", "slow", "sentencepiece", "wordpiece")]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("budget", [700, 1301])
def test_a_context_fills_its_tokens_and_never_passes_them(kind, budget, request):
    tokens = RequestTokens.load(request.getfixturevalue(kind))
    text = (
        generate_text(Draw("book"), 60_000).replace(". ", ". \n", 40) + " Ünïcödé “ends” here — naïvely. " * 9
    )
    for source in (Generated(), Books([text], "data:x")):
        for sample in range(4):
            facts = [f"Mary went to the {PLACES[(sample + i) % 4]}." for i in range(sample * 4)]
            draw = Draw("fill", sample)
            filled = Filler(tokens, budget).fill(facts, source.sentences(Draw("text", sample), budget), draw)
            counted = len(tokens.tokenizer(filled.text, add_special_tokens=False)["input_ids"])
            assert filled.tokens == counted <= budget
            assert budget - counted <= 2, (source.name, sample)


class Seams:
    """Counts characters, and at each text's seam a few tokens more or fewer."""

    def __init__(self, more=0, fewer=0):
        self.more, self.fewer = more, fewer

    def tokenizer(self, text, add_special_tokens, verbose):
        return {"input_ids": [0] * (len(text) + self.more - self.fewer * text.startswith(" "))}

    def encode(self, text, *, special):
        return Encoding([0] * len(text), None, None)


@pytest.mark.parametrize("seams", [Seams(more=30), Seams(fewer=30), Seams(more=3, fewer=9)])
def test_what_pieces_count_apart_is_corrected_by_the_whole(seams):
    sentences = [f"Sentence number {i} is about nothing in particular at all." for i in range(200)]
    filled = Filler(seams, 900).fill(["A fact."] * 3, iter(sentences), Draw("x"))
    assert 898 <= filled.tokens == len(filled.text) + seams.more <= 900


def test_facts_stand_in_their_order_in_slots_between_whole_sentences(bpe_tokenizer):
    tokens = RequestTokens.load(bpe_tokenizer)
    sentences = [f"Sentence number {i} is about nothing in particular at all." for i in range(200)]
    facts = [f"Fact {i}." for i in range(6)]
    filled = Filler(tokens, 900).fill(facts, iter(sentences), Draw("x"))
    rest = filled.text
    for fact in facts:
        before, found, rest = rest.partition(f"{fact} ") if fact in rest else ("", "", rest)
        assert found or rest.endswith(fact)
        assert not before or before.rstrip().endswith((".", "all."))
    assert list(filled.slots) == sorted(filled.slots)
    for fact, depth in zip(facts, filled.depths, strict=True):
        assert filled.text.index(fact) == pytest.approx(len(filled.text) * depth / 100, abs=1)
    background = filled.text
    for fact in facts:
        background = background.replace(f"{fact} ", "").replace(f" {fact}", "")
    assert " ".join(sentences).startswith(background)


def test_slots_are_uniform_and_repeat(bpe_tokenizer):
    tokens = RequestTokens.load(bpe_tokenizer)
    counts = Counter()
    for sample in range(300):
        stretch = Generated().sentences(Draw("s", sample), 300)
        filled = Filler(tokens, 300).fill(["One.", "Two."], stretch, Draw("slots", sample))
        counts.update(int(4 * slot / (filled.sentences + 1)) for slot in filled.slots)
    assert sum(counts.values()) == 600
    assert all(100 < counts[quarter] < 200 for quarter in range(4))


def test_short_sentences_are_skipped_and_the_last_one_is_cut(bpe_tokenizer):
    tokens = RequestTokens.load(bpe_tokenizer)
    long = "This is a sentence of rather more than ten tokens, and it goes on for a while."
    filled = Filler(tokens, 100).fill([], iter(["Short.", long] * 50), Draw("x"))
    assert "Short." not in filled.text
    assert len(tokens.encode(" Short.", special=False).ids) < SHORTEST
    assert filled.text.count(long) == filled.sentences - 1
    assert long.startswith(filled.text.rpartition(f"{long} ")[2])


def test_zero_is_the_facts_alone(root, bpe_tokenizer):
    task = task_of(root, bpe_tokenizer, lengths="0k")
    for doc in task.eval_docs:
        facts = task.doc_to_text(doc).split("\n\n")[-1].removesuffix(f"\n{doc['question']}")
        assert facts.count(" went to the ") == doc["facts"] == facts.count(".")
        assert (doc["length"], doc["sentences"]) == (0, 0)


def test_a_books_stretch_begins_and_ends_with_whole_sentences():
    book = " ".join(f"The sentence number {i} stands here in a book." for i in range(500))
    draw = Draw("a")
    found = Books([book], "data:x").sentences(draw, 100)
    first = [next(found) for _ in range(12)]
    assert all(sentence.startswith("The sentence") and sentence.endswith("book.") for sentence in first)
    numbers = [int(sentence.split()[3]) for sentence in first]
    assert numbers == list(range(numbers[0], numbers[0] + 12))
    again = Books([book], "data:x").sentences(Draw("b"), 100)
    assert next(again) != first[0]


def test_texts_without_sentences_are_refused():
    with pytest.raises(TaskDataError, match="data:x: no sentences at 1,000 places"):
        next(Books(["word " * 30], "data:x").sentences(Draw("a"), 100))


def test_documents_carry_what_a_view_by_length_needs(root, bpe_tokenizer):
    task = task_of(root, bpe_tokenizer)
    docs = list(task.eval_docs)
    assert [doc["length"] for doc in docs] == [0] * 4 + [1000] * 4
    assert all(doc["context_tokens"] in (699, 700) for doc in docs[4:])
    assert "context" not in docs[0]
    metadata = task.config.metadata
    assert metadata["protocol"] == (
        "official rule, lm-eval's wording (lengths in the model's tokens, background not PG-19)"
    )
    assert metadata["data_hash"].startswith("data:")
    assert FAMILY.size(resolve("babilong_qa1", {"lengths": "0k,1k", "samples": 4})).documents == len(docs)


def test_no_two_samples_are_alike(root, bpe_tokenizer):
    (path,) = (root / "needle/babi_en").iterdir()
    path.write_text(stories(12) * 3, encoding="utf-8")  # every question three times
    task = task_of(root, bpe_tokenizer, samples=20)
    docs = list(task.eval_docs)
    assert len({doc["id"] for doc in docs}) == len({doc["input_sha256"] for doc in docs}) == 40
    for length in (0, 1000):
        assert len({task.doc_to_text(doc) for doc in docs if doc["length"] == length}) == 20


def test_a_sample_is_the_same_in_every_run_that_holds_it(root, bpe_tokenizer):
    few = list(task_of(root, bpe_tokenizer, lengths="1k", samples=3).eval_docs)
    more = list(task_of(root, bpe_tokenizer, lengths="2k,1k", samples=6).eval_docs)
    assert few == more[6:9]
    other = list(task_of(root, bpe_tokenizer, lengths="1k", samples=3, seed=1).eval_docs)
    assert {doc["input_sha256"] for doc in few}.isdisjoint(doc["input_sha256"] for doc in other)


def test_another_process_builds_the_same(root, bpe_tokenizer):
    code = (
        "import json, sys; from lm_eval.tasks import TaskManager; from nsa_tasks import task_spec\n"
        "spec = task_spec('babilong_qa1', json.loads(sys.argv[1]), tokenizer=sys.argv[2])\n"
        "task = TaskManager(include_defaults=False).load([spec])['tasks']['babilong_qa1']\n"
        "print(json.dumps(list(task.eval_docs)))"
    )
    given = {"data_root": str(root), "prompt": "lm-eval", "background": "generated", "lengths": "1k",
             "samples": 3}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(given), bpe_tokenizer],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert json.loads(done.stdout) == list(task_of(root, bpe_tokenizer, lengths="1k", samples=3).eval_docs)


def test_questions_with_too_many_lines_or_tokens_are_left_out(byte_tokenizer):
    lines = "\n".join(f"{i} Mary went to the garden." for i in range(1, 60))
    text = f"{lines}\n60 Where is Mary?\tgarden\t1\n" + stories(20)
    questions = read_questions(text, "f.txt")
    params = resolve("babilong_qa1", {"samples": 30})
    tokens = RequestTokens.load(byte_tokenizer)

    def longest(budget):
        return max(len(q.facts) for q in choose(params, questions, 1000, Filler(tokens, budget)))

    assert longest(472) == 5  # 59 lines of 8 tokens, and the story has 60
    assert longest(480) == 5  # 60 lines are allowed, but their 1,400 bytes are no 480 tokens
    many = resolve("babilong_qa1", {"samples": 36})
    assert max(len(q.facts) for q in choose(many, questions, 1000, Filler(tokens, 2000))) == 59


def test_the_last_question_of_those_that_fit_is_never_drawn(byte_tokenizer):
    """As officially, whose loader is one shorter than its questions."""
    lines = [f"1 {person} went to the {place}.\n2 Where is {person}?\t{place}\t1\n"
             for person in PEOPLE for place in PLACES]  # fmt: skip
    questions = read_questions("".join(lines), "f.txt")
    filler = Filler(RequestTokens.load(byte_tokenizer), -300)
    drawn = [choose(resolve("babilong_qa1", {"samples": 15, "seed": seed}), questions, 0, filler)
             for seed in range(5)]  # fmt: skip
    assert all(sorted(q.line for q in one) == [q.line for q in questions[:-1]] for one in drawn)
    assert len({tuple(q.line for q in one) for one in drawn}) == 5


def test_more_samples_than_questions_is_an_error(root, bpe_tokenizer):
    with pytest.raises(
        TaskParameterError,
        match=r"babilong_qa1: 100 samples of length 1,000 are asked for, and \d+ of the 80",
    ):
        task_of(root, bpe_tokenizer, lengths="1k", samples=100)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lengths": "4x"}, "expected tokens such as 0, 4000"),
        ({"lengths": "200"}, "more than the 300 tokens that are kept for the prompt"),
        ({"lengths": ["1k", 1000]}, "a length stands there twice"),
        ({"background": "text:"}, "expected pg19, generated, or text:PATH"),
        ({"background": "text:nowhere.txt"}, "no such file or folder"),
        ({"count": "tokenizer:nowhere"}, "count = 'tokenizer:nowhere': no such file or folder"),
        ({"count": "bert"}, "expected model, gpt2, or tokenizer:PATH"),
        ({"prompt": "mine"}, "expected one of official, lm-eval"),
    ],
)
def test_wrong_parameters_say_what_is_allowed(given, message):
    with pytest.raises(TaskParameterError, match=message):
        resolve("babilong_qa1", given)


def test_lengths_are_in_thousands():
    assert resolve("babilong_qa1", {"lengths": "0k,4k,1M"}).lengths == (0, 4000, 1_000_000)
    assert resolve("babilong_qa1", {"lengths": [0, "128K"]}).lengths == (0, 128_000)


def test_missing_facts_say_where_they_are_had(tmp_path, bpe_tokenizer):
    with pytest.raises(
        TaskDataError, match=r"en-10k/qa1_single-supporting-fact_train.txt. Unpack data/tasks_1"
    ):
        task_of(tmp_path, bpe_tokenizer)


def test_a_tokenizer_of_the_users_counts_and_is_known_by_its_content(root, bpe_tokenizer, byte_tokenizer):
    task = task_of(root, bpe_tokenizer, count=f"tokenizer:{byte_tokenizer}", lengths="2k")
    doc = task.eval_docs[0]
    assert doc["context_tokens"] == 1700
    assert "lengths in another tokenizer's tokens" in task.config.metadata["protocol"]
    assert task.config.metadata["tokenizer_hash"].startswith("tokenizer:")


class Follower(LM):
    """Knows where everybody is."""

    tokenizer_name = "follower"

    def generate_until(self, requests, disable_tqdm=False):
        return [self.reply(request.args[0]) for request in requests]

    def reply(self, prompt):
        person = prompt.rsplit("Where is ", 1)[1].rstrip("?")
        told = prompt.split("\n\n")[-1].split(f"{person} went to the ")[-1]
        return f"The most recent location of {person} is {told.split('.')[0]}. The office is not it."

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def test_who_follows_the_facts_is_right_at_every_length(root, bpe_tokenizer):
    results = evaluate(Follower(), load(root, bpe_tokenizer), bootstrap_iters=0)
    assert results["results"]["babilong_qa1"]["score,none"] == 1.0


def test_what_a_wrong_reply_names_is_in_its_sample(root, bpe_tokenizer):
    class Lost(Follower):
        def reply(self, prompt):
            return "the garden or the office"

    results = evaluate(Lost(), load(root, bpe_tokenizer), bootstrap_iters=0)
    assert results["results"]["babilong_qa1"]["score,none"] == 0.0
    assert results["samples"]["babilong_qa1"][0]["doc"]["reasons"] == ["names garden, office"]


def test_models_that_count_alike_take_the_same_contexts_and_others_their_own(
    root, bpe_tokenizer, byte_tokenizer, monkeypatch
):
    monkeypatch.setattr(_kept, "_rows", type(_kept._rows)())
    made = []
    document = build.document
    monkeypatch.setattr(build, "document", lambda *given: made.append(given) or document(*given))
    first = task_of(root, bpe_tokenizer)
    assert len(made) == 8
    again = task_of(root, bpe_tokenizer)
    assert len(made) == 8
    assert list(again.eval_docs) == list(first.eval_docs)
    assert [again.prompt_of(doc) for doc in again.eval_docs] == [
        first.prompt_of(doc) for doc in first.eval_docs
    ]
    task_of(root, byte_tokenizer)
    assert len(made) == 16
    facts = root / "needle/babi_en/qa1_single-supporting-fact_train.txt"
    facts.write_text(facts.read_text(encoding="utf-8").replace("garden", "cellar"), encoding="utf-8")
    changed = task_of(root, bpe_tokenizer)
    assert len(made) == 24
    assert list(changed.eval_docs) != list(first.eval_docs)
