"""Long contexts on a GPU: the engine against lm-eval's own `hf`, and NSA against dense, in one run.

    python benchmarks/long_contexts.py --json long.json                     # everything
    python benchmarks/long_contexts.py --cases grid-32k,choices             # some cases
    python benchmarks/long_contexts.py --cases single,decode --no-hf

A random Llama of 1.2B parameters (16 layers of 2,048, 32 heads of 64, 8 KV heads, vocabulary 128,256) and
random decoders of the project's own, NSA and dense of one shape, in bfloat16: times don't depend on weights.
The engine is run twice: the second run is its time, the first shows what starting costs (compilation, plans,
captures). lm-eval's `hf`, which compiles nothing, runs once for each batch size, behind it in one process and
with transformers' own attention. Peaks count from the loaded weights upward.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from engine_vs_hf import WORDS, text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

if TYPE_CHECKING:
    from nsa_eval.engine import Engine

CASES = ("grid-32k", "choices", "few-shot", "replies", "grid-64k", "single", "decode")
HF_BATCHES = {"grid-32k": [1, 4], "grid-64k": [1], "choices": [1, 4], "few-shot": [64]}


def tokenizer_of_words() -> PreTrainedTokenizerBase:
    """One token a word, so that a prompt's length is what it says."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", *WORDS, *(f"n{number}" for number in range(1000))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def ask(kind: str, number: int, *arguments: object) -> Any:  # noqa: ANN401  (an lm-eval Instance)
    from lm_eval.api.instance import Instance

    return Instance(kind, {"id": number, "case": repr(arguments)[:60]}, arguments, 0, ("bench", number, 1))


def requests_of(case: str) -> list[Any]:
    if case.startswith("grid"):
        length = {"grid-32k": 32768, "grid-64k": 65536}[case]
        filler = text(1, length - 64).split()
        settings = {"until": [], "max_gen_toks": 32, "do_sample": False}
        asked = []
        for depth in range(11):
            at = len(filler) * depth // 10
            needle = [f"n{depth}", f"n{depth + 100}", "is", "n7"]
            prompt = " ".join([*filler[:at], *needle, *filler[at:], "question", f"n{depth}"])
            asked.append(ask("generate_until", depth, prompt, dict(settings)))
        return asked
    if case == "choices":
        return [
            ask("loglikelihood", doc, text(doc, 16384), " " + text(100 * choice + doc, 12))
            for doc in range(8)
            for choice in range(4)
        ]
    if case == "few-shot":
        head = text(77, 600)
        return [
            ask(
                "loglikelihood", doc, f"{head} {text(doc, 40 + doc % 20)}", " " + text(999 * choice + doc, 14)
            )
            for doc in range(200)
            for choice in range(4)
        ]
    raise ValueError(case)


def random_llama() -> PreTrainedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        bos_token_id=1,
        eos_token_id=2,
    )
    return _made(lambda: LlamaForCausalLM(config))


def random_decoder(attention: str) -> PreTrainedModel:
    from nsa_models import NSADecoderConfig, NSADecoderForCausalLM

    config = NSADecoderConfig(
        attention=attention,
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=131072,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _made(lambda: NSADecoderForCausalLM(config))


def _made(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = make()
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None  # replies end at their budget
    return model.eval()


def timed(work: Callable[[], Any], *, starts: bool = True) -> tuple[dict[str, Any], Any]:
    """Seconds and peak of a run above what stood before; `starts`: of a second run, and the first's time."""
    found: dict[str, Any] = {}
    result = None
    for name in ("first", "seconds") if starts else ("seconds",):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        result = work()
        torch.cuda.synchronize()
        found[name] = time.perf_counter() - start
        found["gib"] = (torch.cuda.max_memory_allocated() - before) / 2**30
    return found, result


def engine_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **settings: object) -> Engine:
    from nsa_eval.engine import Engine

    return Engine(model, tokenizer, max_length=131072, **settings)


def against_hf(
    case: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, hf_batches: list[int]
) -> list[dict[str, Any]]:
    requests = requests_of(case)
    kind = requests[0].request_type
    engine = engine_of(model, tokenizer)
    ours, answers = timed(lambda: getattr(engine, kind)(requests, disable_tqdm=True))
    rows = [{"case": case, "who": "engine", **ours}]
    for batch in hf_batches:
        from lm_eval.models.huggingface import HFLM

        model.set_attn_implementation("sdpa")  # the engine has put its own in its place
        try:
            hf: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=131072)
            asking = functools.partial(getattr(hf, kind), requests, disable_tqdm=True)
            theirs, expected = timed(asking, starts=False)
        except torch.OutOfMemoryError:
            rows.append({"case": case, "who": f"hf, batch {batch}", "error": "out of memory"})
            torch.cuda.empty_cache()
            continue
        row = {
            "case": case,
            "who": f"hf, batch {batch}",
            **theirs,
            "ratio": theirs["seconds"] / ours["seconds"],
        }
        if kind == "loglikelihood":
            row["difference"] = max(abs(a[0] - b[0]) for a, b in zip(answers, expected, strict=True))
        else:
            row["equal"] = statistics.mean(a == b for a, b in zip(answers, expected, strict=True))
        rows.append(row)
    return rows


def replies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, budget: int, *, waiting: bool
) -> list[dict[str, Any]]:
    """AIME's shape: 30 problems, 16 replies each, lengths of a long tail; against waiting for the longest."""
    pick = random.Random(3)
    lengths = [min(budget, max(16, int(budget * math.exp(pick.gauss(-1.9, 0.9))))) for _ in range(30 * 16)]
    asked = []
    for problem in range(30):
        prompt = text(problem, 150)
        for reply in range(16):
            settings = {"until": [], "do_sample": True, "temperature": 0.7, "top_p": 0.95}
            settings["max_gen_toks"] = lengths[16 * problem + reply]
            asked.append(ask("generate_until", 16 * problem + reply, prompt, settings))
    rows = []
    tokens = sum(lengths)
    ways = [("slots refilled", True)] + ([("waits for the longest", False)] if waiting else [])
    engine_of(model, tokenizer, batch_size=64).generate_until(asked[:2], disable_tqdm=True)  # compiles
    for name, refills in ways:
        engine = engine_of(model, tokenizer, batch_size=64)
        reader = engine._answerer.loaded.reader()
        reader.family.refills = refills
        start = time.perf_counter()
        engine.generate_until(asked, disable_tqdm=True)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        rows.append(
            {"case": "replies", "who": name, "seconds": seconds, "tokens_per_second": tokens / seconds}
        )
    if waiting:
        rows[0]["ratio"] = rows[1]["seconds"] / rows[0]["seconds"]
    rows[0]["longest"], rows[0]["mean"] = max(lengths), tokens / len(lengths)
    return rows


def single(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """One 64k prompt: the engine against a plain forward of the model."""
    rows = []
    for attention in ("full", "nsa"):
        model = random_decoder(attention)
        prompt = text(5, 65536)
        request = ask("loglikelihood", 0, prompt, " time")
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)[:65536]], device="cuda")
        engine = engine_of(model, tokenizer)
        start = time.perf_counter()
        tokenizer.encode(prompt)
        encoding = time.perf_counter() - start
        with torch.inference_mode():
            plain, _ = timed(lambda m=model, x=ids: m(x, use_cache=False, logits_to_keep=1).logits)
        ours, _ = timed(lambda e=engine, r=request: e.loglikelihood([r], disable_tqdm=True))
        name = {"full": "dense", "nsa": "NSA"}[attention]
        rows.append({"case": "single", "who": f"{name}, plain forward", **plain})
        ratio = (ours["seconds"] - encoding) / plain["seconds"]
        row = {"case": "single", "who": f"{name}, engine", **ours, "of_that_tokenizing": encoding}
        rows.append({**row, "rest_over_plain": ratio})
        del model, engine
    return rows


def decode(rows_at_once: int, length: int, steps: int) -> list[dict[str, Any]]:
    """Tokens a second of rows of one length, each with keys of its own, both from CUDA graphs."""
    from nsa_models.families import family_of

    found = []
    for attention in ("full", "nsa"):
        model = random_decoder(attention)
        with torch.inference_mode():
            family = family_of(model)
            slots = family.slots(rows_at_once, longest=length, room=steps + 24, graphs=True)
            for slot in range(rows_at_once):
                row = family.empty(1)
                tokens = torch.randint(3, 1000, (1, length), device="cuda")
                for begin in range(0, length, 8192):
                    some = tokens[:, begin : begin + 8192]
                    given = family.inputs(some, [some.shape[1]], row)
                    family.absorb(family.forward({**given, "logits_to_keep": 1}), some, [some.shape[1]], row)
                slots.admit(slot, row, 0)
            for _ in range(20):  # NSA has a graph of its own for steps that complete a block
                slots.step()
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(steps):
                slots.tokens.copy_(slots.step().argmax(-1))
            torch.cuda.synchronize()
            seconds = (time.perf_counter() - start) / steps
        name = {"full": "dense", "nsa": "NSA"}[attention]
        found.append(
            {
                "case": f"decode {rows_at_once} x {length}",
                "who": name,
                "ms_per_step": seconds * 1e3,
                "tokens_per_second": rows_at_once / seconds,
                "captured": slots.captured,
                "gib": torch.cuda.memory_allocated() / 2**30,
            }
        )
        del model, slots, family, row
        gc.collect()
        torch.cuda.empty_cache()
    found[1]["ratio"] = found[1]["tokens_per_second"] / found[0]["tokens_per_second"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--no-hf", action="store_true", help="the engine alone, nothing to compare with")
    parser.add_argument("--hf-batch-sizes", help="default: the fastest found so far, by case")
    parser.add_argument("--budget", type=int, default=1024, help="most tokens of a reply in `replies`")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = options.cases.split(",")
    tokenizer = tokenizer_of_words()
    lines: list[dict[str, Any]] = []

    def show(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            cells = [f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()]
            print(" | ".join(cells), flush=True)
        lines.extend(rows)
        if options.json:
            options.json.write_text(
                json.dumps({"device": torch.cuda.get_device_name(), "rows": lines}, indent=1)
            )

    with_llama = [case for case in cases if case not in ("single", "decode")]
    if with_llama:
        model = random_llama()
        for case in with_llama:
            if case == "replies":
                show(replies(model, tokenizer, options.budget, waiting=not options.no_hf))
                continue
            given = options.hf_batch_sizes
            sizes = [int(size) for size in given.split(",")] if given else HF_BATCHES[case]
            sizes = [] if options.no_hf else sizes
            show(against_hf(case, model, tokenizer, sizes))
        del model
        gc.collect()
        torch.cuda.empty_cache()
    if "single" in cases:
        show(single(tokenizer))
    if "decode" in cases:
        show(decode(8, 65536, 64))


if __name__ == "__main__":
    main()
