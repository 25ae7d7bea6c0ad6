"""Perplexity by position against a plain forward over the whole window, by the engine and by lm-eval's hf."""

import itertools
import json

import pytest
import torch
from lm_eval import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import nsa_models
from nsa_eval.engine import Engine
from nsa_models import NSADecoderConfig, NSADecoderForCausalLM
from nsa_tasks import task_spec
from nsa_tasks._random import Draw
from nsa_tasks.haystack import generate_text

ENDS = [32, 64, 128, 256]
SHAPE = {
    "vocab_size": 600,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def llama():
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def nsa():
    blocks = {"nsa_block": 8, "nsa_stride": 4, "nsa_select_block": 8, "nsa_select_count": 4, "nsa_window": 16}
    return NSADecoderForCausalLM(NSADecoderConfig(**SHAPE, attention="nsa", **blocks))


MODELS = {"llama": llama, "nsa": nsa}


def save_tokenizer(folder, kind):
    spaced = "sentencepiece" in kind
    texts = [generate_text(Draw("t", seed), 3000) for seed in range(3)]
    if kind == "unspaced":
        texts = [text.replace(" ", "").replace("e", "天").replace("a", "地") for text in texts]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>" if spaced else None))
    metaspace, level = pre_tokenizers.Metaspace(), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = metaspace if spaced else level
    tokenizer.decoder = decoders.Metaspace() if spaced else decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>", "<unk>"],
        initial_alphabet=[] if spaced else pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if "without_bos" not in kind:
        template = "<s> $A </s>" if "eos" in kind else "<s> $A"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return texts[:2]


KINDS = ("byte_bpe", "byte_bpe_without_bos", "byte_bpe_eos", "sentencepiece", "unspaced")


@pytest.fixture(scope="module", params=KINDS)
def asked(request, tmp_path_factory):
    """(tokenizer, loader of the task's results by a model)."""
    folder = tmp_path_factory.mktemp(request.param)
    texts = save_tokenizer(folder, request.param)
    (folder / "books.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    given = {"source": f"text:{folder / 'books.jsonl'}", "buckets": ENDS, "documents": 2}

    def run(lm):
        spec = task_spec("ppl_by_position", given, tokenizer=str(folder))
        loaded = TaskManager(include_defaults=False).load([spec])
        return evaluate(lm, loaded, bootstrap_iters=0)

    return request.param, AutoTokenizer.from_pretrained(folder), run


def plain_scores(model, ids, positions):
    """Nats a token of each bucket, and of the window, from one forward over all of it."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids[:-1]])).logits[0].double()
    nats = -torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    parts = [nats[start - 1 : end - 1] for start, end in itertools.pairwise(positions)]
    return [float(part.mean()) for part in parts], float(torch.cat(parts).mean())


def window_ids(tokenizer, sample):
    last = list(sample["arguments"])[-1]
    ids = tokenizer.encode(last[0] + last[1])
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


@pytest.mark.parametrize("name", MODELS)
def test_buckets_equal_a_plain_forward_over_the_window(asked, name):
    _, tokenizer, run = asked
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    results = run(Engine(model, tokenizer))
    means = []
    for sample in results["samples"]["ppl_by_position"]:
        doc = sample["doc"]
        buckets, whole = plain_scores(model, window_ids(tokenizer, sample), doc["positions"])
        for end, value, tokens, size in zip(ENDS, buckets, doc["tokens"], doc["bytes"], strict=True):
            assert sample[f"nll@{end}"] == pytest.approx(value, abs=1e-4)
            bits = value * tokens / size * 1.4426950408889634
            assert sample[f"bits_per_byte@{end}"] == pytest.approx(bits, abs=1e-4)
        assert sample["nll"] == pytest.approx(whole, abs=1e-4)
        means.append(whole)
    figures = results["results"]["ppl_by_position"]
    mean = sum(means) / len(means)
    assert figures["nll,none"] == pytest.approx(mean, abs=1e-4)
    assert figures["perplexity,none"] == pytest.approx(2.718281828459045**mean, rel=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_lm_evals_hf_gives_the_same_numbers(asked, name):
    kind, tokenizer, run = asked
    if kind == "byte_bpe_eos":
        pytest.skip("lm-eval's hf reads the EOS that this tokenizer appends as part of a context")
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    hf = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1, max_length=256)
    ours, theirs = (run(lm)["samples"]["ppl_by_position"] for lm in (Engine(model, tokenizer), hf))
    for one, other in zip(ours, theirs, strict=True):
        assert one["doc_hash"] == other["doc_hash"]
        for metric in ("nll", "bits_per_byte", *(f"nll@{end}" for end in ENDS)):
            assert one[metric] == pytest.approx(other[metric], abs=1e-4)


def forwarded(model, call):
    """Tokens that went through the decoder while `call` ran."""
    counts = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: counts.append((args[0] if args else kwargs["input_ids"]).numel()),
        with_kwargs=True,
    )
    try:
        call()
    finally:
        handle.remove()
    return sum(counts)


@pytest.mark.parametrize(
    "ends", [[64, 128, 256], [64, 96, 128, 160, 192, 224, 256]], ids=["doubling", "even"]
)
def test_nested_contexts_are_one_pass_over_the_window(ends, tmp_path):
    texts = save_tokenizer(tmp_path, "byte_bpe")
    (tmp_path / "books.jsonl").write_text(json.dumps({"text": texts[0]}))
    given = {"source": f"text:{tmp_path / 'books.jsonl'}", "buckets": ends, "documents": 1}
    spec = task_spec("ppl_by_position", given, tokenizer=str(tmp_path))
    task = TaskManager(include_defaults=False).load([spec])["tasks"]["ppl_by_position"]
    task.build_all_requests()
    torch.manual_seed(0)
    model = llama().eval()

    def tokens(share):
        engine = Engine(model, AutoTokenizer.from_pretrained(tmp_path), batch_size=1, share_prefixes=share)
        engine.loglikelihood(task.instances[:1])  # finding out how the model is fed takes forwards too
        return forwarded(model, lambda: engine.loglikelihood(task.instances[1:]))

    window = task.eval_docs[0]["positions"][-1] - 1
    apart = sum(task.eval_docs[0]["positions"][2:]) - (len(ends) - 1)
    assert tokens(False) == apart
    assert tokens(True) == window


@pytest.mark.parametrize("name", ["twin-nsa-64k", "twin-full-64k"])
def test_the_zoo_twins_equal_their_plain_forwards(name, tmp_path):
    path = nsa_models.resolve(f"zoo:{name}")
    tokenizer = nsa_models.load_tokenizer(path)
    model = nsa_models.load_model(path, dtype="float32").eval()
    lines = [json.dumps({"text": generate_text(Draw("zoo", seed), 4000)}) for seed in range(2)]
    (tmp_path / "books.jsonl").write_text("\n".join(lines))
    given = {
        "source": f"text:{tmp_path / 'books.jsonl'}",
        "buckets": [64, 128, 256, 512, 768],
        "documents": 2,
    }
    spec = task_spec("ppl_by_position", given, tokenizer=path)
    results = evaluate(
        Engine(model, tokenizer), TaskManager(include_defaults=False).load([spec]), bootstrap_iters=0
    )
    for sample in results["samples"]["ppl_by_position"]:
        buckets, whole = plain_scores(model, window_ids(tokenizer, sample), sample["doc"]["positions"])
        assert [sample[f"nll@{end}"] for end in given["buckets"]] == pytest.approx(buckets, abs=1e-4)
        assert sample["nll"] == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_needles_answer_is_scored_as_a_plain_forward_and_hf_score_it(name, tmp_path, monkeypatch):
    save_tokenizer(tmp_path, "byte_bpe")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    monkeypatch.setitem(SHAPE, "max_position_embeddings", 512)
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    given = {"lengths": [448, 512], "depths": 2, "samples": 1}
    spec = task_spec("needle_single_nll", given, tokenizer=str(tmp_path))

    def run(lm):
        loaded = TaskManager(include_defaults=False).load([spec])
        return evaluate(lm, loaded, bootstrap_iters=0)["samples"]["needle_single_nll"]

    hf = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1, max_length=512)
    for ours, theirs in zip(run(Engine(model, tokenizer)), run(hf), strict=True):
        [(context, answer)] = ours["arguments"]
        ids = tokenizer.encode(context + answer)
        tokens = ours["doc"]["answer_tokens"]
        [nats], _ = plain_scores(model, ids, [len(ids) - tokens, len(ids)])
        assert ours["nll"] == pytest.approx(nats, abs=1e-4)
        assert ours["nll"] == pytest.approx(theirs["nll"], abs=1e-4)
        assert ours["greedy"] == theirs["greedy"]
