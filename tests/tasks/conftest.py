"""Tiny tokenizers, made on the spot: nothing is downloaded."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from nsa_tasks._random import Draw
from nsa_tasks.haystack import generate_text

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def _save(tokenizer: Tokenizer, folder, *, chat_template=None):
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory):
    """One token a byte, with BOS: its documents can never change with a tokenizer trainer's version."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _save(tokenizer, tmp_path_factory.mktemp("byte"))


@pytest.fixture(scope="session")
def bpe_tokenizer(tmp_path_factory):
    """A byte-level BPE with single digits, BOS and a chat template, as real models have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([generate_text(Draw("tokenizer"), 50_000)], trainer)
    return _save(tokenizer, tmp_path_factory.mktemp("bpe"), chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def slow_tokenizer(tmp_path_factory):
    """A tokenizer in Python: no offsets, and it closes with EOS."""
    folder = tmp_path_factory.mktemp("slow")
    ByT5Tokenizer().save_pretrained(folder)
    return str(folder)
