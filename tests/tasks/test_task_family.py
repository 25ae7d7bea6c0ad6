"""Task families: one typed object each, found by its folder. A throwaway family shows what one takes."""

import dataclasses
import json
import sys

import pytest
from lm_eval import evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

import nsa_tasks
from nsa_tasks import TaskParameterError, families, family_of, list_tasks, resolve, task_spec
from nsa_tasks._tokens import RequestTokens
from nsa_tasks._yaml import task_files

INIT = """
from dataclasses import dataclass
from nsa_tasks._parameters import Parameter, read_lengths, whole_number
from nsa_tasks.family import Params, Size, TaskFamily

@dataclass(frozen=True, slots=True, kw_only=True)
class LastParams(Params):
    lengths: tuple[int, ...]
    samples: int
    seed: int

class Last(TaskFamily):
    name = "last"
    title = "Last word"

    def parameters(self, task):
        return (
            Parameter(name="lengths", unit="tokens", help="request lengths", read=read_lengths),
            Parameter(name="samples", unit="per length", help="documents", read=whole_number(1, 1000)),
            Parameter(name="seed", unit="number", help="of the words", read=whole_number(0, 2**63 - 1)),
        )

    def check(self, task, values):
        return LastParams(task=task, **{**values, "lengths": tuple(values["lengths"])})

    def size(self, params):
        return Size(len(params.lengths) * params.samples, sum(params.lengths) * params.samples)

    def max_request_tokens(self, params):
        return max(params.lengths)

    def repeats(self, params):
        return 2

FAMILY = Last()
"""
TASK = """
from dataclasses import dataclass
import numpy as np
from nsa_tasks._random import Draw
from nsa_tasks.last import FAMILY
from nsa_tasks.sampling import document_seed
from nsa_tasks.sized_task import SizedTask
from nsa_tasks.sizing import check_filled, largest_that_fits

@dataclass
class Trial:
    words: list
    tokens: int

class LastTask(SizedTask):
    family = FAMILY

    def reply_budget(self):
        return 8

    def build(self, tokens):
        return [
            self._document(tokens, length, sample)
            for length in self.params.lengths
            for sample in range(self.params.samples)
        ]

    def _document(self, tokens, length, sample):
        draw = Draw(document_seed(self.params.seed, self.params.task, length, sample))
        words = [draw.digits(3) for _ in range(length)]

        def prompt(count):
            return f"{' '.join(words[: count + 1])} Which is the last?"

        def trial(count):
            return Trial(words[: count + 1], tokens.count(tokens.render(prompt(count), "It is")))

        fit = largest_that_fits(trial, np.arange(length) * 4.0, length - 8)
        name = f"{self.params.task}:L{length}:S{sample}"
        check_filled(name, tokens=fit.document.tokens, budget=length - 8, piece=4)
        return {
            "id": name, "input": prompt(fit.size), "gen_prefix": "It is", "answer": fit.document.words[-1],
            "length": length, "prompt_tokens": fit.document.tokens,
        }

def score(doc, results):
    return {"score": float(doc["answer"] in results[0])}
"""
YAML = """
task: last_word
class: !function nsa_tasks.last.task.LastTask
dataset_kwargs: {form: last_word}
output_type: generate_until
test_split: test
doc_to_text: input
doc_to_target: answer
gen_prefix: gen_prefix
process_results: !function nsa_tasks.last.task.score
generation_kwargs: {do_sample: false, until: []}
metric_list: [{metric: score, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0, family: last, protocol: own, summary: last, lengths: [128], samples: 3, seed: 0}
"""


@pytest.fixture
def last(tmp_path, monkeypatch):
    """A family added as one folder; nothing names it anywhere else."""
    folder = tmp_path / "last"
    folder.mkdir()
    for name, text in (("__init__.py", INIT), ("task.py", TASK), ("last_word.yaml", YAML)):
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(nsa_tasks, "__path__", [*nsa_tasks.__path__, str(tmp_path)])
    task_files.cache_clear()
    yield families()["last"]
    for name in [name for name in sys.modules if name.startswith("nsa_tasks.last")]:
        del sys.modules[name]
    task_files.cache_clear()


class Parrot(LM):
    """Answers right every second time it is asked."""

    tokenizer_name = "parrot"

    def generate_until(self, requests, disable_tqdm=False):
        words = [request.args[0].split(" Which")[0].split()[-1] for request in requests]
        return [word if i % 2 == 0 else "no" for i, word in enumerate(words)]

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def test_a_folder_is_a_family(last):
    assert last.tasks == ("last_word",)
    assert family_of("last_word") is last
    assert "last_word" in {info.name for info in list_tasks()}
    params = last.resolve("last_word", {"lengths": "1k"})
    assert (params.lengths, params.samples) == ((1024,), 3)
    assert last.size(params) == (3, 3 * 1024)


def test_its_documents_have_their_length_and_all_replies_count(last, byte_tokenizer):
    spec = task_spec("last_word", {"lengths": [128, 160]}, tokenizer=byte_tokenizer)
    loaded = TaskManager(include_defaults=False).load([spec])
    task = loaded["tasks"]["last_word"]
    task.set_config("repeats", 4)
    results = evaluate(Parrot(), loaded, bootstrap_iters=0)
    tokens = RequestTokens.load(byte_tokenizer)
    for doc in task.eval_docs:
        assert tokens.count(tokens.render(task.doc_to_text(doc), doc["gen_prefix"])) == doc["prompt_tokens"]
        assert 0 <= doc["length"] - 8 - doc["prompt_tokens"] <= 4
    assert results["results"]["last_word"]["score,none"] == 0.5
    assert [len(sample["resps"][0]) for sample in results["samples"]["last_word"]] == [4] * 6


def test_the_harness_runs_it_by_its_folder_alone(last, tmp_path):
    from nsa_eval.config import load_config
    from nsa_eval.plan import make_plan

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    data = {
        "models": [{"path": str(tmp_path / "model")}],
        "tasks": [{"task": "last_word", "lengths": ["1k"]}],
        "seed": 5,
    }
    [job] = make_plan(load_config(data)).jobs
    assert job.params.plain() == {"lengths": [1024], "samples": 3, "seed": 5}
    assert (job.samples, job.tokens) == (3, 2 * 3 * 1024)  # two replies to each document


def test_data_sets_are_files_that_a_run_depends_on(last, tmp_path, monkeypatch):
    from nsa_tasks.data import DATA_ROOT, DataSource

    source = DataSource(file="words.jsonl", how="Write it.")
    given = type(last).parameters(last, "last_word")
    monkeypatch.setattr(type(last), "parameters", lambda self, task: (*given, DATA_ROOT))
    monkeypatch.setattr(type(last), "data_sources", lambda self, params=None: (source,))
    root = tmp_path / "data"
    root.mkdir()

    class Rooted:
        task, data_root = "last_word", str(root)
        lengths, samples, seed = (128,), 1, 0

    assert last.local_files(Rooted) == ()
    (root / "words.jsonl.gz").write_bytes(b"")
    (root / "other.jsonl").write_bytes(b"")
    assert last.local_files(Rooted) == (root / "words.jsonl.gz",)
    monkeypatch.chdir(tmp_path)
    assert last.portable("last_word", {"data_root": "data"}) == {"data_root": str(root)}
    assert last.portable("last_word", {"data_root": ""}) == {"data_root": ""}


def test_a_plan_takes_a_task_whose_size_only_its_data_tells(last, monkeypatch):
    from nsa_eval.config import load_config
    from nsa_eval.plan import make_plan

    monkeypatch.setattr(type(last), "size", lambda self, params: None)
    monkeypatch.setattr("nsa_eval.config._check._check_model", lambda model: ())
    [job] = make_plan(load_config({"models": [{"path": "x"}], "tasks": [{"task": "last_word"}]})).jobs
    assert (job.samples, job.tokens) == (None, None)
    assert last.sample(job.params, 2) == (0, 1)


def test_a_folder_without_its_object_is_told_what_it_lacks(last, tmp_path):
    (tmp_path / "last" / "__init__.py").write_text("FAMILY = None\n")
    del sys.modules["nsa_tasks.last"]
    with pytest.raises(TypeError, match=r"nsa_tasks/last/__init__\.py must offer FAMILY, a TaskFamily named"):
        family_of("last_word")


ALL = [(family, task) for family in families().values() for task in family.tasks]


@pytest.mark.parametrize(("family", "task"), ALL, ids=[task for _, task in ALL])
class TestEveryTask:
    """The contract, for each task that there is: a new family is tested by being there."""

    def test_parameters_are_frozen_and_survive_json(self, family, task):
        params = resolve(task)
        with pytest.raises(dataclasses.FrozenInstanceError):
            params.task = "other"
        plain = params.plain()
        assert set(plain) == {parameter.name for parameter in family.parameters(task)}
        assert family.resolve(task, json.loads(json.dumps(plain))) == params

    def test_resolved_parameters_are_handed_on_as_they_are(self, family, task, monkeypatch):
        params = resolve(task)
        monkeypatch.setattr(type(family), "resolve", None)
        spec = task_spec(task, params, tokenizer="t")
        assert spec["params"] is params
        assert {name: spec["metadata"][name] for name in params.plain()} == params.plain()

    def test_the_normal_form_means_the_same(self, family, task):
        given = {name: family.metadata(task)[name] for name in resolve(task).plain()}
        normal = family.normal(task, given)
        assert family.normal(task, normal) == normal
        assert family.resolve(task, normal) == resolve(task)

    def test_sizes_agree(self, family, task):
        size = family.size(resolve(task))
        if size is None:
            return
        documents, tokens = size
        longest = family.max_request_tokens(resolve(task))
        assert documents > 0
        assert longest is None or longest <= tokens <= longest * documents

    def test_no_parameter_hides_a_key_of_a_configs_task(self, family, task):
        from nsa_eval.config import TaskSpec

        assert not {parameter.name for parameter in family.parameters(task)} & set(TaskSpec.model_fields)

    def test_its_command_offers_parameters_that_there_are(self, family, task):
        if family.command is not None:
            assert set(family.command.options) <= {p.name for t in family.tasks for p in family.parameters(t)}
            assert family.command.task in family.tasks


def test_parameters_of_another_task_are_refused():
    with pytest.raises(
        TaskParameterError, match="needle_multikey: was given the parameters of needle_single"
    ):
        task_spec("needle_multikey", resolve("needle_single"), tokenizer="t")


def test_one_spelling_of_what_means_the_same():
    family = families()["needle"]
    for given, normal in (
        ({"lengths": "1k,2048"}, {"lengths": [1024, 2048]}),
        ({"lengths": 512, "depths": [0, 50, 100]}, {"lengths": [512], "depths": 3}),
        ({"depths": "50%"}, {"depths": 1}),
        ({"depths": "0,50"}, {"depths": [0.0, 50.0]}),
        ({"samples": "3", "new_tokens": "auto"}, {"samples": 3, "new_tokens": "auto"}),
    ):
        assert family.normal("needle_single", given) == normal


def test_local_files_are_told_and_written_by_their_absolute_path(tmp_path, monkeypatch):
    family = families()["needle"]
    (tmp_path / "essay.txt").write_text("One. Two.")
    monkeypatch.chdir(tmp_path)
    given = {"haystack": "text:essay.txt", "samples": 1}
    assert family.local_files(family.resolve("needle_single", given)) == (tmp_path / "essay.txt",)
    portable = {"haystack": f"text:{tmp_path}/essay.txt", "samples": 1}
    assert family.portable("needle_single", given) == family.portable("needle_single", portable) == portable
    assert family.portable("needle_single", {"haystack": "noise"}) == {"haystack": "noise"}
    assert family.local_files(resolve("needle_single")) == ()
