"""The LongBench tasks on small records written here: prompts, the cut, chat rule, data, groups, lm-eval."""

import dataclasses
import json
import zipfile

import pytest
from lm_eval import evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from nsa_eval._gen_kwargs import merged
from nsa_eval.config import generation_problems
from nsa_tasks import TaskDataError, TaskParameterError, families, group_of, resolve, task_spec
from nsa_tasks._tokens import RequestTokens
from nsa_tasks._yaml import load_task_yaml, task_files
from nsa_tasks.longbench import prompts
from nsa_tasks.longbench.cut import default_limit, middle_cut
from nsa_tasks.longbench.datasets import DATASETS, E_DATASETS, task_name
from nsa_tasks.upstream import lm_eval_yaml, package_file

for package in ("jieba", "rouge", "fuzzywuzzy"):
    pytest.importorskip(package)

TEMPLATE = "Read.\n\n{context}\n\nNow answer.\nQuestion: {input}\nAnswer:"
UNTEMPLATED = ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")
TASKS = families()["longbench"].tasks


def record(number=0, **other):
    base = {
        "input": f"Which number is {number}?",
        "context": f"Text of record {number}. " * 5,
        "answers": [f"Paragraph {number} 段落{number} Paris"],
        "length": 3000 + 2500 * number,
        "dataset": "any",
        "language": "en",
        "all_classes": ["Paris", "Rome"],
        "_id": f"r{number}",
    }
    return {**base, **other}


def write(root, dataset, records, folder="longbench/v1"):
    file = root / folder / f"{dataset}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    return file


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Three records of every dataset, and templates of our own in the place of LongBench's."""
    monkeypatch.delenv("NSA_EVAL_DATA", raising=False)
    root = tmp_path / "data"
    for name in (*DATASETS, *(f"{name}_e" for name in E_DATASETS)):
        short = {"passage_count": ["7"], "trec": ["Paris"], "lsht": ["Paris"]}
        answers = {"answers": short[key]} if (key := name.removesuffix("_e")) in short else {}
        write(root, name, [record(number, **answers) for number in range(3)])
    config = root / "longbench/v1/config"
    config.mkdir()
    (config / "dataset2prompt.json").write_text(json.dumps(dict.fromkeys(DATASETS, TEMPLATE)))
    monkeypatch.setattr(prompts, "OFFICIAL", dataclasses.replace(prompts.OFFICIAL, sha256=None))
    return root


def load(name, root, tokenizer, **params):
    given = {"data_root": str(root), "max_prompt_tokens": 3500, **params}
    spec = task_spec(name, given, tokenizer=tokenizer)
    return TaskManager(include_defaults=False).load([spec])["tasks"][name]


def test_the_official_template_is_filled_and_named(root, bpe_tokenizer):
    task = load("lb_hotpotqa", root, bpe_tokenizer)
    doc = task.eval_docs[1]
    assert task.doc_to_text(doc) == TEMPLATE.format(**record(1))
    metadata = task.config.metadata
    assert metadata["protocol"] == "official"
    assert metadata["max_prompt_tokens"] == 3500
    assert metadata["data_hash"].startswith("data:")
    assert metadata["prompt_hash"].startswith("prompt:")


def test_without_the_official_file_lm_evals_wording_is_taken_and_named(root, bpe_tokenizer):
    (root / "longbench/v1/config/dataset2prompt.json").unlink()
    task = load("lb_passage_count", root, bpe_tokenizer)
    theirs = lm_eval_yaml(
        "longbench/passage_count.yaml", sha256=prompts._LM_EVAL_SHA256["passage_count"]
    )["doc_to_text"]  # fmt: skip
    assert task.config.metadata["protocol"] == "lm-eval"
    assert task.doc_to_text(task.eval_docs[0]) == theirs.replace("{{context}}", record(0)["context"])
    with pytest.raises(TaskDataError, match=r"no .*dataset2prompt\.json.*prompts: lm-eval"):
        load("lb_passage_count", root, bpe_tokenizer, prompts="official")


def test_wording_can_be_chosen(root, bpe_tokenizer):
    for wording, protocol in (("official", "official"), ("lm-eval", "lm-eval"), ("auto", "official")):
        task = load("lb_qasper", root, bpe_tokenizer, prompts=wording)
        assert task.config.metadata["protocol"] == protocol


def test_another_file_of_templates_is_refused(root, bpe_tokenizer, monkeypatch):
    monkeypatch.setattr(prompts, "OFFICIAL", dataclasses.replace(prompts.OFFICIAL, sha256="0" * 64))
    with pytest.raises(TaskDataError, match="another file than the one that was checked"):
        load("lb_qasper", root, bpe_tokenizer)


def test_lm_evals_wordings_are_the_ones_that_were_compared():
    for name, digest in prompts._LM_EVAL_SHA256.items():
        assert "{{context}}" in lm_eval_yaml(f"longbench/{name}.yaml", sha256=digest)["doc_to_text"]
    assert set(prompts._LM_EVAL_SHA256) == set(DATASETS)


class TestCut:
    """The middle goes, on the prompt's own tokens with BOS, and text is made of what stays."""

    TEXT = "".join(chr(ord("a") + i % 26) for i in range(200))

    def test_a_prompt_of_the_limit_stays(self, byte_tokenizer):
        cut = middle_cut(RequestTokens.load(byte_tokenizer), self.TEXT, 201)  # BOS and 200 bytes
        assert (cut.text, cut.tokens, cut.kept) == (self.TEXT, 201, 201)

    @pytest.mark.parametrize("limit", [100, 101])
    def test_a_longer_one_keeps_two_halves(self, byte_tokenizer, limit):
        cut = middle_cut(RequestTokens.load(byte_tokenizer), self.TEXT, limit)
        assert cut.text == self.TEXT[:49] + self.TEXT[-50:]  # of the first half one is BOS
        assert (cut.tokens, cut.kept) == (201, 100)

    def test_an_end_token_is_part_of_the_second_half(self, slow_tokenizer):
        cut = middle_cut(RequestTokens.load(slow_tokenizer), self.TEXT, 100)
        assert cut.text == self.TEXT[:50] + self.TEXT[-49:]

    def test_halves_of_a_character_are_written_as_they_decode(self, byte_tokenizer):
        cut = middle_cut(RequestTokens.load(byte_tokenizer), "é" * 100, 100)
        assert cut.text == "é" * 24 + "\ufffd" + "é" * 25  # 49 bytes in front

    def test_it_is_lm_evals_tokens_and_text_with_a_trained_tokenizer(self, bpe_tokenizer):
        tokenizer = AutoTokenizer.from_pretrained(bpe_tokenizer)
        text = "The ship came into harbour with 12 men. " * 60
        ids = tokenizer(text)["input_ids"]
        cut = middle_cut(RequestTokens.load(bpe_tokenizer), text, 300)
        halves = [tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:150], ids[-150:])]
        assert cut.text == "".join(halves)
        assert cut.tokens == len(ids) > 300

    def test_it_comes_before_the_chat_template(self, root, bpe_tokenizer):
        task = load("lb_hotpotqa", root, bpe_tokenizer, max_prompt_tokens=64)
        tokenizer = AutoTokenizer.from_pretrained(bpe_tokenizer)
        doc = task.eval_docs[0]
        text = task.doc_to_text(doc)
        assert text != TEMPLATE.format(**record(0))
        message = [{"role": "user", "content": text}]
        sent = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        assert sent == context(task, doc, tokenizer)


@pytest.mark.parametrize(
    ("window", "limit"),
    [(4096, 3500), (8192, 7500), (16384, 15500), (32768, 31500), (65536, 63500), (131072, 127500),
     (40960, 39500), (2048, 1500), (1024, 512), (512, 256)],
)  # fmt: skip
def test_the_limit_follows_longbenchs_figures(window, limit):
    assert default_limit(window) == limit


def test_the_window_is_told_or_declared(root, bpe_tokenizer, tmp_path):
    params = {"data_root": str(root)}

    def limit_of(tokenizer, **settings):
        spec = task_spec("lb_qasper", params, tokenizer=tokenizer, **settings)
        loaded = TaskManager(include_defaults=False).load([spec])["tasks"]["lb_qasper"]
        return loaded.config.metadata["max_prompt_tokens"]

    assert limit_of(bpe_tokenizer, window=8192) == 7500
    with pytest.raises(TaskParameterError, match=r"max_prompt_tokens = 'auto'.* give max_prompt_tokens"):
        limit_of(bpe_tokenizer)
    folder = tmp_path / "model"
    AutoTokenizer.from_pretrained(bpe_tokenizer).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 4096}))
    assert limit_of(str(folder)) == 3500


def context(task, doc, tokenizer):
    def template(messages, add_generation_prompt=True):
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    return task.fewshot_context(doc, 0, apply_chat_template=True, chat_template=template)


@pytest.mark.parametrize("name", TASKS)
def test_the_chat_template_is_left_out_where_longbench_has_none(root, bpe_tokenizer, name):
    task = load(name, root, bpe_tokenizer)
    doc = task.eval_docs[0]
    sent = context(task, doc, AutoTokenizer.from_pretrained(bpe_tokenizer))
    text = task.doc_to_text(doc)
    plain = any(name.endswith(f"_{dataset}") for dataset in UNTEMPLATED)
    assert sent == (text if plain else f"<s><|user|>\n{text}\n<|assistant|>\n")
    assert task.fewshot_context(doc, 0) == text


@pytest.mark.parametrize("name", TASKS)
def test_replies_are_asked_as_longbench_asks_them(name):
    config = load_task_yaml(task_files()[name], resolve=False)
    dataset = name.removeprefix("lb_e_").removeprefix("lb_")
    theirs = lm_eval_yaml(f"longbench/{dataset}.yaml", sha256=prompts._LM_EVAL_SHA256[dataset])
    asked = config["generation_kwargs"]
    assert (
        asked["max_gen_toks"] == DATASETS[dataset].new_tokens == theirs["generation_kwargs"]["max_gen_toks"]
    )
    assert not asked["do_sample"]
    samsum = {"until": ["\n"], "min_new_tokens": 1}
    assert {key: asked.get(key) for key in samsum} == (
        samsum if dataset == "samsum" else {"until": [], "min_new_tokens": None}
    )
    assert list(generation_problems(asked)) == []
    settings, notes = merged(asked, {"max_new_tokens": 5})
    assert settings.get("min_new_tokens") == asked.get("min_new_tokens")
    assert len(notes) == 1  # of the budget's other name


def test_a_document_has_no_text_and_depends_on_no_tokenizer(root, bpe_tokenizer, byte_tokenizer):
    one = load("lb_qasper", root, bpe_tokenizer)
    two = load("lb_qasper", root, byte_tokenizer, max_prompt_tokens=100)
    assert list(one.eval_docs) == list(two.eval_docs)
    assert "Text of record" not in json.dumps(list(one.eval_docs))
    assert one.doc_to_text(one.eval_docs[0]) != two.doc_to_text(two.eval_docs[0])


class Answering(LM):
    """Answers each document as it is told to."""

    tokenizer_name = "answering"

    def __init__(self, reply):
        super().__init__()
        self.reply = reply
        self.requests = []

    def generate_until(self, requests, disable_tqdm=False):
        self.requests += [request.args for request in requests]
        return [self.reply(request.doc) for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def run(name, root, tokenizer, reply, **params):
    spec = task_spec(name, {"data_root": str(root), "max_prompt_tokens": 64, **params}, tokenizer=tokenizer)
    lm = Answering(reply)
    results = evaluate(lm, TaskManager(include_defaults=False).load([spec]), bootstrap_iters=0)
    return lm, results


@pytest.mark.parametrize("name", TASKS)
def test_right_replies_have_full_marks_and_empty_ones_none(root, bpe_tokenizer, name):
    _, right = run(name, root, bpe_tokenizer, lambda doc: doc["answers"][0])
    _, empty = run(name, root, bpe_tokenizer, lambda doc: "")
    assert right["results"][name]["score,none"] == pytest.approx(1, abs=1e-6)
    assert empty["results"][name]["score,none"] == 0


def test_columns_of_e_hold_their_own_documents(root, bpe_tokenizer):
    # Lengths 3000, 5500, 8000: one document in each column.
    _, results = run(
        "lb_e_hotpotqa", root, bpe_tokenizer, lambda doc: doc["answers"][0] if doc["length"] < 8000 else ""
    )
    scores = results["results"]["lb_e_hotpotqa"]
    assert [scores[f"{column},none"] for column in ("0-4k", "4-8k", "8k+")] == [1, 1, 0]
    assert scores["score,none"] == pytest.approx(2 / 3)


def test_samples_say_how_long_their_prompts_were(root, bpe_tokenizer):
    lm, results = run("lb_hotpotqa", root, bpe_tokenizer, lambda doc: "")
    for sample in results["samples"]["lb_hotpotqa"]:
        assert sample["doc"]["cut_from"] > 64 >= sample["doc"]["prompt_tokens"] - 2
        assert json.dumps(sample).count("Which number is") == 1  # the prompt stands in its request alone
    metadata = results["configs"]["lb_hotpotqa"]["metadata"]
    assert metadata["truncation"] == "middle, over 64 tokens"
    assert all(arguments[1]["max_gen_toks"] == 32 for arguments in lm.requests)


def test_every_reply_counts(root, bpe_tokenizer):
    task = load("lb_hotpotqa", root, bpe_tokenizer)
    doc = dict(task.eval_docs[0])
    assert task.process_results(doc, [[doc["answers"][0], ""]]) == {"score": 0.5}


def test_records_may_lie_where_the_archive_was_unpacked(root, bpe_tokenizer):
    (root / "longbench/v1/qasper.jsonl").unlink()
    write(root, "qasper", [record(8)], folder="longbench/v1/data")
    assert [doc["id"] for doc in load("lb_qasper", root, bpe_tokenizer).eval_docs] == ["r8"]
    family = families()["longbench"]
    files = family.local_files(resolve("lb_qasper", {"data_root": str(root)}))
    assert [file.name for file in files] == ["dataset2prompt.json", "qasper.jsonl"]


def test_records_come_out_of_the_hubs_archive(root, bpe_tokenizer, tmp_path, monkeypatch):
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("data/qasper.jsonl", json.dumps(record(4)))
        made.writestr("data/qasper_e.jsonl", json.dumps(record(5)))
    asked = []

    def download(repo, file, **kwargs):
        asked.append((repo, file))
        return str(archive)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for name, ids in (("lb_qasper", ["r4"]), ("lb_e_qasper", ["r5"])):
        task = load(name, "", bpe_tokenizer, prompts="lm-eval")
        assert [doc["id"] for doc in task.eval_docs] == ids
        assert task.config.metadata["data_hash"].startswith("data:")
    assert asked == [("zai-org/LongBench", "data.zip")] * 2


def test_offline_the_file_is_named_with_how_to_get_it(tmp_path, bpe_tokenizer):
    with pytest.raises(TaskDataError, match=r"no .*longbench/v1/lcc_e\.jsonl.* Unpack data\.zip"):
        load("lb_e_lcc", tmp_path, bpe_tokenizer)


@pytest.mark.parametrize(
    ("dataset", "bad", "said"),
    [
        ("qasper", {"context": 3}, "context: expected text, got int"),
        ("qasper", {"answers": []}, "answers: expected a list"),
        ("qasper", {"answers": "Paris"}, "answers: expected a list"),
        ("qasper", {"length": "long"}, "length: expected a whole number, got 'long'"),
        ("trec", {"all_classes": None}, "all_classes: expected a list"),
        ("passage_retrieval_en", {"answers": ["3"]}, "'3' names no paragraph"),
        ("passage_retrieval_zh", {"answers": ["Paragraph 3"]}, "'Paragraph 3' names no paragraph"),
    ],
)
def test_a_bad_record_is_told_by_its_line(root, bpe_tokenizer, dataset, bad, said):
    file = write(root, dataset, [record(0), record(1, **bad)])
    with pytest.raises(TaskDataError) as raised:
        load(f"lb_{dataset}", root, bpe_tokenizer)
    assert str(raised.value).startswith(f"{file}, line 2: ")
    assert said in str(raised.value)


def test_records_with_one_id_stay_apart(root, bpe_tokenizer):
    write(root, "qasper", [record(0), record(1, _id="r0")])
    task = load("lb_qasper", root, bpe_tokenizer)
    assert [doc["id"] for doc in task.eval_docs] == ["r0", "r0#2"]
    assert "record 1" in task.doc_to_text(task.eval_docs[1])


def test_parameters_out_of_range_are_refused():
    for given, said in (
        ({"max_prompt_tokens": 8}, 'expected "auto" or a number of tokens from 16'),
        ({"max_prompt_tokens": "long"}, 'expected "auto"'),
        ({"prompts": "mine"}, "expected one of auto, official, lm-eval"),
    ):
        with pytest.raises(TaskParameterError, match=said):
            resolve("lb_qasper", given)


def test_sizes_are_those_of_the_full_sets():
    family = families()["longbench"]
    params = resolve("lb_lcc", {"max_prompt_tokens": 3500})
    assert family.size(params) == (500, 500 * 3564)
    assert family.max_request_tokens(params) == 3564
    assert family.max_request_tokens(resolve("lb_lcc")) is None


def test_groups_hold_what_their_tables_hold():
    names = {group: [leaf.task for leaf in group_of(group).leaves()] for group in
             ("longbench", "longbench_e", "longbench_nsa")}  # fmt: skip
    assert names["longbench"] == [task_name(dataset) for dataset in DATASETS]
    assert names["longbench_e"] == [task_name(dataset, e=True) for dataset in E_DATASETS]
    paper = ("multifieldqa_en", "multifieldqa_zh", "qasper", "hotpotqa", "2wikimqa", "gov_report", "dureader",
             "passage_retrieval_en", "passage_retrieval_zh", "lcc")  # fmt: skip
    assert names["longbench_nsa"] == [task_name(dataset) for dataset in paper]
    assert set(TASKS) == {*names["longbench"], *names["longbench_e"]}


@pytest.mark.parametrize(
    ("dataset", "same_prompt"),
    [("qasper", True), ("vcsum", True), ("passage_retrieval_zh", True), ("trec", True), ("samsum", False)],
)
def test_lm_evals_own_task_on_the_same_records(root, bpe_tokenizer, dataset, same_prompt, tmp_path):
    """Asked and scored alike but for white space in prompts, and for newline stops that LongBench hasn't."""
    file = tmp_path / "records.json"  # its templates read the question from another field
    file.write_text(json.dumps([{**record(n), "question": record(n)["input"]} for n in range(3)]))
    (root / "longbench/v1/config/dataset2prompt.json").write_text(json.dumps(official_like(dataset)))
    folder = package_file("lm_eval", f"tasks/longbench/{dataset}.yaml").parent
    member = {
        "task": f"longbench_{dataset}",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(file)}},
    }
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    write(root, dataset, [record(number) for number in range(3)])
    asked, scores = [], []
    for loaded in (
        manager.load([{"group": "theirs", "task": [member]}]),
        {"tasks": {"ours": load(f"lb_{dataset}", root, bpe_tokenizer)}},
    ):
        lm = Answering(lambda doc: doc["answers"][0].split(" ")[0] + " 3")
        results = evaluate(lm, loaded["tasks"], bootstrap_iters=0)
        asked.append(lm.requests)
        [row] = [row for row in results["results"].values() if "score,none" in row]
        scores.append(row["score,none"])
    assert scores[0] == scores[1]
    for theirs, ours in zip(*asked, strict=True):
        assert (theirs[0] == ours[0]) is same_prompt
        assert theirs[0].split() == ours[0].split()
        assert theirs[1]["max_gen_toks"] == ours[1]["max_gen_toks"]
        assert (theirs[1]["until"] == ours[1]["until"]) is (dataset != "trec")


def official_like(dataset):
    """A template with the words of lm-eval's, one newline more before samsum's input, as LongBench has it."""
    sha256 = prompts._LM_EVAL_SHA256[dataset]
    text = lm_eval_yaml(f"longbench/{dataset}.yaml", sha256=sha256)["doc_to_text"]
    text = text.replace("{{context}}", "{context}").replace("{{question}}", "{input}")
    return {
        dataset: text.replace("{context}\n{input}", "{context}\n\n{input}") if dataset == "samsum" else text
    }


def test_a_groups_score_counts_data_sets_alike(root, bpe_tokenizer):
    write(root, "gov_report", [record(9, answers=["Rome fell"])])  # one document beside three of each other
    manager = TaskManager(include_path=str(task_files()["lb_lcc"].parent), include_defaults=False)
    manager.metadata = {"tokenizer": bpe_tokenizer, "data_root": str(root), "max_prompt_tokens": 64}
    manager._factory._meta = manager.metadata
    results = evaluate(
        Answering(lambda doc: doc["answers"][0] if doc["dataset"] == "gov_report" else ""),
        manager.load(["longbench_nsa"]),
        bootstrap_iters=0,
    )
    assert results["results"]["longbench_nsa"]["score,none"] == pytest.approx(0.1, abs=1e-6)
