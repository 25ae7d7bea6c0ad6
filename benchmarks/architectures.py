"""Every causal architecture of transformers, tiny and random, through the engine and through plain forwards.

    python benchmarks/architectures.py --markdown docs/architectures.md --json architectures.json
    python benchmarks/architectures.py --only llama,rwkv

Each entry of transformers' MODEL_FOR_CAUSAL_LM_MAPPING is built from its default config, made small
(tiny_configs.py), in float32 on a CPU, in a process of its own with a time limit. The measure is one plain
uncached forward a row. Held to it are the engine's log-likelihoods and greedy replies at batch 1, at batch 8,
in pieces of 9 tokens, and with shared prefixes, and the replies of transformers' own `generate()`, a row at a
time. What has local windows is run twice, with windows of 16 tokens and of 48: the probe that chooses how a
model is fed reads 14 to 40 tokens, and rows have up to 100.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import platform
import random
import re
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tiny_configs
import torch
import transformers
from architecture_table import HEAD, counts_of, line_of
from tiny_configs import SPECIAL, VOCABULARY
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

# Sums of up to 9 log-probabilities: float32 leaves less between two ways to read a row.
ATOL = 2e-3
NEW_TOKENS = 7
MAX_LENGTH = 256
PADDING = 0
WINDOWS = (16, 48)
VARIANTS: dict[str, dict[str, Any]] = {
    "batch 1": {"batch_size": 1, "share_prefixes": False},
    "batch 8": {"batch_size": 8, "share_prefixes": False},
    "chunked": {"batch_size": 8, "share_prefixes": False, "prefill_chunk": 9},
    "shared": {"batch_size": 8, "share_prefixes": True},
}
# Below so much between the two best logits, which one wins is rounding's choice.
_TIE = 2e-4
_SMALL_STD = 0.1
_WIDER_STD = 0.3


# --- one architecture, in its own process
# -----------------------------------------------------------------------


def measure(model_type: str) -> dict[str, Any]:
    """The row of one architecture."""
    row: dict[str, Any] = {"model_type": model_type, "class": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]}
    try:
        config = tiny_configs.tiny_config(model_type)
        build(config)
    except Exception as error:
        reason = tiny_configs.NOT_ALONE.get(model_type) or sentence(error)
        return row | {"status": "not built", "note": reason}
    windows = WINDOWS if tiny_configs.has_window(config) else WINDOWS[:1]
    found = [check(tiny_configs.tiny_config(model_type, window=window)) for window in windows]
    order = ("equal", "refused", "differs", "failed")
    worst = max(found, key=lambda one: (order.index(one["status"]), one.get("difference", 0.0)))
    families = list(dict.fromkeys(one["family"] for one in found if one.get("family")))
    return row | worst | {"family": " / ".join(families), "windows": len(windows) > 1}


def check(config: PretrainedConfig) -> dict[str, Any]:
    """Everything that is asked of one config."""
    from nsa_eval.engine import Engine
    from nsa_models.families import FamilyError

    model = build(config)
    tokenizer = make_tokenizer()
    try:
        with torch.inference_mode():
            scores, replies, prompts, alone = expected(model)
    except Exception as error:
        try:
            Engine(model, tokenizer, max_length=MAX_LENGTH)._answerer.loaded.reader()
        except FamilyError as refusal:
            return {"status": "refused", "note": one_sentence(str(refusal))}
        return {"status": "failed", "note": f"a plain forward fails: {sentence(error)}"}
    notes: list[str] = []
    row: dict[str, Any] = {"status": "equal", "difference": 0.0, "by_variant": {}, "replies": 0}
    row["asked"] = len(prompts) * len(VARIANTS)
    for name, settings in VARIANTS.items():
        engine = Engine(model, tokenizer, max_length=MAX_LENGTH, **settings)
        try:
            family = engine._answerer.loaded.reader().family
            row |= {"family": family.name, "cached": family.caches}
            given = [(("", ""), context, tail) for context, tail, _ in scores]
            got = engine._loglikelihood_tokens(given)
            made = engine.generate_until(requests_of(prompts))
        except FamilyError as refusal:
            return row | {"status": "refused", "note": one_sentence(str(refusal))}
        except Exception as error:
            return row | {"status": "failed", "note": f"the engine at {name}: {sentence(error)}"}
        worst = max(abs(value - plain) for (value, _), (_, _, plain) in zip(got, scores, strict=True))
        row["by_variant"][name] = worst
        row["difference"] = max(row["difference"], worst)
        good = [
            agrees([word_id(word) for word in text.split()], reply, margins)
            for text, (reply, margins) in zip(made, replies, strict=True)
        ]
        row["replies"] += sum(good)
        if not worst <= ATOL or not all(good):
            row["status"] = "differs"
            notes.append(f"{name}: {worst:.2g} nats, {sum(good)} of {len(good)} replies")
    if alone:
        notes.append(alone)
    row["generate"], said = compare_generate(build(config), prompts, replies)
    return row | {"note": "; ".join([*notes, *([said] if said else [])])}


def build(config: PretrainedConfig) -> PreTrainedModel:
    """A random model whose predictions are far from uniform, the same at every call."""
    from nsa_models.dma import settle_ties

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    settle_ties(model)  # as the engine does: Doge's plain forward has no rule for them
    # What a config wants of replies besides (beams, forced and suppressed tokens) is no part of the question.
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0, bos_token_id=2)
    pick = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Matrices that are drawn narrow whatever the config says, or start at zero, would hide mistakes.
            narrow = parameter.dim() > 1 and parameter.is_floating_point() and "A_log" not in name
            if narrow and parameter.numel() > 1 and float(parameter.std()) < _SMALL_STD:
                parameter.normal_(0.0, _WIDER_STD, generator=pick)
    return model


def expected(model: PreTrainedModel) -> tuple[list[Any], list[Any], list[list[int]], str]:
    """Pairs with their scores, replies with margins, prompts, by plain forwards; and what these depend on."""
    pick = random.Random(5)

    def ids(count: int) -> list[int]:
        return [pick.randrange(SPECIAL, VOCABULARY) for _ in range(count)]

    head = ids(68)
    pairs = []
    for length in (24, 56):
        context = ids(length)
        pairs += [(context, ids(1)), (context, ids(5))]
    pairs += [(head + ids(9 + choice), ids(4)) for choice in range(3)]
    pairs += [(ids(64), ids(1)), (ids(65), ids(2)), (ids(90), ids(9))]
    pairs[-2][0][1] = PADDING  # some models give it no position of its own, and a text may have it
    scores = []
    for context, tail in pairs:
        found = torch.log_softmax(plain(model, (context + tail)[:-1])[-len(tail) :], -1)
        scores.append((context, tail, float(found[torch.arange(len(tail)), torch.tensor(tail)].sum())))
    prompts = [ids(length) for length in (5, 60, 64, 80)] + [head + ids(3 + more) for more in range(2)]
    prompts[1][1] = PADDING
    replies = []
    for prompt in prompts:
        new: list[int] = []
        margins: list[float] = []
        while len(new) < NEW_TOKENS and (not new or new[-1] != 1):
            best = plain(model, prompt + new)[-1].topk(2)
            new.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
        replies.append((new, margins))
    return scores, replies, prompts, _remark(model, pairs[-1][0])


def _remark(model: PreTrainedModel, ids: list[int]) -> str:
    """What is to be said of a model whose forwards over one row don't agree with each other."""
    once, again = plain(model, ids), plain(model, ids)
    if float((once - again).abs().max()) > ATOL:
        return "its forward is random: two over the same row differ"
    try:
        cached = model(input_ids=torch.tensor([ids])).logits[0].float()
    except Exception as error:
        return f"its forward with a new cache fails: {sentence(error)}"
    off = float((once - cached).abs().max())
    return f"its logits differ by {off:.2g} where a cache is made" if off > ATOL else ""


def plain(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Logits [N, V] of one forward over one row, without a cache."""
    from nsa_models.families import accepts
    from nsa_models.families._frequencies import Frequencies

    Frequencies.of(model).reset()
    given = {"use_cache": False} if accepts(model, "use_cache") else {}
    return model(input_ids=torch.tensor([ids]), **given).logits[0].float()


def compare_generate(model: PreTrainedModel, prompts: list[list[int]], replies: list[Any]) -> tuple[str, str]:
    """(replies of transformers' generate() that are those of plain forwards, what to say if not all)."""
    if not model.can_generate():
        return "", "it has no generate()"
    good = 0
    for ids, (reply, margins) in zip(prompts, replies, strict=True):
        try:
            with torch.inference_mode():
                made = model.generate(
                    torch.tensor([ids]),
                    attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                    max_new_tokens=NEW_TOKENS,
                    do_sample=False,
                    num_beams=1,
                    pad_token_id=0,
                )
        except Exception as error:
            return "fails", f"its generate() fails: {sentence(error)}"
        good += agrees(made[0, len(ids) :].tolist(), reply, margins)
    said = "" if good == len(prompts) else "its generate() differs from its own uncached forward"
    if said:
        said = tiny_configs.GENERATE.get(model.config.model_type, said)
    return f"{good} of {len(prompts)}", said


def agrees(found: list[int], reply: list[int], margins: list[float]) -> bool:
    """Whether a reply is the expected one, up to the first token whose two best logits are all but equal."""
    if found == reply:
        return True
    first = next((i for i, (a, b) in enumerate(zip(found, reply, strict=False)) if a != b), len(found))
    return first < len(reply) and margins[first] < _TIE


def sentence(error: Exception) -> str:
    return one_sentence(f"{type(error).__name__}: {error}")


def one_sentence(text: str) -> str:
    """The first sentence of a message, fit for a table's cell."""
    whole = " ".join(text.split()).replace("|", "/")
    return re.split(r"(?<=[a-z)])[.] (?=[A-Z])|; it may need", whole.removesuffix("."))[0][:240]


# --- prompts
# ----------------------------------------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Token 17 is the word t17: a prompt has the very ids that it is to have."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"t{number}": number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def word_id(word: str) -> int:
    return int(word.removeprefix("t"))


def requests_of(prompts: list[list[int]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    given = {"until": [], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    return [
        Instance(
            "generate_until",
            {"id": number},
            (" ".join(f"t{token}" for token in ids), dict(given)),
            0,
            ("bench", number, 1),
        )
        for number, ids in enumerate(prompts)
    ]


# --- all of them
# ---------------------------------------------------------------------------------------------------


def in_process(model_type: str, seconds: float) -> dict[str, Any]:
    """Measure in a forked process, so that a crash or a hang is a row."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def work() -> None:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - some models print
        send.send(measure(model_type))

    process = context.Process(target=work)
    started = time.monotonic()
    process.start()
    send.close()
    row = {"model_type": model_type, "class": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]}
    try:
        if receive.poll(seconds):
            row = receive.recv()
        else:
            row |= {"status": "failed", "note": f"no result within {seconds:g} s"}
    except EOFError:
        process.join()
        row |= {"status": "failed", "note": f"its process ended with exit code {process.exitcode}"}
    if process.is_alive():
        process.join(5)
        process.kill()
    process.join()
    return row | {"seconds": round(time.monotonic() - started, 1)}


def page(rows: list[dict[str, Any]], command: str) -> str:
    """docs/architectures.md."""
    counts = ", ".join(f"{number} {name}" for name, number in counts_of(rows).items())
    chunk = VARIANTS["chunked"]["prefill_chunk"]
    return f"""# Architectures

Every entry of transformers' `MODEL_FOR_CAUSAL_LM_MAPPING`, built tiny with random weights, float32 on a CPU.
Written by

    {command}

with Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}.

{counts}.

- *equal*: log-likelihoods of 10 requests at batch 1, at batch 8, in pieces of {chunk} tokens and with shared
  prefixes are within {ATOL:g} nats of one plain uncached forward a row, and all 6 greedy replies of each of
  the four are those of plain forwards (a token whose two best logits are within {_TIE:g} may be either).
  One request of ten and one prompt of six hold the padding's id.
- *family*: how the engine feeds it (`models/nsa_models/families/`); two where windows of {WINDOWS[0]} and of
  {WINDOWS[1]} tokens are fed differently. What is worse of the two windows is shown.
- *cached*: whether replies go on from a cache; without one every token reads the row again.
- *generate()*: greedy replies of transformers' own `generate()`, a row at a time, that are those of its own
  uncached forward. Where they aren't, the note says so; the engine follows the forward.
- *refused*: stopped before its first request, for the reason given. *not built*: `AutoModelForCausalLM` makes
  nothing that runs here, for the reason given.

{HEAD}
{chr(10).join(line_of(row) for row in rows)}
"""


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=lambda given: given.split(","), help="model types, by commas")
    parser.add_argument("--workers", type=int, default=2, choices=(1, 2))
    parser.add_argument("--seconds", type=float, default=180, help="time limit of each")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--markdown", metavar="FILE", help="write the page there")
    options = parser.parse_args()
    wanted = options.only or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    unknown = [name for name in wanted if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    if unknown:
        parser.error(f"no causal architectures of transformers {transformers.__version__}: {unknown}")
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    import nsa_eval.engine  # noqa: F401 - before the forks, which then needn't

    print(HEAD, flush=True)
    rows = []
    with ThreadPoolExecutor(options.workers) as pool:
        for row in pool.map(lambda name: in_process(name, options.seconds), wanted):
            rows.append(row)
            print(line_of(row), flush=True)
            if options.json:
                Path(options.json).write_text(json.dumps(rows, indent=1))
    print(counts_of(rows))
    if options.markdown:
        command = "python benchmarks/architectures.py " + " ".join(sys.argv[1:])
        Path(options.markdown).write_text(page(rows, command))


if __name__ == "__main__":
    main()
