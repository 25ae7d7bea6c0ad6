"""RULER's documents: window, distribution, fixed orders, streams; and the official scripts' own output."""

import gzip
import hashlib
import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nsa_tasks import TaskDataError, TaskParameterError, families, resolve
from nsa_tasks._random import Draw
from nsa_tasks._tokens import RequestTokens
from nsa_tasks.haystack import NOISE, generate_text
from nsa_tasks.ruler import build
from nsa_tasks.ruler.fit import Drawn, Generator, TooSmallError, fitted, samples_ahead, search
from nsa_tasks.ruler.niah import DEPTHS, NiahGenerator
from nsa_tasks.ruler.settings import TASKS as TASK_SETTINGS
from nsa_tasks.ruler.words import AdjectiveNouns

TASKS = families()["ruler"].tasks


def squad_file(folder):
    """A small file of SQuAD's shape: 4 articles of 12 paragraphs, a question each, every third impossible."""
    articles = [
        {
            "title": f"a{a}",
            "paragraphs": [
                {
                    "context": f"Paragraph {p} of article {a}. "
                    + "It has a few words more. " * (1 + (a + p) % 3),
                    "qas": [
                        {
                            "question": f"Which is paragraph {p} of {a}?",
                            "answers": [{"text": f"{a} {p}"}, {"text": "it"}],
                            "is_impossible": p % 3 == 2,
                        }
                    ],
                }
                for p in range(12)
            ],
        }
        for a in range(4)
    ]
    (folder / "dev-v2.0.json").write_text(json.dumps({"version": "v2.0", "data": articles}))


def hotpot_file(folder):
    """A small file of HotpotQA's shape: 12 questions, ten paragraphs each out of 40."""
    pool = [[f"Title {i}", [f"Text {i}. ", "More of it."]] for i in range(40)]
    records = [
        {
            "question": f"Question {i}?",
            "answer": f"Answer {i}",
            "context": [pool[(3 * i + k) % 40] for k in range(10)],
        }
        for i in range(12)
    ]
    (folder / "hotpot_dev_distractor_v1.json").write_text(json.dumps(records))


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    """A data root with questions."""
    root = tmp_path_factory.mktemp("root")
    (root / "ruler").mkdir()
    squad_file(root / "ruler")
    hotpot_file(root / "ruler")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NSA_EVAL_DATA", str(root))
        yield root


@pytest.fixture(scope="module")
def unigram_tokenizer(tmp_path_factory):
    """SentencePiece's way: pieces that begin with a mark for the space before them; no BOS."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=1000, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator([generate_text(Draw("tokenizer"), 20_000), NOISE], trainer)
    folder = tmp_path_factory.mktemp("unigram")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def word_tokenizer(tmp_path_factory):
    """A token for each word and for each run of other characters, spaces dropped; no BOS, nothing learnt."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("words")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    return str(folder)


def made(task, tokens, **given):
    params = resolve(task, {"samples": 4, "lengths": [1024], **given})
    return build.documents(params, tokens)


def text_of(doc):
    return f"{doc['input']} {doc['gen_prefix']}"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("name", "chat"),
    [
        ("bpe_tokenizer", False),
        ("bpe_tokenizer", True),
        ("unigram_tokenizer", False),
        ("word_tokenizer", False),
    ],
)
def test_the_window_is_filled_and_never_passed(task, name, chat, request):
    tokens = RequestTokens.load(request.getfixturevalue(name), apply_chat_template=chat)
    length = 2048
    docs = made(task, tokens, lengths=[length], samples=3)
    texts = [tokens.render(doc["input"], doc["gen_prefix"]) for doc in docs]
    assert len(set(texts)) == len(docs)
    step = {"vt": 5, "cwe": 10, "fwe": (length - 50) // 32, "qa": 10}.get(task.split("_")[1], 5)
    step = 500 if "essay" in {p.name for p in families()["ruler"].parameters(task)} else step
    for doc, text in zip(docs, texts, strict=True):
        assert tokens.count(text) == doc["prompt_tokens"] <= length - doc["new_tokens"]
        one_step = step * doc["prompt_tokens"] / doc["size"]
        assert length - doc["new_tokens"] - doc["prompt_tokens"] <= 2 * one_step
        assert doc["outputs"]


def test_documents_are_the_same_in_another_process(word_tokenizer, monkeypatch):
    tasks = ("ruler_niah_multikey_2", "ruler_vt", "ruler_qa_1")
    tokens = RequestTokens.load(word_tokenizer)
    here = [text_of(doc) for task in tasks for doc in made(task, tokens, samples=2)]
    code = (
        "import hashlib\n"
        "from nsa_tasks import resolve\n"
        "from nsa_tasks._tokens import RequestTokens\n"
        "from nsa_tasks.ruler import build\n"
        f"tokens = RequestTokens.load({word_tokenizer!r})\n"
        f"texts = [d['input'] + ' ' + d['gen_prefix'] for t in {tasks}\n"
        "         for d in build.documents(resolve(t, {'samples': 2, 'lengths': [1024]}), tokens)]\n"
        "print(hashlib.sha256('|'.join(texts).encode()).hexdigest())\n"
    )
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split()[-1] == hashlib.sha256("|".join(here).encode()).hexdigest()


def test_a_sample_is_the_same_in_every_run_that_holds_it(word_tokenizer):
    tokens = RequestTokens.load(word_tokenizer)
    alone = made("ruler_niah_multikey_2", tokens, samples=2)
    among = made("ruler_niah_multikey_2", tokens, samples=4, lengths=[512, 1024])
    assert among[4:6] == alone
    assert [doc["id"] for doc in alone] == [f"ruler_niah_multikey_2:L1024:S{i}" for i in range(2)]
    assert made("ruler_niah_multikey_2", tokens, samples=2, random_seed=43)[0]["input"] != alone[0]["input"]


GOLDEN = {
    ("ruler_niah_multikey_3", 1024): "91f7c8dc0043a4ee",
    ("ruler_niah_multikey_3", 4096): "f68feb0037a73527",
    ("ruler_vt", 1024): "b335865ac17d6afa",
    ("ruler_vt", 4096): "28117bd285ae9f9d",
    ("ruler_fwe", 1024): "0c7a57b4afc4fd17",
    ("ruler_fwe", 4096): "e064c01d7ed2c154",
    ("ruler_niah_single_1", 1024): "5f7c8abbb5b2a0f6",
    ("ruler_niah_single_1", 4096): "1c37cc8745a67354",
    ("ruler_niah_multikey_2", 1024): "16fb3b07da2a0a63",
    ("ruler_niah_multikey_2", 4096): "3cc0bc97d53fde11",
    ("ruler_cwe", 1024): "277e3d604635fa62",
    ("ruler_cwe", 4096): "a5ef20b8d5567b38",
}
DRAWS_WORDS = ("ruler_niah_single_1", "ruler_niah_multikey_2", "ruler_cwe")


@pytest.mark.parametrize(("task", "length"), GOLDEN)
def test_documents_are_those_of_the_official_scripts(task, length, word_tokenizer):
    """SHA-256 over text, answers and length of what NVIDIA/RULER's scripts at c3f5e3b write, 3 samples."""
    if task in DRAWS_WORDS:
        pytest.importorskip("wonderwords")
    docs = made(task, RequestTokens.load(word_tokenizer), protocol="official", lengths=[length], samples=3)
    digest = hashlib.sha256()
    for doc in docs:
        tokens = doc["prompt_tokens"] + doc["new_tokens"]
        digest.update(json.dumps([text_of(doc), doc["outputs"], tokens]).encode())
    assert digest.hexdigest()[:16] == GOLDEN[task, length]


REAL = Path(__file__).parents[3] / "shared" / "data" / "needle" / "ruler" / "niah_multikey_3_4096.jsonl.gz"


@pytest.mark.skipif(not REAL.exists(), reason="a published file of official samples isn't at hand")
def test_published_samples_are_ours_but_for_the_draws():
    setting = TASK_SETTINGS["ruler_niah_multikey_3"]
    generator = NiahGenerator(setting, 4096, 42, words=(), essay=None, split=None)
    uuid = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
    with gzip.open(REAL, "rt") as file:
        records = [json.loads(line) for line in file]
    for record in records:
        lines = record["input"].count("\n") - 1
        drawn = generator.draw(record["index"], lines - 1)
        assert uuid.sub("U", f"{drawn.prompt} {drawn.prefix}") == uuid.sub("U", record["input"])
        assert len(drawn.answers) == len(record["outputs"]) == 1
        assert f"is: {record['outputs'][0]}." in record["input"]
        assert uuid.fullmatch(record["outputs"][0])
    assert [record["index"] for record in records] == list(range(len(records)))


class TestNeedles:
    """Needles, wordings, places."""

    def test_depths_are_the_forty(self):
        assert len(DEPTHS) == len(set(DEPTHS)) == 40
        assert (DEPTHS[:4], DEPTHS[19:21], DEPTHS[-1]) == ([0, 3, 5, 8], [49, 51], 100)

    def test_needles_stand_at_sentence_ends_of_depths_out_of_the_forty(self, word_tokenizer):
        tokens = RequestTokens.load(word_tokenizer)
        found = Counter()
        for doc in made("ruler_niah_multivalue", tokens, lengths=[2048], samples=40):
            context = doc["input"].split("\n")[1]
            needle = re.compile(r"One of the special magic numbers for \S+ is: \d{7}\.")
            parts = [len(re.findall(r"[.!?]+[\"']?(?=\s|$)", part)) for part in needle.split(context)]
            total, before = sum(parts), 0
            for part in parts[:-1]:
                before += part
                found[before] += 1
                assert before in {int(total * (depth / 100)) for depth in DEPTHS} | {
                    int((total + 1) * (depth / 100))
                    for depth in DEPTHS  # the text may end in mid-sentence
                }
            assert len(parts) == 5
        assert len(found) > 30

    def test_numbers_have_seven_digits_and_uuids_version_4(self, word_tokenizer):
        tokens = RequestTokens.load(word_tokenizer)
        numbers = [
            int(value)
            for doc in made("ruler_niah_multikey_2", tokens, lengths=[4096], samples=10)
            for value in re.findall(r"is: (\d+)\.", doc["input"])
        ]
        assert len(numbers) > 1000
        assert 10**6 <= min(numbers) < 1.1 * 10**6
        assert 9.9 * 10**6 < max(numbers) <= 10**7 - 1
        [doc, *_] = made("ruler_niah_multikey_3", tokens)
        pairs = re.findall(r"uuids for (\S+) is: (\S+)\.", doc["input"])
        uuid4 = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
        assert all(re.fullmatch(uuid4, text) for pair in pairs for text in pair)
        assert len(pairs) == doc["size"] + 1

    def test_one_answer_is_asked_for_in_the_singular(self, word_tokenizer):
        tokens = RequestTokens.load(word_tokenizer)
        [doc, *_] = made("ruler_niah_single_1", tokens)
        key = re.search(r"numbers for (\S+) is: (\d+)\.", doc["input"])
        assert doc["outputs"] == [key[2]]
        head, *lines, question = doc["input"].split("\n")
        assert head.startswith("A special magic number is hidden")
        assert question == f"What is the special magic number for {key[1]} mentioned in the provided text?"
        assert doc["gen_prefix"].startswith(f"The special magic number for {key[1]} ")
        assert doc["gen_prefix"].endswith(" text is")
        assert Counter(lines)[NOISE] == len(lines) - 1 == doc["size"]

    @pytest.mark.parametrize(
        ("task", "needles", "answers"),
        [
            ("ruler_niah_multikey_1", 4, 1),
            ("ruler_niah_multivalue", 4, 4),
            ("ruler_niah_multiquery", 4, 4),
        ],
    )
    def test_several_needles(self, task, needles, answers, word_tokenizer):
        for doc in made(task, RequestTokens.load(word_tokenizer), lengths=[2048]):
            facts = re.findall(r"numbers for (\S+) is: (\d{7})\.", doc["input"])
            assert (len(facts), len(doc["outputs"])) == (needles, answers)
            question = doc["input"].rsplit("\n", 1)[1]
            asked = re.search(r"magic numbers? for (.+) mentioned", question)[1]
            keys = re.split(r", and |, ", asked)
            if task == "ruler_niah_multivalue":
                assert sorted(doc["outputs"]) == sorted(value for _, value in facts)
            else:
                assert doc["outputs"] == [dict(facts)[key] for key in keys]
            if answers > 1:
                assert question.startswith("What are all the special magic numbers")
                assert doc["input"].startswith("Some special magic numbers are hidden")
                assert doc["gen_prefix"].endswith("text are")


@pytest.mark.parametrize("task", [task for task in TASKS if "_qa_" not in task])
def test_evidence_is_where_a_needle_says_each_answer_and_other_tasks_have_none(task, word_tokenizer):
    family = families()["ruler"]
    for doc in made(task, RequestTokens.load(word_tokenizer), lengths=[2048]):
        prompt = f"{doc['input']} {doc['gen_prefix']}"
        places = family.evidence(doc, prompt)
        if "niah" not in task:
            assert places == ()
            continue
        assert [prompt[start:end] for start, end in places] == doc["outputs"]
        for start, end in places:
            assert re.search(r"One of the special magic \w+ for \S+ is: $", prompt[:start])
            assert prompt[end] == "."
        assert family.evidence(doc, f"{prompt} {prompt}") == (), (
            "said twice, so it can't be told which is read"
        )


def test_variables_are_traced_through_one_chain(word_tokenizer):
    docs = made("ruler_vt", RequestTokens.load(word_tokenizer), samples=6)
    examples = set()
    for doc in docs:
        example, _, own = doc["input"].rpartition("\n\nMemorize")
        names = doc["outputs"]
        lines = [line for line in own.split("\n") if line.startswith("VAR")]
        value = re.search(r"assigned the value (\d+) in", own)[1]
        assert 10000 <= int(value) <= 99998
        assert [line.split(" = ")[0] for line in lines] == [f"VAR {name}" for name in names]
        assert lines[0] == f"VAR {names[0]} = {value}"
        assert [line.strip().split("VAR ")[-1] for line in lines[1:]] == names[:-1]
        assert {len(name) for name in names} == {5}
        assert len(set(names)) == 5
        assert doc["gen_prefix"].endswith(f"5 variables are assigned the value {value}, they are: ")
        solved = example.split("they are:")[1].split()
        assert [len(name) for name in solved] == [3] * 5
        assert all(f"VAR {name} = " in example for name in solved)
        assert "12345" not in example
        examples.add(tuple(solved))
    assert len(examples) == len(docs)


@pytest.mark.parametrize(
    ("length", "example", "common", "others"), [(2048, (20, 3, 1), 6, 1), (4096, (40, 10, 3), 30, 3)]
)
def test_common_words_occur_as_often_as_they_should(length, example, common, others, word_tokenizer):
    tokens = RequestTokens.load(word_tokenizer)
    orders = set()
    for doc in made("ruler_cwe", tokens, lengths=[length], samples=3):
        lists = [re.findall(r"(\d+)\. (\S+)", part) for part in doc["input"].split("Question:")]
        words, common_times, times = example
        for listed, size, often, seldom, answers in (
            (lists[0], words, common_times, times, None),
            (lists[1][10:], doc["size"], common, others, doc["outputs"]),
        ):
            assert [int(number) for number, _ in listed] == list(range(1, len(listed) + 1))
            counts = Counter(word for _, word in listed)
            top = [word for word, count in counts.items() if count == often]
            assert len(counts) == size
            assert Counter(counts.values()) == {often: 10, seldom: size - 10}
            assert answers is None or sorted(top) == sorted(answers)
        assert [word for _, word in lists[1][:10]] != doc["outputs"]
        orders.add(tuple(i for i, (_, word) in enumerate(lists[1][10:]) if word in doc["outputs"][:1]))
    assert len(orders) == 1 or len({doc["size"] for doc in made("ruler_cwe", tokens, lengths=[length])}) > 1


def test_coded_words_follow_the_zeta_distribution(word_tokenizer):
    tokens = RequestTokens.load(word_tokenizer)
    for doc in made("ruler_fwe", tokens, lengths=[16384], samples=2):
        body = doc["input"].split("coded words. ")[1].split("\nQuestion")[0]
        counts = Counter(body.split()).most_common()
        shares = [round(100 * count / doc["size"], 1) for _, count in counts[:4]]
        assert shares == pytest.approx([60.8, 15.2, 6.8, 3.8], abs=0.06)
        assert counts[0][0] == "..."
        assert [word for word, _ in counts[1:4]] == doc["outputs"]
        assert all(re.fullmatch(r"[a-z]{6}", word) for word, _ in counts[1:])
        assert len(counts) <= (16384 - 50) // 50


class TestQuestions:
    """Which documents, and in which order."""

    def test_squads_article_comes_before_other_documents(self, word_tokenizer):
        tokens = RequestTokens.load(word_tokenizer)
        docs = made("ruler_qa_1", tokens, lengths=[1024], samples=8)
        places = set()
        for i, doc in enumerate(docs):
            paragraph = (i // 2) * 3 + i % 2  # of the first article; every third question is impossible
            texts = re.findall(r"Document \d+:\n(.+)", doc["input"])
            gold = f"Paragraph {paragraph} of article 0."
            places.add(next(at for at, text in enumerate(texts) if text.startswith(gold)))
            assert doc["input"].endswith(f"Question: Which is paragraph {paragraph} of 0?")
            assert doc["outputs"] == [f"0 {paragraph}", "it"]
            assert len(texts) == doc["size"] == len(set(texts))
            if doc["size"] > 12:
                assert sum("of article 0." in text for text in texts) == 12
        # The order is one fixed permutation, so at one size the gold paragraph stands at one place.
        assert len(places) == len({doc["size"] for doc in docs})

    def test_fewer_documents_are_a_sample_of_the_article(self, word_tokenizer):
        [doc, *_] = made("ruler_qa_1", RequestTokens.load(word_tokenizer), lengths=[330], samples=1)
        texts = re.findall(r"Document \d+:\n(.+)", doc["input"])
        assert doc["size"] < 12
        assert all("of article 0." in text for text in texts)

    def test_hotpots_paragraphs_have_their_title_on_a_line(self, word_tokenizer):
        docs = made("ruler_qa_2", RequestTokens.load(word_tokenizer), lengths=[512], samples=2)
        for i, doc in enumerate(docs):
            texts = re.findall(r"Document \d+:\nTitle (\d+)\nText \1\. More of it\.", doc["input"])
            assert {int(text) for text in texts} >= {(3 * i + k) % 40 for k in range(10)}
            assert len(texts) == doc["size"]
            assert doc["outputs"] == [f"Answer {i}"]

    def test_documents_are_repeated_where_there_are_too_few(self, word_tokenizer):
        [doc] = made("ruler_qa_2", RequestTokens.load(word_tokenizer), lengths=[4096], samples=1)
        texts = re.findall(r"Document \d+:\n(Title \d+)", doc["input"])
        assert len(texts) == doc["size"] > 40 == len(set(texts))

    def test_the_hubs_records_are_the_same(self, data):
        from nsa_tasks.data import Data
        from nsa_tasks.ruler.questions import _read, load_questions

        official = json.loads((data / "ruler" / "dev-v2.0.json").read_text())["data"]
        rows = [
            {
                "title": article["title"],
                "context": paragraph["context"],
                "question": qa["question"],
                "answers": {"text": [] if qa["is_impossible"] else [a["text"] for a in qa["answers"]]},
            }
            for article in official
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
        ]
        here = load_questions("squad", "")
        assert _read("squad", Data(rows, "hub")).questions == here.questions
        records = json.loads((data / "ruler" / "hotpot_dev_distractor_v1.json").read_text())
        columns = [
            {
                **r,
                "context": {"title": [t for t, _ in r["context"]], "sentences": [s for _, s in r["context"]]},
            }
            for r in records
        ]
        there = load_questions("hotpotqa", "")
        read = _read("hotpotqa", Data(columns, "hub"))
        assert (read.questions, read.documents) == (there.questions, there.documents)
        assert there.name.startswith("data:")

    def test_more_samples_than_questions_are_refused(self, word_tokenizer):
        with pytest.raises(TaskParameterError, match="samples = 13, but there are 12 questions"):
            made("ruler_qa_2", RequestTokens.load(word_tokenizer), samples=13)

    def test_a_bad_record_is_named(self, tmp_path, word_tokenizer):
        (tmp_path / "ruler").mkdir()
        file = tmp_path / "ruler" / "hotpot_dev_distractor_v1.json"
        file.write_text(json.dumps([{"question": "q", "answer": "a", "context": []}, {"question": "q"}]))
        with pytest.raises(TaskDataError, match=r"record 2: not a record of .*KeyError: 'answer'"):
            made("ruler_qa_2", RequestTokens.load(word_tokenizer), data_root=str(tmp_path))
        with pytest.raises(TaskDataError, match=r"no .*dev-v2\.0\.json.*Download SQuAD"):
            made("ruler_qa_1", RequestTokens.load(word_tokenizer), data_root=str(tmp_path))


class Lines(Generator):
    """A generator whose request has a token a line and a fixed head; at one size it may be longer."""

    step = 5

    def __init__(self, head, longer=()):
        self.head, self.longer, self.drawn = head, list(longer), []

    def draw(self, index, size):
        if size < 3:
            raise TooSmallError
        self.drawn.append(size)
        more = self.longer.pop(0) if self.longer else 0
        return Drawn("x" * (self.head + size + more), "", (f"{index}",))

    def place(self):
        return (tuple(self.longer),)

    def go_back(self, place):
        self.longer = list(place[0])


def characters(prompt, prefix):
    return len(prompt)


class TestSize:
    """The search and the steps back."""

    @pytest.mark.parametrize("room", [20, 25, 26, 57, 300, 1001])
    def test_the_search_finds_the_largest_size(self, room):
        assert search(Lines(10), room, 5, characters) == max(5, room - 15)

    def test_an_overflow_takes_a_step_away(self):
        generator = Lines(10, longer=[1, 1])
        drawn, size, tokens = fitted(generator, 0, 42, 57, 5, characters)
        assert (generator.drawn, size, tokens, drawn.answers) == ([42, 37], 37, 48, ("0",))

    @pytest.mark.parametrize("workers", [1, 3])
    @pytest.mark.parametrize("size", [4, 5, 9, 42])
    @pytest.mark.parametrize("seed", range(12))
    def test_samples_drawn_ahead_are_those_drawn_one_after_another(self, seed, size, workers, monkeypatch):
        monkeypatch.setattr("os.cpu_count", lambda: workers)
        rng = random.Random(seed)
        share = rng.choice([0.0, 0.1, 0.5, 0.9])
        longer = [rng.choice([1, 9, 99]) if rng.random() < share else 0 for _ in range(80)]
        room = 15 + size

        def plain(generator):
            return [fitted(generator, index, size, room, 5, characters) for index in range(30)]

        def ahead(generator):
            return samples_ahead(generator, 30, size, room, 5, characters)

        outcomes = []
        for make in (plain, ahead):
            generator = Lines(10, longer)
            try:
                outcomes.append((make(generator), generator.longer))
            except TaskParameterError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]

    def test_the_smallest_size_that_never_fits_is_an_error(self):
        with pytest.raises(TaskParameterError, match="length 18 is too short: its smallest request takes 15"):
            fitted(Lines(10), 0, 5, 18, 5, characters)

    def test_the_smallest_size_is_drawn_again(self):
        generator = Lines(10, longer=[9, 9, 0])
        assert fitted(generator, 0, 5, 20, 5, characters)[1] == 5
        assert generator.drawn == [5, 5, 5]

    def test_steps_below_what_a_size_can_hold_are_an_error(self):
        with pytest.raises(TaskParameterError, match="too short"):
            fitted(Lines(10, longer=[99] * 9), 0, 7, 20, 5, characters)

    @pytest.mark.parametrize("task", TASKS)
    def test_a_length_that_is_too_short_is_an_error(self, task, byte_tokenizer):
        with pytest.raises(TaskParameterError, match=f"{task}: .*too short"):
            made(task, RequestTokens.load(byte_tokenizer), lengths=[200])

    def test_no_room_beside_the_reply_is_told_at_once(self):
        with pytest.raises(TaskParameterError, match="length 120 has no room for more than the reply's 128"):
            resolve("ruler_niah_single_1", {"lengths": [120]})


@pytest.mark.parametrize(
    ("adjectives", "nouns"),
    [
        (["b", "a", "c"], ["y", "x"]),
        (["self", "self-made", "selfish", "self-made-up"], ["made-x", "x", "up-x", "z"]),
        (["a", "a", "A"], ["x", "x"]),
        (["a-b", "a", "a!"], ["b-c", "c", "-", "~"]),
    ],
)
def test_pairs_are_numbered_as_in_the_sorted_list_of_all(adjectives, nouns):
    plain = sorted({f"{adjective}-{noun}" for adjective in adjectives for noun in nouns})
    pairs = AdjectiveNouns(adjectives, nouns)
    assert pairs[:] == list(pairs) == plain
    assert random.Random(1).choice(pairs) == random.Random(1).choice(plain)
    with pytest.raises(IndexError):
        pairs[len(plain)]
