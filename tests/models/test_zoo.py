"""The bundled checkpoints: whole, small, twins of each other, described, and able to retrieve."""

from __future__ import annotations

import json
import random
import re

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from nsa_models import ZooEntry, load_model, load_tokenizer, zoo

TWINS = {"twin-nsa-64k": "nsa", "twin-full-64k": "full"}
MOST_BYTES = 16_000_000
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def bundled(name: str) -> ZooEntry:
    return next(entry for entry in zoo() if entry.name == name)


def config(name: str) -> dict[str, object]:
    return dict(json.loads((bundled(name).path / "config.json").read_text(encoding="utf-8")))


def test_the_twins_are_bundled() -> None:
    entries = zoo()
    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
    assert {entry.name: entry.attention for entry in entries}.items() >= TWINS.items()


@pytest.mark.parametrize("name", TWINS)
def test_an_entry_tells_what_is_in_the_folder(name: str) -> None:
    entry = bundled(name)
    model = load_model(f"zoo:{name}", device="cpu")
    assert entry.parameters == sum(weight.numel() for weight in model.parameters())
    assert entry.max_length == model.config.max_position_embeddings
    assert entry.attention == model.config.attention
    assert len(entry.description.split()) >= 8


@pytest.mark.parametrize("name", TWINS)
def test_weights_are_small_and_bf16(name: str) -> None:
    folder = bundled(name).path
    assert (folder / "model.safetensors").stat().st_size < MOST_BYTES
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert not [path for path in folder.rglob("*") if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]


def test_the_twins_differ_in_attention_alone() -> None:
    nsa, full = map(config, TWINS)
    assert (nsa.pop("attention"), full.pop("attention")) == ("nsa", "full")
    assert nsa == full


def test_the_twins_read_the_same_tokens() -> None:
    nsa, full = (bundled(name).path for name in TWINS)
    for file in TOKENIZER_FILES:
        assert (nsa / file).read_bytes() == (full / file).read_bytes()
    tokenizer = load_tokenizer("zoo:twin-nsa-64k")
    assert len(tokenizer) == config("twin-nsa-64k")["vocab_size"]
    assert tokenizer.bos_token_id is not None
    assert tokenizer.eos_token_id is not None


@pytest.mark.parametrize("name", TWINS)
def test_a_checkpoint_is_of_the_recipe_beside_it(name: str) -> None:
    recipe = yaml.safe_load((bundled(name).path.parents[1] / "recipes" / f"{name}.yaml").read_text())
    found = config(name)
    assert {key: found[key] for key in recipe["model"]} == recipe["model"]
    assert found["vocab_size"] == recipe["text"]["vocab_size"]


@pytest.mark.parametrize("name", TWINS)
def test_no_file_names_a_place_on_the_machine_it_was_made_on(name: str) -> None:
    for file in ("config.json", *TOKENIZER_FILES[1:], "README.md"):
        text = (bundled(name).path / file).read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.:/~])/(home|root|tmp|work|mnt|workspace)\b", text), file


@pytest.mark.parametrize("name", TWINS)
def test_a_card_says_what_the_checkpoint_is_and_how_it_was_made(name: str) -> None:
    folder = bundled(name).path
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^# .*" + name, card, re.MULTILINE)
    for word in ("research", "retriev", "public", "loss", f"{name}.yaml"):
        assert word in card.lower(), word
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", card) if "://" not in link]
    assert [link for link in links if not (folder / link).exists()] == []


# --- retrieval: a needle in sentences that no model was trained on ---

OPENINGS = ("In the morning", "Later that year", "Without a word", "For a while", "As the rain stopped")
PEOPLE = (
    "the miller",
    "her youngest brother",
    "an old sailor",
    "the schoolmaster",
    "my neighbour",
    "the captain",
)
DEEDS = ("walked slowly towards", "had often spoken of", "could not forget", "looked back at", "returned to")
PLACES = (
    "the harbour",
    "the narrow bridge",
    "that quiet garden",
    "the empty church",
    "the road to the hills",
)
KEYS = ("silver harbor", "patient teacher", "narrow window", "golden letter", "distant village")


def filler(rng: random.Random, sentences: int) -> str:
    parts = (OPENINGS, PEOPLE, DEEDS, PLACES)
    return " ".join("{}, {} {} {}.".format(*(rng.choice(part) for part in parts)) for _ in range(sentences))


def prompt(
    tokenizer: PreTrainedTokenizerBase, rng: random.Random, length: int, depth: float
) -> tuple[list[int], list[int]]:
    """Tokens of a needle request of about `length` tokens, and of its answer."""
    key, number = rng.choice(KEYS), str(rng.randint(1_000_000, 9_999_999))
    needle = f" One of the special magic numbers for {key} is: {number}."
    question = (
        f"\nWhat is the special magic number for {key} mentioned in the provided text?"
        f" The special magic number for {key} mentioned in the provided text is"
    )
    sentences = filler(rng, length // 8).split(". ")
    room = length - len(tokenizer(needle + question)["input_ids"])
    while len(tokenizer(". ".join(sentences))["input_ids"]) > room:
        sentences.pop()
    cut = round(depth * len(sentences))
    before, after = (". ".join(part) + "." for part in (sentences[:cut], sentences[cut:]))
    text = (before + needle if cut else needle.lstrip()) + (f" {after}" if cut < len(sentences) else "")
    answer = tokenizer(f" {number}", add_special_tokens=False)["input_ids"]
    return tokenizer(text + question)["input_ids"], answer


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize(("length", "depths"), [(512, 10), (1024, 5)])
def test_a_twin_finds_needles(name: str, length: int, depths: int) -> None:
    model, tokenizer = load_model(f"zoo:{name}", device="cpu"), load_tokenizer(f"zoo:{name}")
    rng = random.Random(length)
    found = 0
    for depth in range(depths):
        asked, answer = prompt(tokenizer, rng, length, depth / (depths - 1))
        assert length * 0.9 < len(asked) <= length + 2
        with torch.no_grad():
            logits = model(torch.tensor([asked + answer]), logits_to_keep=len(answer) + 1).logits[0]
        found += logits[:-1].argmax(-1).tolist() == answer
    assert found >= depths - 1
