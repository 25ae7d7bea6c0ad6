"""Windows of perplexity by position: cuts change no token, buckets fit together, texts are the first ones."""

import itertools
import json
import random
import subprocess
import sys

import pytest
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from nsa_tasks import TaskDataError, TaskParameterError, _kept, resolve, task_spec
from nsa_tasks._random import Draw
from nsa_tasks._tokens import RequestTokens
from nsa_tasks.haystack import generate_text
from nsa_tasks.ppl.windows import MOST_BACK, ShortTextError, WindowCutter

ENDS = (32, 64, 128, 256, 512)
_SYLLABLES = "山水天地人心日月風雲春秋東西南北大小上下明暗古今花鳥石火木金土"


def prose(seed, characters=4000):
    return generate_text(Draw("ppl", seed), characters)


def unspaced(seed, characters=2500):
    pick = random.Random(seed)
    return "".join(
        pick.choice(_SYLLABLES) + ("。" if pick.random() < 0.06 else "") for _ in range(characters)
    )


def _train(model, before, after, texts, size, *, unigram=False):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = before, after
    kind = trainers.UnigramTrainer if unigram else trainers.BpeTrainer
    extra = {"unk_token": "<unk>"} if unigram else {}
    trainer = kind(
        vocab_size=size,
        special_tokens=["<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if isinstance(after, decoders.ByteLevel) else [],
        show_progress=False,
        **extra,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def byte_bpe(texts):
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _train(models.BPE(), level, decoders.ByteLevel(), texts, 700)


def sentencepiece_bpe(texts):
    return _train(models.BPE(unk_token="<unk>"), pre_tokenizers.Metaspace(), decoders.Metaspace(), texts, 700)


def unigram(texts):
    return _train(
        models.Unigram(), pre_tokenizers.Metaspace(), decoders.Metaspace(), texts, 500, unigram=True
    )


def unsplit_bpe(texts):
    """One word is the whole text, as in Llama 2's file: merges may reach over any cut."""
    from tokenizers import normalizers

    tokenizer = sentencepiece_bpe(texts)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    return tokenizer


TOKENIZERS = {
    "byte_bpe": (byte_bpe, prose, "bos"),
    "byte_bpe_without_bos": (byte_bpe, prose, ""),
    "byte_bpe_with_eos": (byte_bpe, prose, "bos eos"),
    "sentencepiece": (sentencepiece_bpe, prose, "bos"),
    "sentencepiece_without_bos": (sentencepiece_bpe, prose, ""),
    "unigram": (unigram, prose, "bos"),
    "unsplit": (unsplit_bpe, prose, "bos"),
    "unspaced": (byte_bpe, unspaced, "bos"),
    "unspaced_unigram": (unigram, unspaced, ""),
}


@pytest.fixture(scope="module", params=[*TOKENIZERS, "slow"])
def case(request, tmp_path_factory):
    """(folder of a tokenizer, texts)."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "slow":
        ByT5Tokenizer().save_pretrained(folder)
        return str(folder), [prose(7), prose(8)]
    make, text, around = TOKENIZERS[request.param]
    tokenizer = make([text(seed) for seed in range(4)])
    template = f"{'<s> ' if 'bos' in around else ''}$A{' </s>' if 'eos' in around else ''}"
    if around:
        named = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>") if name in template]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return str(folder), [text(7), text(8)]


class Encoder(TemplateLM):
    """lm-eval's own way from texts to token ids, and nothing else."""

    def __init__(self, path):
        super().__init__()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.asked = []

    eot_token_id = property(lambda self: self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self):
        return self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.eot_token_id

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer.encode(string, **given)

    def _loglikelihood_tokens(self, requests, **kwargs):
        self.asked += [(context, tail) for _, context, tail in requests]
        return [(-1.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError

    generate_until = loglikelihood_rolling


def write_books(folder, texts, name="books.jsonl"):
    path = folder / name
    lines = [json.dumps({"id": f"b{number}", "text": text}) for number, text in enumerate(texts)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"text:{path}"


def load(path, source, ends=ENDS, documents=2, **params):
    given = {"source": source, "buckets": list(ends), "documents": documents, **params}
    spec = task_spec("ppl_by_position", given, tokenizer=path)
    return TaskManager(include_defaults=False).load([spec])["tasks"]["ppl_by_position"]


def test_every_cut_encodes_to_the_windows_own_tokens(case):
    path, texts = case
    tokens = RequestTokens.load(path)
    cutter = WindowCutter(tokens)
    for text in texts:
        window = cutter.cut(text, ENDS)
        whole = cutter.ids(text[: window.cuts[-1]])
        assert len(whole) == window.positions[-1]
        for character, position in zip(window.cuts, window.positions, strict=True):
            head = text[:character]
            assert head == head.rstrip()  # lm-eval would move it over
            assert cutter.ids(head) == whole[:position] if head else cutter.starts == whole[:position]
        for start, end, position in zip((0, *ENDS), ENDS, window.positions[1:], strict=False):
            assert end - min(MOST_BACK, (end - start) // 2) <= position <= end


def test_models_that_count_alike_take_the_same_windows_and_others_their_own(
    bpe_tokenizer, byte_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(_kept, "_rows", type(_kept._rows)())
    read = []
    cut = WindowCutter.cut
    monkeypatch.setattr(WindowCutter, "cut", lambda *given: read.append(given) or cut(*given))
    texts = [generate_text(Draw("kept", i), 6000) for i in range(3)]
    source = write_books(tmp_path, texts[:2])
    first, again = (load(bpe_tokenizer, source) for _ in range(2))
    assert len(read) == 2
    assert list(again.eval_docs) == list(first.eval_docs)
    assert again._pieces == first._pieces
    load(byte_tokenizer, source)
    assert len(read) == 4
    load(bpe_tokenizer, source, ends=ENDS[:1])
    assert len(read) == 6
    load(bpe_tokenizer, write_books(tmp_path, texts[1:]))
    assert len(read) == 8


def test_lm_eval_scores_each_token_once_after_all_that_stand_before_it(case, tmp_path):
    path, texts = case
    if "byte_bpe_with_eos" in path or "slow" in path:
        pytest.skip("lm-eval's own encoding puts EOS into the middle: the engine leaves it out")
    task = load(path, write_books(tmp_path, texts))
    task.build_all_requests()
    model = Encoder(path)
    model.loglikelihood(task.instances, disable_tqdm=True)
    for number, doc in enumerate(task.eval_docs):
        asked = model.asked[number * len(ENDS) : (number + 1) * len(ENDS)]
        whole = asked[-1][0] + asked[-1][1]
        read = doc["positions"][0]
        assert read == len(asked[0][0])
        for (context, tail), tokens in zip(asked, doc["tokens"], strict=True):
            assert context == whole[:read]
            assert tail == whole[read : read + tokens]
            read += tokens
        assert read == len(whole) == doc["positions"][-1] <= ENDS[-1]


def test_pieces_are_the_text_and_their_bytes_are_counted(case, tmp_path):
    path, texts = case
    task = load(path, write_books(tmp_path, texts))
    task.build_all_requests()
    for number, doc in enumerate(task.eval_docs):
        asked = [one.args for one in task.instances[number * len(ENDS) : (number + 1) * len(ENDS)]]
        assert asked[-1][0] + asked[-1][1] == texts[number][: len("".join(asked[-1]))]
        assert doc["bytes"] == [len(piece.encode()) for _, piece in asked]
        for (context, piece), (following, _) in itertools.pairwise(asked):
            assert context + piece == following
        assert (asked[0][0] == "") == (doc["given"] == 0)


def test_without_bos_the_first_token_is_given_and_not_scored(tmp_path, byte_tokenizer):
    fast = AutoTokenizer.from_pretrained(byte_tokenizer)
    text = write_books(tmp_path, ["".join(prose(1).split())])
    with_bos = load(byte_tokenizer, text, (64, 128), 1).eval_docs[0]
    fast.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    fast.save_pretrained(tmp_path / "plain")
    without = load(str(tmp_path / "plain"), text, (64, 128), 1).eval_docs[0]
    assert (with_bos["given"], with_bos["starts_with"], with_bos["positions"]) == (0, "<s>", [1, 64, 128])
    assert (without["given"], without["starts_with"], without["positions"]) == (1, "", [1, 64, 128])
    assert (with_bos["tokens"], without["tokens"]) == ([63, 64], [63, 64])
    assert with_bos["bytes"] == [63, 64]


def test_the_first_texts_that_are_long_enough_are_taken(tmp_path, byte_tokenizer):
    texts = [prose(1)[:100], prose(2), prose(3)[:126], prose(4), prose(5)]
    task = load(byte_tokenizer, write_books(tmp_path, texts), (64, 128), 2)
    assert [doc["id"] for doc in task.eval_docs] == ["b1", "b3"]
    with pytest.raises(
        TaskDataError, match=r"3 of the 5 documents .* have 128 tokens or more, and 4 are asked"
    ):
        load(byte_tokenizer, write_books(tmp_path, texts), (64, 128), 4)
    everyone = load(byte_tokenizer, write_books(tmp_path, texts), (64, 128), "all")
    assert [doc["id"] for doc in everyone.eval_docs] == ["b1", "b3", "b4"]
    with pytest.raises(TaskDataError, match="and one is needed: take shorter buckets"):
        load(byte_tokenizer, write_books(tmp_path, texts), (64, 128_000), "all")


def test_a_text_that_ends_too_soon_is_told_by_its_tokens(byte_tokenizer):
    with pytest.raises(ShortTextError) as error:
        WindowCutter(RequestTokens.load(byte_tokenizer)).cut("a" * 50, (64,))
    assert error.value.args[0] == 51


def test_texts_of_a_folder_are_documents_of_their_own(tmp_path, byte_tokenizer):
    (tmp_path / "in").mkdir()
    for number in range(2):
        (tmp_path / "in" / f"{number}.txt").write_text(f"\n\n {prose(number)}", encoding="utf-8")
    task = load(byte_tokenizer, f"text:{tmp_path / 'in'}", (64, 128), 2)
    assert [doc["id"] for doc in task.eval_docs] == ["0.txt", "1.txt"]
    assert task.config.metadata["text_hash"].startswith("text:")
    assert "data_root" not in task.config.metadata


def test_documents_are_the_same_in_another_process(tmp_path, byte_tokenizer):
    source = write_books(tmp_path, [prose(1), prose(2)])
    program = (
        "import json, sys; from lm_eval.tasks import TaskManager; from nsa_tasks import task_spec\n"
        "s = task_spec('ppl_by_position', {'source': sys.argv[2], 'buckets': [64, 128], 'documents': 2},"
        " tokenizer=sys.argv[1])\n"
        "t = TaskManager(include_defaults=False).load([s])['tasks']['ppl_by_position']\n"
        "print(json.dumps([dict(d) for d in t.eval_docs]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, byte_tokenizer, source], capture_output=True, text=True, check=True
    )
    here = [dict(doc) for doc in load(byte_tokenizer, source, (64, 128)).eval_docs]
    assert json.loads(done.stdout.splitlines()[-1]) == here


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"buckets": [64, 32]}, "rise by at least 8 tokens"),
        ({"buckets": [64, 68]}, "rise by at least 8 tokens"),
        ({"buckets": "soon"}, 'expected "auto" or token positions'),
        ({"buckets": [64, 64]}, "a length stands there twice"),
        ({"source": "books"}, "expected pg19, or text:PATH"),
        ({"source": "text:/no/such"}, "no such file or folder"),
        ({"documents": 0}, "a whole number from 1"),
        ({"bucket": [64]}, r"unknown parameter 'bucket'"),
    ],
)
def test_what_cannot_be_used_is_told(given, message):
    with pytest.raises(TaskParameterError, match=message):
        resolve("ppl_by_position", given)


def test_automatic_buckets_double_up_to_the_window(tmp_path, byte_tokenizer):
    source = write_books(tmp_path, [prose(1)])
    given = {"source": source, "documents": 1}
    spec = task_spec("ppl_by_position", given, tokenizer=byte_tokenizer, window=1024)
    task = TaskManager(include_defaults=False).load([spec])["tasks"]["ppl_by_position"]
    assert task.eval_docs[0]["buckets"] == [16, 32, 64, 128, 256, 512, 1024]
    spec = task_spec("ppl_by_position", given, tokenizer=byte_tokenizer)
    with pytest.raises(TaskParameterError, match="buckets = auto: no window is named for this model"):
        TaskManager(include_defaults=False).load([spec])


def test_pg19_that_is_not_there_names_the_file(tmp_path, byte_tokenizer):
    spec = task_spec(
        "ppl_by_position", {"data_root": str(tmp_path), "buckets": [64]}, tokenizer=byte_tokenizer
    )
    with pytest.raises(TaskDataError, match=r"no .*corpus/pg19_test\.jsonl\. Put PG-19's test split there"):
        TaskManager(include_defaults=False).load([spec])
