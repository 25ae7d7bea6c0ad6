"""Filler in scripts without spaces: cut where it may be, so that a cell is as long as it says."""

import random

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nsa_tasks import TaskParameterError, resolve
from nsa_tasks._tokens import RequestTokens
from nsa_tasks.haystack import LONGEST_WORD, close_sentence, cut_points, load_text, word_ends
from nsa_tasks.needle import build

STOPS = "\u3002\uff01\uff1f"


def chinese(draw, characters=1500):
    """A paragraph of invented sentences."""
    text = ""
    while len(text) < characters:
        length = draw.randint(8, 40)
        text += "".join(chr(0x4E00 + draw.randrange(600)) for _ in range(length)) + draw.choice(STOPS)
    return text


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("zh") / "book.txt"
    file.write_text("\n\n".join(chinese(draw) for _ in range(20)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def own_tokenizer(book, tmp_path_factory):
    """A BPE trained on such text, as models of the language have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([book.read_text(encoding="utf-8")], trainer)
    folder = tmp_path_factory.mktemp("zh-bpe")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("which", ["byte_tokenizer", "own_tokenizer", "slow_tokenizer"])
def test_paragraphs_without_spaces_fill_every_cell(which, book, request):
    tokens = RequestTokens.load(request.getfixturevalue(which))
    params = {"lengths": "2k", "depths": 5, "samples": 1, "haystack": f"text:{book}"}
    docs = build.documents(resolve("needle_single", params), tokens)
    for doc in docs:
        assert 0 <= 2048 - doc["prompt_tokens"] - 16 <= 5  # a character is three bytes
        start = doc["needle_span"][0] / doc["prompt_tokens"]
        assert (
            abs(start - doc["depth"] / 100) < 0.15
        )  # moved back to a sentence's end, head and question beside
    before = [doc["input"].partition(doc["needle"])[0].rstrip()[-1] for doc in docs[1:-1]]
    assert set(before) <= set(STOPS)
    assert docs[0]["input"].rpartition("\n")[0][-1] in STOPS  # a cut sentence is closed by its script's stop


def test_cuts_of_prose_with_spaces_stay_at_words():
    text = "An em\u2014dash, na\u00efve caf\u00e9s and \u201cquotes\u201d; \ud55c\uad6d\uc5b4 has spaces too."
    assert cut_points(text).tolist() == word_ends(text).tolist()


def test_characters_may_end_the_filler_but_not_lose_their_marks():
    assert cut_points("\u4e00\u4e8c\u3002ab c").tolist() == [1, 2, 3, 5, 7]
    thai = "\u0e17\u0e35\u0e48\u0e19\u0e35\u0e48"  # two consonants with a vowel and a tone mark each
    assert cut_points(thai).tolist() == [3, 6]


def test_a_run_longer_than_any_word_may_be_cut_anywhere():
    just, over = "x" * LONGEST_WORD, "x" * (LONGEST_WORD + 1)
    assert cut_points(f"a {just} b").tolist() == [1, 2 + LONGEST_WORD, 4 + LONGEST_WORD]
    assert cut_points(f"a {over} b").tolist() == [1, *range(3, len(over) + 3), len(over) + 4]


@pytest.mark.parametrize(
    ("cut", "closed"),
    [
        ("It rained, and", "It rained, and."),
        ("It rained,", "It rained."),
        ("It rained.", "It rained."),
        ("\u4e0b\u96e8\uff0c", "\u4e0b\u96e8\u3002"),
        ("\u4e0b\u96e8\uff01", "\u4e0b\u96e8\uff01"),
        ("\u3042\u3081", "\u3042\u3081\u3002"),
        (", ", ""),
    ],
)
def test_a_cut_sentence_is_closed(cut, closed):
    assert close_sentence(cut) == closed


def test_a_stretch_of_one_unspaced_paragraph_is_as_long_as_was_asked(tmp_path):
    from nsa_tasks._random import Draw

    (tmp_path / "t.txt").write_text(chinese(random.Random(1), 9000), encoding="utf-8")
    stretch = load_text(str(tmp_path / "t.txt")).stretch(Draw(2), 3000, ())
    assert 3000 <= len(stretch.text) <= 3001
    assert not stretch.complete


@pytest.mark.timeout(60)
def test_a_template_that_drops_text_is_an_error_and_not_a_search_without_end(byte_tokenizer):
    """The finished prompt can't have the length, however much filler there is."""
    tokens = RequestTokens.load(byte_tokenizer)

    def cut_short(messages, add_generation_prompt):
        return "|".join(message["content"] for message in messages)[:1200]

    cropped = RequestTokens(tokens.tokenizer, chat_template=cut_short)
    params = resolve("needle_single", {"lengths": [2048], "depths": [0], "samples": 1})
    with pytest.raises(TaskParameterError, match="the chat template changes the text of messages"):
        build.documents(params, cropped)


def test_a_tokenizer_that_makes_huge_steps_is_an_error(byte_tokenizer, monkeypatch):
    """Whole requests counted in hundreds: no cut comes near the length, and no smaller cell is passed off."""
    tokens = RequestTokens.load(byte_tokenizer)
    exact = RequestTokens.count
    monkeypatch.setattr(RequestTokens, "count", lambda self, text: -(-exact(self, text) // 400) * 400)
    params = resolve("needle_single", {"lengths": [1500], "depths": [0], "samples": 1})
    with pytest.raises(
        TaskParameterError, match=r"the finished prompt has 1,19\d .* where 1,484 are asked for"
    ):
        build.documents(params, tokens)
