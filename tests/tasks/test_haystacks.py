"""Filler texts: generated prose, noise, distractors, text files."""

import os
import re

import pytest

from nsa_tasks import TaskParameterError
from nsa_tasks._random import Draw, derive_seed
from nsa_tasks.haystack import NOISE, GeneratedHaystack, NoiseHaystack, generate_text, load_text
from nsa_tasks.needle.words import ADJECTIVES, NOUNS


def test_generated_text_holds_nothing_that_looks_like_a_needle():
    text = generate_text(Draw("a"), 400_000)
    assert not re.search(r"\d", text)
    assert not re.search(r"magic|special|\{|\}|\|", text, re.IGNORECASE)
    assert not any(f"{a}-{n}" in text for a in ADJECTIVES[:20] for n in NOUNS)


def test_generated_text_reads_like_varied_prose():
    text = generate_text(Draw("b"), 200_000)
    sentences = re.split(r"(?<=[.])\s+", text)
    assert len(set(sentences)) > 0.9 * len(sentences)
    assert len(set(re.findall(r"[a-z]+", text.lower()))) > 700
    assert all(sentence[0].isupper() or sentence[0] == '"' for sentence in sentences)
    assert not re.search(r"\ba [aeiou]|\ban (?!hour)[^aeiou]|\s\s(?<!\n\n)", text)


def test_generated_text_depends_on_its_seed_alone():
    assert generate_text(Draw(1), 3000) == generate_text(Draw(1), 3000)
    assert generate_text(Draw(1), 3000)[:200] != generate_text(Draw(2), 3000)[:200]
    longer = generate_text(Draw(1), 9000)
    assert longer.startswith(generate_text(Draw(1), 3000))


def test_derived_seeds_are_frozen():
    # A change here changes every sample of every published run.
    assert derive_seed(0, "needle_single", 4096, 0, 0) == 8464617037810499964
    draw = Draw(0, "x")
    assert [draw.below(1000) for _ in range(4)] == [797, 152, 527, 963]


def test_noise_is_rulers_sentences():
    text = NoiseHaystack().stretch(Draw(3), 1000, ()).text
    assert len(text) >= 1000 - len(NOISE)
    assert set(re.split(r"(?<=\.)\s", text)) == set(re.split(r"(?<=\.)\s", NOISE))


def test_text_starts_at_sentences_of_its_own_and_never_repeats(tmp_path):
    path = tmp_path / "essay.txt"
    path.write_text(" ".join(f"Sentence number {i} stands here." for i in range(2000)), encoding="utf-8")
    haystack = load_text(str(path))
    stretches = [haystack.stretch(Draw(seed), 5000, ()) for seed in range(8)]
    assert len({stretch.text for stretch in stretches}) == 8
    assert all(stretch.text.startswith("Sentence number") and not stretch.complete for stretch in stretches)
    whole = haystack.stretch(Draw(0), 10**7, ())
    assert whole.complete
    assert whole.text == path.read_text(encoding="utf-8")


def test_folder_of_texts_is_joined_by_paragraphs_with_hard_wraps_undone(tmp_path):
    (tmp_path / "b.txt").write_text("Third\nparagraph.", encoding="utf-8")
    (tmp_path / "a.txt").write_text("First one\nis wrapped.\n\n\nSecond   one.\n", encoding="utf-8")
    (tmp_path / "c.md").write_text("Not read.", encoding="utf-8")
    assert load_text(str(tmp_path)).text == "First one is wrapped.\n\nSecond one.\n\nThird paragraph."


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"", "is empty"),
        ("x.txt", b"\xff\xfe\x00bad", "cannot read .* as UTF-8"),
        ("x.txt", b"word " * 2000, "only 0 sentence ends in"),
        ("x.md", b"Text.", "expected a .txt file"),
    ],
)
def test_unusable_text_is_one_clear_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskParameterError, match=message):
        load_text(str(tmp_path / name))


def test_missing_text_and_empty_folder_are_named(tmp_path):
    with pytest.raises(TaskParameterError, match="no such file or folder"):
        load_text(str(tmp_path / "nowhere.txt"))
    with pytest.raises(TaskParameterError, match=r"holds no \.txt file"):
        load_text(str(tmp_path))


@pytest.mark.timeout(20)
def test_a_pipe_in_a_texts_place_is_refused_and_not_waited_on(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(TaskParameterError, match=r"expected a \.txt file or a folder"):
        load_text(str(tmp_path / "pipe.txt"))
    with pytest.raises(TaskParameterError, match=r"holds no \.txt file"):
        load_text(str(tmp_path))


def test_generated_stretches_have_no_end():
    assert not GeneratedHaystack().stretch(Draw(1), 10_000, ()).complete
