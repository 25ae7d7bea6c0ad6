"""Tiny random models, a tiny tokenizer, and requests as lm-eval makes them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from nsa_models import NSADecoderConfig, NSADecoderForCausalLM

_STORY = (
    "the quick brown fox jumps over a lazy dog while seven wizards hide gold under old stones near "
    "rivers and every child asks where the keys of London went in winter"
)
WORDS = _STORY.split()
VOCABULARY = 384


def make_text(seed: int, words: int) -> str:
    """`words` words, the same for the same seed."""
    pick = random.Random(seed)
    return " ".join(pick.choice(WORDS) for _ in range(words))


def make_tokenizer(
    *, bos: bool = True, eos: bool = True, appends_eos: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts <s> first, as Llama's does; some put </s> last too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = (["<s>"] if bos else []) + (["</s>"] if eos else [])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([make_text(seed, 200) for seed in range(5)], trainer)
    template = (["<s>"] if bos else []) + ["$A"] + (["</s>"] if appends_eos else [])
    if len(template) > 1:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(template),
            special_tokens=[(name, tokenizer.token_to_id(name)) for name in template if name != "$A"],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>" if bos else None,
        eos_token="</s>" if eos else None,
        clean_up_tokenization_spaces=False,
    )


_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # far from uniform predictions, so that mistakes show
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}


def _twin(attention: str, **fields: Any) -> PreTrainedModel:
    """The project's own decoder, with blocks small enough that short prompts select among them."""
    config = NSADecoderConfig(
        **_SHAPE,
        **fields,
        attention=attention,
        nsa_block=8,
        nsa_stride=4,
        nsa_select_block=8,
        nsa_select_count=4,
        nsa_window=16,
    )
    return NSADecoderForCausalLM(config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SHAPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SHAPE)),
    "sliding": lambda: MistralForCausalLM(MistralConfig(**_SHAPE, sliding_window=24)),
    "nsa": lambda: _twin("nsa"),
    "full": lambda: _twin("full"),
    "full-half-rope": lambda: _twin("full", partial_rotary_factor=0.5),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=512,
            n_embd=32,
            n_layer=2,
            n_head=4,
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=1,
        )
    ),
}


def make_model(name: str) -> PreTrainedModel:
    """A random model in float32, the same at every call."""
    torch.manual_seed(0)
    return MODELS[name]().eval()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    return make_model("llama")


@pytest.fixture(scope="session", params=sorted(MODELS))
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(request.param)


def request_of(kind: str, arguments: tuple[Any, ...], *, doc_id: int = 0, task: str = "toy") -> Instance:
    """One lm-eval request; its document says what it is."""
    return Instance(
        request_type=kind,
        doc={"id": doc_id, "arguments": repr(arguments)},
        arguments=arguments,
        idx=0,
        metadata=(task, doc_id, 1),
    )


def choice_requests() -> list[Instance]:
    """Questions with choices, few-shot heads, one-token choices, empty and trailing-space contexts."""
    head = make_text(100, 60)
    asked: list[tuple[str, str]] = []
    for question in range(6):
        context = (head if question % 2 else "") + "\n" + make_text(question, 5 + 9 * question)
        asked += [(context, " " + make_text(1000 + choice, 1 + 3 * choice)) for choice in range(4)]
        asked += [(context + "\nAnswer:", f" {letter}") for letter in "ABCD"]
    asked += [("", "the lazy dog"), ("ends in space ", "fox jumps"), (make_text(7, 80), " gold")]
    return [request_of("loglikelihood", pair, doc_id=number) for number, pair in enumerate(asked)]


def reply_requests(**settings: Any) -> list[Instance]:
    """Prompts of unequal length, some with a long shared beginning."""
    head = make_text(200, 70)
    prompts = [make_text(seed, 3 + 11 * seed) for seed in range(6)]
    prompts += [head + " " + make_text(300 + seed, 4 + seed) for seed in range(3)]
    given = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False, **settings}
    return [
        request_of("generate_until", (prompt, dict(given)), doc_id=number)
        for number, prompt in enumerate(prompts)
    ]


class Toys:
    """The helpers of this file, for tests (which can't import it)."""

    make_text = staticmethod(make_text)
    make_tokenizer = staticmethod(make_tokenizer)
    make_model = staticmethod(make_model)
    request_of = staticmethod(request_of)
    choice_requests = staticmethod(choice_requests)
    reply_requests = staticmethod(reply_requests)


@pytest.fixture(scope="session")
def toys() -> type[Toys]:
    return Toys
