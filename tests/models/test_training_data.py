"""Training data: the recipe is read strictly, text becomes tokens once, and facts are sown as promised."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from nsa_models import NSADecoderConfig, NSADecoderForCausalLM
from nsa_models.train import facts as facts_module
from nsa_models.train.corpus import Corpus, load_corpus, read_documents, text_files, train_tokenizer
from nsa_models.train.facts import FactWriter
from nsa_models.train.reading import load_recipe
from nsa_models.train.recipe import FactsRecipe, Recipe, TextRecipe
from nsa_settings import SettingsError

RECIPES = Path(facts_module.__file__).parent.parent / "recipes"


def write(recipe: dict[str, Any], folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def refused(path: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        load_recipe(path)
    return str(caught.value)


# --- recipe ---


def test_a_recipe_is_read_whole(recipe: dict[str, Any], tmp_path: Path) -> None:
    read = load_recipe(write(recipe, tmp_path))
    assert read == Recipe.model_validate(recipe)
    assert (read.stages[1].lengths, read.optim.lr, read.facts.tokens_per_fact) == ((512, 256), 5e-3, 100)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(batchtokens=5), "batchtokens: unknown key; did you mean 'batch_tokens'?"),
        (lambda r: r["optim"].update(rate=1.0), "optim.rate: unknown key; known: betas, clip, "),
        (
            lambda r: r["stages"][1].update(length=[64]),
            "stages[1].length: unknown key; did you mean 'lengths'?",
        ),
        (
            lambda r: r["stages"][0].update(max_step=1),
            "stages[0].max_step: unknown key; did you mean 'max_steps'?",
        ),
        (lambda r: r.update(ranking={"weigth": 1.0}), "ranking.weigth: unknown key; did you mean 'weight'?"),
        (
            lambda r: r["model"].update(nsa_windw=64),
            "model.nsa_windw: unknown key; did you mean 'nsa_window'?",
        ),
        (
            lambda r: r["model"].update(hiden_size=64),
            "model.hiden_size: unknown key; did you mean 'hidden_size'?",
        ),
        (
            lambda r: r["model"].update(vocab_size=64),
            "model.vocab_size: the tokenizer decides it: leave it out",
        ),
        (lambda r: r["stages"][1].update(select_count=1), "stages[1].select_count: "),
        (lambda r: r.pop("output"), "output: this key is required"),
        (
            lambda r: r.update(batch_tokens="many"),
            "batch_tokens: expected a whole number, got 'many'\n",
        ),
        (lambda r: r["stages"][0].update(lengths="short"), "stages[0].lengths: expected a list, got 'short'"),
        (
            lambda r: r["stages"][0].update(lengths=[]),
            "stages[0].lengths: the list is empty: name at least one length",
        ),
        (lambda r: r.update(stages=[]), "stages: the list is empty: name at least one stage"),
        (lambda r: r["facts"].update(far=1.5), "facts.far: expected a value at most 1, got 1.5"),
        (
            lambda r: r["text"].update(vocab_size=70_000),
            "text.vocab_size: expected a value at most 65536, got 70000",
        ),
        (
            lambda r: r["model"].update(hidden_size="wide"),
            "model.hidden_size: expected a whole number, got 'wide'",
        ),
        (
            lambda r: r["model"].update(attention="sparse"),
            "model.attention: must be one of nsa, full",
        ),
        (lambda r: r.update(batch_tokens=1000), "batch_tokens: 1000 must be a multiple of micro"),
        (
            lambda r: r["stages"][1].update(lengths=[128, 96]),
            "stages[1].lengths[1]: micro_batch_tokens (512) must be a multiple of every length, isn't of 96",
        ),
        (
            lambda r: r["stages"][0].update(max_steps=True),
            "stages[0].max_steps: expected a whole number, got True",
        ),
        (
            lambda r: r["stages"][0].update(max_steps="300"),
            "expected a whole number, got '300' (in quotes it is text)",
        ),
        (
            lambda r: r["model"].update(nsa_select_count=0),
            "model.nsa_select_count: must be a positive integer",
        ),
        (lambda r: r["optim"].update(betas=[1.0]), "optim.betas[1]: this entry is required"),
        (
            lambda r: r["optim"].update(betas=[1.0, 2.0, 3.0]),
            "optim.betas: expected at most 2 entries, got 3",
        ),
        (lambda r: r.update(compile="yes"), "compile: expected true or false, got 'yes'"),
        (lambda r: r.update(ranking=[]), "ranking: expected a mapping of keys to values, got a list"),
        (
            lambda r: r["facts"].update(tokens_per_fact={512: 0}),
            "facts.tokens_per_fact: expected tokens such as 160, or",
        ),
    ],
)
def test_a_wrong_recipe_is_told_by_file_and_key(
    recipe: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    change(recipe)
    path = write(recipe, tmp_path)
    message = refused(path)
    assert len(message.splitlines()) == 1
    assert said in f"{message}\n"
    assert re.match(rf"{re.escape(str(path))}:\d+: ", message)


def test_every_mistake_is_told_at_once(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["batch_tokens"], recipe["seed"] = 0, "x"
    lines = refused(write(recipe, tmp_path)).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["batch_tokens", "seed"]


def test_a_mistake_in_a_file_is_told_by_its_line_and_one_of_set_by_what_was_typed(tmp_path: Path) -> None:
    text = (RECIPES / "twin-nsa-64k.yaml").read_text(encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(
        text.replace("max_steps: 800, select_count", "max_step: 800, select_count"), encoding="utf-8"
    )
    number = next(i for i, line in enumerate(path.read_text().splitlines(), 1) if "max_step: " in line)
    told = "unknown key; did you mean 'max_steps'?"
    assert f"{path}:{number}: stages[1].max_step: {told}" in refused(path).splitlines()
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_recipe(path, ["stages.1.max_step=9", "model.nsa_windw=64"])
    assert caught.value.problems == (
        "--set model.nsa_windw=64: model.nsa_windw: unknown key; did you mean 'nsa_window'?",
        f"--set stages.1.max_step=9: stages[1].max_step: {told}",
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [", "recipe.yaml:1: not valid YAML"),
        (b"- a\n- b\n", "expected a recipe's keys and values, got ['a', 'b']"),
        (b"", "expected a recipe's keys and values, got None"),
        (b"\xff\xfe", "not a UTF-8 text file (byte 0)"),
        (b"seed: 1\nname: a\nseed: 2\n", "recipe.yaml:3: seed: given twice (first on line 1)"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    assert said in refused(path)
    none = tmp_path / "none.yaml"
    assert refused(none) == f"{none}: cannot be read: No such file or directory"


def test_the_twins_recipes_differ_in_name_output_and_attention_alone() -> None:
    nsa, full = (yaml.safe_load((RECIPES / f"twin-{kind}-64k.yaml").read_text()) for kind in ("nsa", "full"))
    assert (nsa.pop("name"), full.pop("name")) == ("twin-nsa-64k", "twin-full-64k")
    assert (nsa["model"].pop("attention"), full["model"].pop("attention")) == ("nsa", "full")
    assert nsa.pop("output") != full.pop("output")
    assert nsa == full


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_bundled_recipes_are_valid_and_open_with_their_command(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# python -m nsa_models.train models/nsa_models/recipes/{path.name}"
    longest = max(length for stage in recipe.stages for length in stage.lengths)
    assert longest <= recipe.model["max_position_embeddings"]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*-64k.yaml")), ids=lambda path: path.stem)
def test_a_64k_twin_fits_a_file_of_16_megabytes_and_ends_with_half_its_steps_at_64k(path: Path) -> None:
    recipe = load_recipe(path)
    with torch.device("meta"):
        model = NSADecoderForCausalLM(NSADecoderConfig(**recipe.model, vocab_size=recipe.text.vocab_size))
    assert 2 * sum(parameter.numel() for parameter in model.parameters()) < 15_900_000  # bf16
    assert model.config.rotary_dim == model.config.head_dim // 2
    assert recipe.stages[-1].lengths.count(65_536) * 2 == len(recipe.stages[-1].lengths)
    assert all(stage.until_answer_loss is None for stage in recipe.stages)  # the same steps for both


@pytest.mark.parametrize(
    ("length", "tokens"), [(512, 160), (2048, 160), (2049, 200), (16_384, 320), (65_536, 768), (10**6, 768)]
)
def test_long_sequences_hold_fewer_facts(length: int, tokens: int) -> None:
    assert (
        FactsRecipe(tokens_per_fact={65_536: 768, 2048: 160, 4096: 200, 16_384: 320}).spacing(length)
        == tokens
    )
    assert FactsRecipe(tokens_per_fact=99).spacing(length) == 99


def test_keys_can_be_set_otherwise(recipe: dict[str, Any], tmp_path: Path) -> None:
    changes = [
        "text.folder=some/books",
        "stages.1.max_steps=7",
        "optim.lr=1.0e-4",
        "seed=3",
        "facts={far: 0.1}",
    ]
    read = load_recipe(write(recipe, tmp_path), changes)
    assert (read.text.folder, read.seed, read.optim.lr) == (Path("some/books"), 3, 1e-4)
    assert ([stage.max_steps for stage in read.stages], read.facts.far) == ([10, 7], 0.1)
    del recipe["optim"]  # a table that the file leaves away
    assert load_recipe(write(recipe, tmp_path), ["optim.lr=1.0e-4"]).optim.lr == 1e-4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("seed", "--set seed: expected KEY=VALUE"),
        ("stages.7.max_steps=1", "--set stages.7.max_steps=1: stages has entries 0 to 1; there is no 7"),
        ("name.first=1", "--set name.first=1: name is 'micro', so it has no 'first' to set"),
        ("seed=[", "--set seed=[: the value is not valid YAML"),
        ("sede=1", "--set sede=1: sede: unknown key; did you mean 'seed'?"),
        ("stages.0.max_steps=no", "stages[0].max_steps: expected a whole number, got 'no'"),
    ],
)
def test_a_key_that_cannot_be_set(recipe: dict[str, Any], tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_recipe(write(recipe, tmp_path), [change])
    assert said in str(caught.value)


# --- corpus ---


@pytest.fixture(scope="module")
def corpus(book_folder: Path, text_cache: Path) -> Corpus:
    return load_corpus(TextRecipe(folder=book_folder, cache=text_cache, vocab_size=400, held_out=0.2))


def test_every_kind_of_file_is_read_in_order(book_folder: Path) -> None:
    documents = list(read_documents(text_files(book_folder)))
    assert len(documents) == 12
    assert len(set(documents)) == 12
    assert documents[0] == (book_folder / "a.txt").read_text()
    assert not any("not a text" in text for text in documents)


def test_named_files_alone_are_read(book_folder: Path, tmp_path: Path) -> None:
    recipe = TextRecipe(
        folder=book_folder, files=("d.jsonl", "a.txt"), cache=tmp_path / "cache", vocab_size=300, held_out=0.3
    )
    made = load_corpus(recipe)
    text = made.tokenizer.decode(made.train) + made.tokenizer.decode(made.held_out)
    documents = list(read_documents(text_files(book_folder)))
    named = list(read_documents(text_files(book_folder, recipe.files)))
    assert named[0] == (book_folder / "a.txt").read_text()
    assert len(named) == 4
    assert [one in text for one in documents] == [one in named for one in documents]
    about = json.loads((tmp_path / "cache" / "corpus.json").read_text(encoding="utf-8"))
    assert about["sources"] == {
        name: sha256((book_folder / name).read_bytes()).hexdigest() for name in ("a.txt", "d.jsonl")
    }
    with pytest.raises(FileNotFoundError, match=r"no gone\.txt in"):
        load_corpus(recipe.model_copy(update={"files": ("gone.txt",), "cache": tmp_path / "other"}))


def test_a_corpus_is_the_same_whenever_it_is_made(
    book_folder: Path, text_cache: Path, tmp_path: Path
) -> None:
    load_corpus(TextRecipe(folder=book_folder, cache=tmp_path / "again", vocab_size=400, held_out=0.2))
    for name in ("tokens.bin", "corpus.json", "tokenizer/tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (text_cache / name).read_bytes()


def test_the_cache_needs_no_text(text_cache: Path, tmp_path: Path) -> None:
    recipe = TextRecipe(folder=tmp_path / "gone", cache=text_cache, vocab_size=400, held_out=0.2)
    assert len(load_corpus(recipe).train) > 1000


def test_held_out_documents_are_never_trained_on(book_folder: Path, corpus: Corpus) -> None:
    train, held_out = (corpus.tokenizer.decode(part) for part in (corpus.train, corpus.held_out))
    sides = [(text in train, text in held_out) for text in read_documents(text_files(book_folder))]
    assert set(sides) == {(True, False), (False, True)}


@pytest.mark.parametrize(("documents", "held_out"), [(1, 0.02), (3, 0.0), (3, 1.0)])
def test_both_sides_have_text_however_few_the_documents(
    book_folder: Path, tmp_path: Path, documents: int, held_out: float
) -> None:
    (tmp_path / "books").mkdir()
    texts = list(read_documents(text_files(book_folder)))[:documents]
    for index, text in enumerate(texts):
        (tmp_path / "books" / f"{index}.txt").write_text(text)
    made = load_corpus(
        TextRecipe(folder=tmp_path / "books", cache=tmp_path / "cache", vocab_size=300, held_out=held_out)
    )
    train, test = (made.tokenizer.decode(part) for part in (made.train, made.held_out))
    assert train
    assert test
    assert sorted(train + test) == sorted("".join(texts))


def test_tokens_are_single_digits_after_a_bos(corpus: Corpus) -> None:
    tokenizer = corpus.tokenizer
    ids = tokenizer("room 2048")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert [tokenizer.decode([i]) for i in ids[-4:]] == ["2", "0", "4", "8"]
    assert tokenizer.decode(tokenizer("žluťoučký kůň\n\t☃")["input_ids"][1:]) == "žluťoučký kůň\n\t☃"
    assert len(tokenizer) == 400
    assert int(corpus.train.max()) < 400


def test_words_are_common_lower_case_words_of_the_text(corpus: Corpus) -> None:
    assert {"harbor", "window"} <= set(corpus.words)
    assert all(word.isalpha() and word.islower() and 4 <= len(word) <= 10 for word in corpus.words)


def test_a_folder_without_text(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"no \.txt or \.jsonl text in"):
        load_corpus(TextRecipe(folder=tmp_path, cache=tmp_path / "cache"))


def test_another_recipes_cache_is_refused(book_folder: Path, text_cache: Path) -> None:
    with pytest.raises(
        ValueError,
        match="holds text of another recipe \\(differs in vocab_size\\); choose another text\\.cache",
    ):
        load_corpus(TextRecipe(folder=book_folder, cache=text_cache, vocab_size=500, held_out=0.2))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"caf\xe9", "can't decode byte"),
        ("a.jsonl", b'{"text": "x"}\n{"title": "y"}\n', "a line isn't a JSON object with a `text`"),
        ("a.jsonl", b'{"text": "x"\n', "delimiter"),
        ("a.txt.gz", b"plain", "gzip"),
        ("a.txt.gz", gzip.compress(b"some text" * 50, mtime=0)[:-12], "end-of-stream"),
        ("a.jsonl.xz", b"plain", "format"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} can't be read as text: .*{said}"):
        list(read_documents(text_files(tmp_path)))


# --- facts ---


def writer(corpus: Corpus, *, seed: int = 0, **recipe: Any) -> FactWriter:
    return FactWriter(corpus, FactsRecipe(**recipe), seed)


@pytest.mark.parametrize("length", [64, 200, 1024])
@pytest.mark.parametrize("tokens_per_fact", [16, 40, 160])
def test_a_sequence_has_exactly_its_length(corpus: Corpus, length: int, tokens_per_fact: int) -> None:
    ids, answers = writer(corpus, tokens_per_fact=tokens_per_fact, together=0.5).batch(
        stage=0, step=3, rows=range(24), length=length
    )
    assert ids.shape == answers.shape == (24, length)
    assert (ids[:, 0] == corpus.tokenizer.bos_token_id).all()
    assert (ids[:, 1:] != corpus.tokenizer.bos_token_id).all()


STATED = re.compile(r"One of the special magic (number|uuid|word)s for ([a-z -]+) is:( [\w-]+)\.")


def spans(ids: np.ndarray, mask: np.ndarray) -> list[tuple[int, list[int]]]:
    """Start and tokens of each run of answer tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(a), ids[a:b].tolist()) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize("final_quiz", [0.0, 1.0])
@pytest.mark.parametrize("together", [0.0, 1.0])
def test_answers_are_values_stated_before_their_question(
    corpus: Corpus, final_quiz: float, together: float
) -> None:
    made = writer(corpus, tokens_per_fact=100, final_quiz=final_quiz, together=together, number=0.6, uuid=0.2)
    decode = corpus.tokenizer.decode
    kinds = set()
    for row in range(20):
        ids, mask = made.sequence(np.random.default_rng(row), 800)
        answers = spans(ids, mask)
        assert len(answers) >= 3
        for at, answer in answers:
            before = decode(ids[:at])
            asking = before.rindex("special magic ")  # the question's last words, up to its first answer
            facts = {value: (kind, key) for kind, key, value in STATED.findall(before[:asking])}
            assert decode(answer) in facts, (decode(answer), before)
            kind, key = facts[decode(answer)]
            assert before[asking:].startswith(f"special magic {kind}")
            if f"{kind}s for" not in before[asking:]:  # of several values of one key, each is stated for it
                assert f"for {key} " in f"{before[asking:]} "
            kinds.add(kind)
    assert kinds == {"number", "uuid", "word"}


def test_values_of_one_key_are_answered_in_the_order_of_the_text(corpus: Corpus) -> None:
    made = writer(corpus, tokens_per_fact=100, together=1.0)
    several = 0
    for row in range(30):
        ids, _ = made.sequence(np.random.default_rng(row), 600)
        text = corpus.tokenizer.decode(ids)
        for question in text.split("\nWhat are all the special magic numbers for")[1:]:
            keys, _, rest = question.partition(" mentioned")
            answers = rest.split(" are")[1].split(".\n")[0].replace(" and", "").split(",")
            if "," not in keys:
                places = [text.index(f"for{keys} is:{answer}.") for answer in answers]
                assert places == sorted(places)
                several += len(answers) > 1
    assert several >= 5


def test_training_tokens_are_those_of_the_text(corpus: Corpus) -> None:
    """A statement's tokens are what a tokenizer makes of its text: training and evaluation see the same."""
    made = writer(corpus)
    rng = np.random.default_rng(0)
    for kind in ("number", "uuid", "word") * 10:
        item = made._single(made._fact(rng, kind), facts_module.QUESTIONS[0][1])
        for insert in (*item.statements, item.question):
            text = corpus.tokenizer.decode(insert.tokens)
            assert made._encode(text) == insert.tokens


def test_a_batch_depends_on_seed_stage_and_step_alone(corpus: Corpus) -> None:
    def ids(seed: int, stage: int, step: int, rows: int = 4) -> torch.Tensor:
        return writer(corpus, seed=seed).batch(stage=stage, step=step, rows=range(rows), length=256)[0]

    first = ids(0, 1, 2)
    again = writer(corpus)
    again.batch(stage=0, step=0, rows=range(3), length=512)  # what was made before leaves no trace
    assert torch.equal(again.batch(stage=1, step=2, rows=range(4), length=256)[0], first)
    assert torch.equal(ids(0, 1, 2, rows=2), first[:2])
    assert not any(torch.equal(other, first) for other in (ids(1, 1, 2), ids(0, 2, 2), ids(0, 1, 3)))


def test_the_quiz_uses_held_out_text_alone(corpus: Corpus) -> None:
    tokenizer = corpus.tokenizer
    seen, unseen = (tokenizer.encode(mark, add_special_tokens=False)[0] for mark in ("#", "@"))
    marked = replace(
        corpus,
        train=np.full(2000, seen, dtype=np.uint16),
        held_out=np.full(2000, unseen, dtype=np.uint16),
    )
    quiz, answers = writer(marked).quiz(rows=6, length=300, seed=0)
    train, _ = writer(marked).batch(stage=0, step=0, rows=range(6), length=300)
    assert (train == seen).sum() > 300
    assert (train == unseen).sum() == 0
    assert (quiz == unseen).sum() > 300
    assert (quiz == seen).sum() == 0
    assert answers.sum(-1).tolist() == [8] * 6  # a space and seven digits


def test_the_quiz_asks_at_the_end_for_facts_at_even_depths(corpus: Corpus) -> None:
    ids, answers = writer(corpus).quiz(rows=5, length=400, seed=1)
    starts = []
    for row, mask in zip(ids, answers, strict=True):
        text = corpus.tokenizer.decode(row)
        ((at, value),) = spans(row.numpy(), mask.numpy())
        answer = corpus.tokenizer.decode(value)
        assert at == 400 - 2 - len(value)  # ".\n" ends the sequence
        assert text.endswith(f" mentioned in the provided text is{answer}.\n")
        ((_, _, stated),) = STATED.findall(text)
        assert stated == answer
        starts.append(text.index("One of the special magic") / text.index("\nWhat is"))
    assert starts[0] < 0.04
    assert f"is:{answer}.\nWhat is" in text  # the last one stands right before its question
    gaps = np.diff(starts)
    assert 0.1 < gaps.min() < gaps.max() < 0.35


def test_a_tokenizer_that_splits_the_first_word(corpus: Corpus) -> None:
    """ "One" and " One" of different sizes can't stand for each other: every statement gets its own line."""
    tokenizer = train_tokenizer(["some text about other things. "] * 9, vocab_size=270)
    text = np.asarray(tokenizer.encode("some other text. " * 300)[1:], dtype=np.uint16)
    split = replace(corpus, tokenizer=tokenizer, train=text, held_out=text)
    ids, _ = writer(split).batch(stage=0, step=0, rows=range(8), length=512)
    assert ids.shape == (8, 512)
    texts = [tokenizer.decode(row) for row in ids]
    assert sum(len(STATED.findall(text)) for text in texts) >= 8
    assert not any(re.search(r"[^\n>]One of the special", text) for text in texts)
    quiz, _ = writer(split).quiz(rows=3, length=512, seed=0)
    assert [len(STATED.findall(tokenizer.decode(row))) for row in quiz] == [1, 1, 1]


def test_a_text_shorter_than_a_sequence_is_told(corpus: Corpus) -> None:
    short = replace(corpus, train=corpus.train[:50], held_out=corpus.held_out[:50])
    with pytest.raises(ValueError, match="the text has 50 tokens, a sequence needs"):
        writer(short).batch(stage=0, step=0, rows=range(1), length=512)
    with pytest.raises(ValueError, match="12 tokens are too few for a fact and its question"):
        writer(corpus).quiz(rows=1, length=12, seed=0)


def test_what_json_reads_is_what_was_made(text_cache: Path, corpus: Corpus) -> None:
    about = json.loads((text_cache / "corpus.json").read_text())
    assert about["train_tokens"] == len(corpus.train)
    assert about["held_out_tokens"] == len(corpus.held_out)
