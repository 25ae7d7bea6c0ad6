"""Tiny checkpoints that evaluate in a blink and a config over them; run directories made of scores."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


# ---- run directories as lm-eval writes them, for results, comparisons and reports

DATE = "2026-03-01T12-00-00.000000"


def sha(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def make_sample(doc: Mapping[str, Any], metrics: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """One line of a samples file, as lm-eval 0.4.13 writes it."""
    prompt = changes.pop("prompt", f"Question {doc['id']}?")
    settings = changes.pop("settings", {"until": ["\n"], "max_gen_toks": 32, "do_sample": False})
    sample = {
        "doc_id": doc["id"],
        "doc": dict(doc),
        "target": str(doc.get("answer", "x")),
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": settings}},
        "resps": [[f"reply {doc['id']}"]],
        "filtered_resps": [f"reply {doc['id']}"],
        "filter": "none",
        "metrics": list(metrics),
        "doc_hash": sha(doc),
        "prompt_hash": sha(prompt),
        "target_hash": sha(doc.get("answer", "x")),
        **metrics,
    }
    return {**sample, **changes}


def write_files(
    directory: Path,
    name: str,
    tasks: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    date: str = DATE,
    config: Mapping[str, Any] | None = None,
    **top: Any,
) -> Path:
    """One model's results and samples; `config` joins the tasks' configs, `top` the results file's keys."""
    folder = directory / name.replace("/", "__").replace(":", "__")
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {task: {m for s in samples for m in s["metrics"]} for task, samples in tasks.items()}
    content = {
        "results": {task: {"alias": task} for task in tasks},
        "configs": {task: {"task": task, "metadata": {"version": 1.0}, **(config or {})} for task in tasks},
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {task: {m: m != "perplexity" for m in sorted(metrics[task])} for task in tasks},
        "n-samples": {
            task: {"original": len(samples), "effective": len({s["doc_id"] for s in samples})}
            for task, samples in tasks.items()
        },
        "config": {"limit": None, "random_seed": 0, "fewshot_seed": 1234, "batch_size": 1, "device": "cpu"},
        "model_name": name,
        **{key.replace("_shot", "-shot"): value for key, value in top.items()},
    }
    (folder / f"results_{date}.json").write_text(json.dumps(content), encoding="utf-8")
    for task, samples in tasks.items():
        lines = "".join(json.dumps(sample) + "\n" for sample in samples)
        (folder / f"samples_{task}_{date}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def score_samples(
    scores: Sequence[float], metric: str = "score", **doc: Sequence[Any]
) -> list[dict[str, Any]]:
    """Samples of a task from a list of scores: document i gets score i, and item i of every other list."""
    return [
        make_sample({"id": i, "q": f"question {i}", **{k: v[i] for k, v in doc.items()}}, {metric: score})
        for i, score in enumerate(scores)
    ]


@pytest.fixture
def write_model() -> Any:
    return write_files


@pytest.fixture
def scored() -> Any:
    return score_samples


@pytest.fixture
def sample_line() -> Any:
    return make_sample
