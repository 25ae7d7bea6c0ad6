"""Documents of RULER, BABILong and perplexity made side by side are those of one core, to the byte."""

import pytest

from nsa_tasks import TaskParameterError, families, resolve
from nsa_tasks._random import Draw
from nsa_tasks._tokens import RequestTokens
from nsa_tasks.babilong import build as babilong
from nsa_tasks.babilong.background import Books, Generated
from nsa_tasks.babilong.stories import Question
from nsa_tasks.data import Data
from nsa_tasks.haystack import generate_text
from nsa_tasks.ppl import documents as ppl
from nsa_tasks.ruler import build as ruler
from nsa_tasks.ruler.fit import fitted, samples_ahead, search
from nsa_tasks.ruler.qa import QaGenerator
from nsa_tasks.ruler.questions import QaData
from nsa_tasks.ruler.questions import Question as Asked

RULER = [task for task in families()["ruler"].tasks if "_qa_" not in task]


class OneCore(RequestTokens):
    """Counts as a tokenizer in Python would be asked: by one thread alone."""

    for_threads = False


@pytest.fixture(params=[1, 8])
def workers(request, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: request.param)
    return request.param


@pytest.fixture
def tokens(bpe_tokenizer):
    return RequestTokens.load(bpe_tokenizer)


@pytest.fixture
def one_core(bpe_tokenizer):
    return OneCore.load(bpe_tokenizer)


@pytest.mark.parametrize("task", RULER)
def test_rulers_samples_are_those_of_one_core(task, tokens, one_core, workers):
    params = resolve(task, {"lengths": [2048, 2600], "samples": 7})
    assert ruler.documents(params, tokens) == ruler.documents(params, one_core)


def test_the_matrix_has_samples_that_were_too_long_at_first(one_core):
    """Else nothing that is drawn after a step back would have been compared."""
    docs = ruler.documents(
        resolve("ruler_niah_multikey_1", {"lengths": [2048, 2600], "samples": 7}), one_core
    )
    assert len({doc["size"] for doc in docs}) > 2


@pytest.mark.parametrize("length", range(140, 700, 80))
@pytest.mark.parametrize("task", ["ruler_niah_single_1", "ruler_niah_multikey_3", "ruler_vt", "ruler_fwe"])
def test_a_length_that_is_too_short_is_told_alike(task, length, tokens, one_core, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    params = resolve(task, {"lengths": [length], "samples": 5})

    def outcome(counter):
        try:
            return ruler.documents(params, counter)
        except TaskParameterError as error:
            return str(error)

    assert outcome(tokens) == outcome(one_core)


def test_questions_are_drawn_alike(tokens, workers):
    texts = tuple(sorted(generate_text(Draw("qa", i), 60 + 30 * (i % 5)) for i in range(60)))
    questions = tuple(Asked(f"Question {i}?", (f"{i}",), (i,), (i + 20, i + 40)) for i in range(20))
    data = QaData(questions, texts, "data:x")

    def count(prompt, prefix):
        return tokens.count(tokens.render(prompt, prefix))

    made = []
    for ahead in (False, True):
        generator = QaGenerator(data, 7)
        size = search(generator, 2500, 32, count)
        if ahead:
            made.append(samples_ahead(generator, 20, size, 2500, 32, count))
        else:
            made.append([fitted(generator, index, size, 2500, 32, count) for index in range(20)])
    assert made[0] == made[1]
    assert len({size for _, size, _ in made[0]}) > 1


@pytest.mark.parametrize("background", [Generated(), Books([generate_text(Draw("book"), 40_000)], "text:x")])
def test_babilongs_contexts_are_those_of_one_core(background, tokens, one_core, workers):
    params = resolve("babilong_qa1", {"lengths": "0k,1k,2k", "samples": 5, "background": "generated"})
    places = ("hall", "garden", "office", "kitchen", "bathroom", "bedroom", "yard")
    questions = [
        Question((f"Mary went to the {place}.",), "Where is Mary?", place, supports=(0,), story=i, line=i)
        for i, place in enumerate(places)
    ]
    plain = babilong.documents(params, questions, background, one_core)
    assert len(plain) == 15
    assert babilong.documents(params, questions, background, tokens) == plain


def test_windows_are_those_of_one_core_and_no_further_text_is_read(tokens, one_core, workers, monkeypatch):
    texts = [generate_text(Draw("ppl", i), 200 if i % 3 == 0 else 6000) for i in range(12)]
    data = Data([{"text": text} for text in texts], "data:x", places=tuple(f"line {i}" for i in range(12)))
    params = resolve("ppl_by_position", {"source": "pg19", "buckets": [256, 512], "documents": 4})
    read = []
    cut = ppl.WindowCutter.cut

    def seen(self, text, ends):
        read.append(texts.index(text))
        return cut(self, text, ends)

    monkeypatch.setattr(ppl.WindowCutter, "cut", seen)
    plain = ppl.build(params, (256, 512), data, one_core)
    once, read[:] = list(read), []
    assert [built.row["id"] for built in plain] == ["1", "2", "4", "5"]
    assert ppl.build(params, (256, 512), data, tokens) == plain
    assert sorted(read) == once == list(range(6))
