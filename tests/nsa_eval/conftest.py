"""Tiny checkpoints that evaluate in a blink, and a config over them."""

from pathlib import Path

import pytest


def save_tiny_checkpoint(folder: Path, *, seed: int = 0, max_length: int = 512) -> Path:
    """Write a one-layer random Llama with a byte-level BPE tokenizer of 300 tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the special magic number is one of many in the text"] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|eos|>"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=max_length,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory):
    """Two tiny checkpoints with one tokenizer and different weights."""
    home = tmp_path_factory.mktemp("checkpoints")
    return [save_tiny_checkpoint(home / name, seed=seed) for seed, name in enumerate(("one", "two"))]


@pytest.fixture(scope="session")
def tiny_config(tiny_checkpoints):
    """Build the config of a run of seconds: two models, two needle tasks, 8 short samples each."""

    def build(**changes):
        one, two = tiny_checkpoints
        return {
            "name": "tiny",
            "models": [{"name": "one", "path": str(one)}, {"name": "two", "path": str(two)}],
            "tasks": [
                {"task": "needle_single", "lengths": [256, 320], "depths": 2, "samples": 1, "new_tokens": 8},
                {"task": "needle_multikey", "lengths": [320], "depths": 2, "samples": 1, "new_tokens": 8,
                 "num_keys": 2},
            ],
            "engine": {"batch_size": 1},
            "compare": {"baseline": "two", "resamples": 200},
            **changes,
        }  # fmt: skip

    return build
