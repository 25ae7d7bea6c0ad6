"""A small decoder of each attention, in float64 so that equalities are exact up to rounding."""

from __future__ import annotations

import gzip
import json
import lzma
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nsa_models import NSADecoderConfig, NSADecoderForCausalLM
from nsa_models.train.corpus import load_corpus, train_tokenizer
from nsa_models.train.recipe import TextRecipe

# l, d, l', n, w so small that 100 tokens hold dozens of blocks and the selection leaves most of them out.
TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "initializer_range": 0.3,
    "nsa_block": 8,
    "nsa_stride": 4,
    "nsa_select_block": 8,
    "nsa_select_count": 4,
    "nsa_window": 12,
    "nsa_compression_hidden": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

HALF_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"attention": "full"},
    "nsa": {},
    "nsa-wide-values": {"v_head_dim": 12},
    "nsa-linear": {"nsa_compression": "linear"},
    "nsa-mean": {"nsa_compression": "mean", "nsa_compress_rotated": True},
    "nsa-shared-kv": {"nsa_share_kv": True, "qk_norm": False},
    "nsa-own-block": {"nsa_first_blocks": 0, "nsa_last_blocks": 1, "gate_bias": False},
    "nsa-selected-alone": {"nsa_branches": "slc"},
    "nsa-untied-mqa": {"num_key_value_heads": 1, "tie_word_embeddings": False, "attention_bias": True},
    "full-gated": {"attention": "full", "attention_gate": True},
    "nsa-half-rope": {"rope_parameters": HALF_ROPE},
    "full-half-rope": {"attention": "full", "rope_parameters": HALF_ROPE},
    "full-yarn": {
        "attention": "full",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
}


@pytest.fixture
def tiny_model() -> Callable[..., NSADecoderForCausalLM]:
    """Make a small random model: tiny_model(attention="full", ...)."""

    def make(dtype: torch.dtype = torch.float64, **changes: Any) -> NSADecoderForCausalLM:
        torch.manual_seed(0)
        return NSADecoderForCausalLM(NSADecoderConfig(**{**TINY, **changes})).to(dtype).eval()

    return make


@pytest.fixture(params=list(VARIANTS))
def any_model(
    request: pytest.FixtureRequest, tiny_model: Callable[..., NSADecoderForCausalLM]
) -> NSADecoderForCausalLM:
    """Each variant of the decoder in turn."""
    return tiny_model(**VARIANTS[request.param])


@pytest.fixture
def tokens() -> torch.Tensor:
    """Two rows of 90 random tokens."""
    return torch.randint(3, 97, (2, 90), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small checkpoints and their tokenizers: `nsa` of ours, `llama` of transformers'."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer = train_tokenizer(["the river ran past 12 mills and 7 bridges. "] * 20, vocab_size=280)
    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    ours = NSADecoderForCausalLM(NSADecoderConfig(**{**TINY, "vocab_size": len(tokenizer)}))
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            **special,
        )
    )
    for name, model in (("nsa", ours), ("llama", llama)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(params=["nsa", "llama"])
def checkpoint(request: pytest.FixtureRequest, saved_models: Path, tmp_path: Path) -> Path:
    """A fresh copy of each small checkpoint in turn, for a test to damage."""
    return Path(shutil.copytree(saved_models / request.param, tmp_path / request.param))


@pytest.fixture
def nsa_checkpoint(saved_models: Path, tmp_path: Path) -> Path:
    """A fresh copy of the small NSA checkpoint."""
    return Path(shutil.copytree(saved_models / "nsa", tmp_path / "nsa"))


WORDS = [
    "amber",
    "apple",
    "arrow",
    "barley",
    "basket",
    "beacon",
    "bottle",
    "branch",
    "candle",
    "canyon",
    "carpet",
    "castle",
    "cellar",
    "cherry",
    "copper",
    "corner",
    "cotton",
    "desert",
    "ember",
    "fabric",
    "falcon",
    "feather",
    "ferry",
    "finger",
    "forest",
    "garden",
    "ginger",
    "glacier",
    "hammer",
    "harbor",
    "hazel",
    "island",
    "ivory",
    "jacket",
    "jungle",
    "kettle",
    "ladder",
    "lantern",
    "lemon",
    "linen",
    "marble",
    "meadow",
    "mirror",
    "nettle",
    "ocean",
    "olive",
    "orchard",
    "paper",
    "pebble",
    "pepper",
    "pillow",
    "pocket",
    "prairie",
    "quarry",
    "ribbon",
    "river",
    "saddle",
    "salmon",
    "shadow",
    "silver",
    "spruce",
    "summit",
    "tavern",
    "thistle",
    "timber",
    "tunnel",
    "valley",
    "velvet",
    "violet",
    "walnut",
    "willow",
    "window",
    "winter",
]


def make_text(seed: int, sentences: int) -> str:
    """Plain sentences of common words, the same for the same seed."""
    rng = random.Random(seed)
    made = []
    for _ in range(sentences):
        words = rng.choices(WORDS, k=rng.randint(5, 11))
        first = rng.choice(("One", words[0].capitalize()))
        made.append(f"{first} {' '.join(words[1:])}.")
    return " ".join(made)


@pytest.fixture(scope="session")
def book_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up text in every kind of file that the trainer reads; twelve documents."""
    folder = tmp_path_factory.mktemp("books")
    texts = [make_text(seed, 150) for seed in range(12)]
    (folder / "deeper").mkdir()
    (folder / "a.txt").write_text(texts[0], encoding="utf-8")
    (folder / "deeper" / "b.txt").write_text(texts[1], encoding="utf-8")
    with gzip.open(folder / "c.txt.gz", "wt", encoding="utf-8") as file:
        file.write(texts[2])
    for name, opener, part in (
        ("d.jsonl", open, texts[3:6]),
        ("e.jsonl.gz", gzip.open, texts[6:9]),
        ("f.jsonl.xz", lzma.open, texts[9:12]),
    ):
        with opener(folder / name, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text, "title": "x"}) + "\n" for text in part)
    (folder / "notes.md").write_text("not a text for training")
    return folder


@pytest.fixture(scope="session")
def text_cache(book_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenised corpus of `book_folder`, made once."""
    cache = tmp_path_factory.mktemp("corpus") / "cache"
    load_corpus(TextRecipe(folder=book_folder, cache=cache, vocab_size=400, held_out=0.2))
    return cache


@pytest.fixture
def recipe(book_folder: Path, text_cache: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe in miniature, as plain data: fifteen steps of a tiny NSA decoder."""
    return {
        "name": "micro",
        "output": str(tmp_path / "run"),
        "text": {
            "folder": str(book_folder),
            "cache": str(text_cache),
            "vocab_size": 400,
            "held_out": 0.2,
        },
        "facts": {"tokens_per_fact": 100},
        "model": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "nsa_block": 16,
            "nsa_stride": 8,
            "nsa_select_block": 16,
            "nsa_select_count": 4,
            "nsa_window": 32,
            "nsa_compression_hidden": 16,
        },
        "stages": [{"lengths": [256], "max_steps": 10}, {"lengths": [512, 256], "max_steps": 5}],
        "optim": {"lr": 5e-3, "warmup_steps": 2},
        "batch_tokens": 512,
        "micro_batch_tokens": 512,
        "workers": 0,
        "log_every": 1,
        "save_every": 1000,
        "test_every": 1000,
        "test_lengths": [256],
    }
