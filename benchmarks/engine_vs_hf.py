"""The engine against lm-eval's own `hf` model: same checkpoint, same requests, time and peak memory.

    python benchmarks/engine_vs_hf.py                                # the bundled twins
    python benchmarks/engine_vs_hf.py --random-llama 128000          # a random Llama, large vocabulary
    python benchmarks/engine_vs_hf.py --model path/to/checkpoint --json figures.json

Each measurement runs in a process of its own, so that a peak is the peak of that case alone. `hf` is
measured with several batch sizes and compared at its fastest. The results of both are asserted equal. On a
busy machine the CPU time is the steadier clock; it is shown beside the wall time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CASES = ("choices", "few-shot choices", "single", "rolling", "replies", "long prompts", "long", "longer")
ROLLING_WINDOW = 256
ZOO = ("zoo:twin-full-64k", "zoo:twin-nsa-64k")
_SENTENCE = (
    "time year people way day man thing woman life child world school state family student group country "
    "problem hand part place case week company system program question work government number night point "
    "home water room mother area money story fact month lot right study book eye job word business issue "
    "side kind head house"
)
WORDS = _SENTENCE.split()


def text(seed: int, words: int) -> str:
    pick = random.Random(seed)
    return " ".join(pick.choice(WORDS) for _ in range(words))


def requests_of(case: str, size: int) -> list[Any]:
    """`size` documents of a case, as lm-eval would ask them."""
    from lm_eval.api.instance import Instance

    def ask(kind: str, number: int, *arguments: object) -> Instance:
        return Instance(kind, {"id": number}, arguments, 0, ("bench", number, 1))

    if case == "choices":  # HellaSwag's shape
        return [
            ask("loglikelihood", doc, text(doc, 60 + doc % 30), " " + text(1000 * choice + doc, 14))
            for doc in range(size)
            for choice in range(4)
        ]
    if case == "few-shot choices":  # a fixed 5-shot head, ARC's shape
        head = text(77, 300)
        return [
            ask(
                "loglikelihood",
                doc,
                f"{head}\n\n{text(doc, 25 + doc % 10)}",
                " " + text(1000 * choice + doc, 4),
            )
            for doc in range(size)
            for choice in range(4)
        ]
    if case == "single":  # LAMBADA's shape
        return [
            ask("loglikelihood", doc, text(doc, 70 + doc % 40), " " + text(5000 + doc, 1))
            for doc in range(size)
        ]
    if case == "rolling":  # WikiText's shape, in windows of ROLLING_WINDOW tokens
        return [ask("loglikelihood_rolling", doc, text(doc, 300 + 40 * (doc % 9))) for doc in range(size)]
    if case == "long prompts":  # several at once, each as long as a batch's tokens
        return [
            ask("loglikelihood", doc, text(doc, 900 + doc), " " + text(5000 + doc, 2)) for doc in range(size)
        ]
    if case == "replies":
        settings = {"until": ["\n\n"], "max_gen_toks": 32, "do_sample": False}
        return [
            ask("generate_until", doc, text(doc, 150 + 7 * (doc % 20)), dict(settings)) for doc in range(size)
        ]
    return [ask("loglikelihood", 0, text(1, size), " " + text(2, 2))]


def sizes(documents: int, long: int) -> dict[str, int]:
    return {
        "choices": documents,
        "few-shot choices": documents,
        "single": 2 * documents,
        "rolling": documents,
        "replies": max(1, documents // 2),
        "long prompts": max(1, documents // 4),
        "long": long,
        "longer": 2 * long,
    }


def load(spec: str, device: str) -> tuple[Any, Any]:
    import torch

    if spec.startswith("random-llama:"):
        from transformers import AutoTokenizer, LlamaForCausalLM

        folder = spec.removeprefix("random-llama:")
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    else:
        from nsa_models import load_model, load_tokenizer

        model, tokenizer = load_model(spec, dtype="float32", device="cpu"), load_tokenizer(spec)
    return model.to(device).eval(), tokenizer


def write_random_llama(folder: Path, vocabulary: int, max_length: int) -> None:
    """A Llama of a few million parameters besides its embedding, and a byte-level tokenizer for it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=max_length,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_SENTENCE, text(1, 2000)], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )


# --- one measurement, in its own process
# ---------------------------------------------------------------------


def measure(
    spec: str, kind: str, case: str, size: int, batch: str, device: str, repeats: int
) -> dict[str, Any]:
    """Best time of `repeats`, peak memory beyond the loaded model, and the answers."""
    import logging
    import warnings

    import torch

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    model, tokenizer = load(spec, device)
    longest = ROLLING_WINDOW if case == "rolling" else 2**20
    if kind == "hf":
        from lm_eval.models.huggingface import HFLM

        lm: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=longest)
    else:
        from nsa_eval.engine import Engine

        rows = batch if batch == "auto" else int(batch)
        # A rolling text's own BOS is scored as lm-eval does it, or the sums couldn't be compared.
        lm = Engine(model, tokenizer, batch_size=rows, max_length=longest, parity="lm-eval")
    requests = requests_of(case, size)
    ask: Callable[..., list[Any]] = getattr(lm, requests[0].request_type)
    ask(
        requests_of(case, 1)[:1] if case not in ("long", "longer") else requests_of(case, 30),
        disable_tqdm=True,
    )
    before = _reset_peak(device)
    times, cpu = [], []
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        answers = ask(requests, disable_tqdm=True)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return {
        "seconds": min(times),
        "cpu": min(cpu),
        "mib": (_peak(device) - before) / 2**20,
        "answers": answers,
    }


def _reset_peak(device: str) -> int:
    """Memory in use now, from which the peak is counted."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: start the peak anew
    return _status("VmRSS")


def _peak(device: str) -> int:
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return _status("VmHWM")


def _status(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- the comparison
# --------------------------------------------------------------------------------------------


def run_worker(
    options: argparse.Namespace, spec: str, kind: str, case: str, size: int, batch: str
) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        job = {"spec": spec, "kind": kind, "case": case, "size": size, "batch": batch}
        job |= {"device": options.device, "repeats": options.repeats}
        subprocess.run(
            [sys.executable, __file__, "--worker", json.dumps(job), "--json", out.name],
            check=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        found: dict[str, Any] = json.loads(Path(out.name).read_text())
        return found


def assert_equal(case: str, ours: list[Any], theirs: list[Any]) -> None:
    assert len(ours) == len(theirs), case
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if isinstance(a, str):
            assert a == b, f"{case}, request {number}: {a!r} != {b!r}"
        elif isinstance(a, float):
            assert math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-3), f"{case}, request {number}: {a} != {b}"
        else:
            assert math.isclose(a[0], b[0], rel_tol=1e-5, abs_tol=1e-3), (
                f"{case}, request {number}: {a} != {b}"
            )
            assert a[1] == b[1], f"{case}, request {number}: greedy {a[1]} != {b[1]}"


def best_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The shortest times and the median peak of several rounds."""
    return {
        "seconds": min(one["seconds"] for one in found),
        "cpu": min(one["cpu"] for one in found),
        "mib": sorted(one["mib"] for one in found)[len(found) // 2],
        "answers": found[0]["answers"],
    }


def compare(options: argparse.Namespace, spec: str, label: str) -> list[dict[str, Any]]:
    lines = []
    for case, size in sizes(options.documents, options.long).items():
        if case not in options.cases:
            continue
        batch_sizes = ["1"] if case in ("long", "longer") else options.hf_batch_sizes.split(",")
        kinds = [("engine", "auto"), *(("hf", batch) for batch in batch_sizes)]
        # Rounds take turns, so that another program's load meets both sides alike.
        rounds = [
            [run_worker(options, spec, kind, case, size, batch) for kind, batch in kinds]
            for _ in range(options.rounds)
        ]
        ours, *others = [best_of(list(found)) for found in zip(*rounds, strict=True)]
        theirs = dict(zip(batch_sizes, others, strict=True))
        for found in theirs.values():
            assert_equal(case, ours["answers"], found["answers"])
        clock = "cpu" if options.device == "cpu" else "seconds"
        best = min(theirs, key=lambda batch: theirs[batch][clock])
        line = {
            "model": label,
            "case": case,
            "requests": len(ours["answers"]),
            "hf_batch": best,
            "engine_s": ours["seconds"],
            "hf_s": theirs[best]["seconds"],
            "faster": theirs[best]["seconds"] / ours["seconds"],
            "engine_cpu_s": ours["cpu"],
            "hf_cpu_s": theirs[best]["cpu"],
            "faster_cpu": theirs[best]["cpu"] / ours["cpu"],
            "engine_mib": ours["mib"],
            "hf_mib": theirs[best]["mib"],
            "hf": {
                batch: {k: found[k] for k in ("seconds", "cpu", "mib")} for batch, found in theirs.items()
            },
        }
        lines.append(line)
        print(
            f"{label:22} {case:17} {line['requests']:5} | {line['engine_s']:8.2f} s {line['hf_s']:8.2f} s "
            f"{line['faster']:6.2f}x | {line['faster_cpu']:6.2f}x | {line['engine_mib']:8.0f} MiB "
            f"{line['hf_mib']:8.0f} MiB | {best}",
            flush=True,
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", action="append", help="zoo:NAME, folder or hub id (repeatable); default: the twins"
    )
    parser.add_argument("--random-llama", type=int, metavar="VOCABULARY", help="also a random Llama")
    parser.add_argument("--documents", type=int, default=32, help="documents of the choice cases")
    parser.add_argument(
        "--long", type=int, default=1000, help="words of the `long` prompt; `longer` has twice these"
    )
    parser.add_argument("--cases", type=lambda given: given.split(","), default=list(CASES))
    parser.add_argument("--hf-batch-sizes", default="1,8")
    parser.add_argument("--repeats", type=int, default=2, help="in one process")
    parser.add_argument("--rounds", type=int, default=2, help="processes for each side, taking turns")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", metavar="OUT", help="write the figures there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        Path(options.json).write_text(json.dumps(measure(**json.loads(options.worker))))
        return
    print(
        f"{'model':22} {'case':17} {'asked':>5} | {'engine':>10} {'hf':>10} {'faster':>7} | {'by CPU':>7} | "
        f"{'engine peak':>12} {'hf peak':>12} | hf batch   (peaks beyond the loaded model)"
    )
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        if options.random_llama:
            write_random_llama(Path(folder), options.random_llama, 2**17)
            lines += compare(options, f"random-llama:{folder}", f"random-llama-{options.random_llama}")
        for spec in options.model or ([] if options.random_llama else ZOO):
            lines += compare(options, spec, spec)
    if options.json:
        Path(options.json).write_text(json.dumps(lines, indent=2))


if __name__ == "__main__":
    main()
