"""Reading run directories."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from nsa_eval.errors import UserError
from nsa_eval.results import load_run


def test_reads_what_nsa_eval_writes(tmp_path: Path, write_model: Any, scored: Any) -> None:
    samples = scored(
        [1, 0], length=[512, 1024], depth=[0, 50.0], seed=[3, 4], needle=["a", "b"], outputs=[["7"], ["8"]]
    )
    write_model(tmp_path, "nsa", {"needle_single": samples})
    (tmp_path / "run.yaml").write_text("models: [{name: nsa, path: 'zoo:x', dtype: float32}]\nseed: 0\n")
    (tmp_path / "env.json").write_text('{"versions": {"torch": "2.13.0"}}')
    (tmp_path / "audit.json").write_text('[{"model": "nsa", "kind": "truncated", "task": "t", "doc_id": 1}]')
    run = load_run(tmp_path)
    model = run.models["nsa"]
    first, second = model.tasks["needle_single"].filters["none"]
    assert (first.length, first.depth, first.seed, first.needle, first.expected) == (512, 0.0, 3, "a", ("7",))
    assert (second.metrics, second.reply) == ({"score": 0.0}, "reply 1")
    assert model.config == {"name": "nsa", "checkpoint": "nsa", "path": "zoo:x", "dtype": "float32"}
    assert run.env == {"versions": {"torch": "2.13.0"}}
    assert [event["kind"] for event in model.audit] == ["truncated"]
    assert model.tasks["needle_single"].has_lengths


def test_reads_what_lm_eval_writes_by_itself(tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.model import LM
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    class Echo(LM):  # answers "yes" to every question and prefers the first choice
        def loglikelihood(self, requests: Any) -> Any:
            return [(-float(len(r.args[1])), False) for r in requests]

        def loglikelihood_rolling(self, requests: Any) -> Any:
            raise NotImplementedError

        def generate_until(self, requests: Any) -> Any:
            return ["The answer is yes." for _ in requests]

    docs = tmp_path / "docs.jsonl"
    docs.write_text(
        "".join(json.dumps({"q": f"q{i}", "a": "yes" if i % 2 else "no"}) + "\n" for i in range(4))
    )
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(docs)}},
        "test_split": "test",
    }
    regex = {
        "name": "strict",
        "filter": [{"function": "regex", "regex_pattern": "is (yes|no)"}, {"function": "take_first"}],
    }
    generated = {
        **data,
        "task": "says_yes",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}?",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"]},
        "filter_list": [{"name": "loose", "filter": [{"function": "take_first"}]}, regex],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    choices = {
        **data,
        "task": "picks_yes",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}?",
        "doc_to_target": "{{a}}",
        "doc_to_choice": ["yes", "no"],
        "metric_list": [{"metric": "acc"}],
    }
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    tracker.general_config_tracker.model_name_sanitized = "echo"
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_defaults=False)  # lm-eval's own index takes seconds
    results = lm_eval.simple_evaluate(
        Echo(), tasks=[generated, choices], bootstrap_iters=0, task_manager=manager
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results, samples)
    for task, task_samples in samples.items():
        tracker.save_results_samples(task, task_samples)

    run = load_run(tmp_path / "out")
    tasks = run.models["echo"].tasks
    assert set(tasks) == {"says_yes", "picks_yes"}
    assert set(tasks["says_yes"].filters) == {"loose", "strict"}
    strict = tasks["says_yes"].filters["strict"]
    assert [s.metrics["exact_match"] for s in strict] == [0, 1, 0, 1]
    assert [s.metrics["exact_match"] for s in tasks["says_yes"].filters["loose"]] == [0, 0, 0, 0]
    assert strict[0].reply == "The answer is yes."
    assert {s.extracted for s in strict} == {("yes",)}  # the filter's answer beside the reply
    assert {s.extracted for s in tasks["says_yes"].filters["loose"]} == {()}  # the reply itself
    assert {s.extracted for s in tasks["picks_yes"].filters["none"]} == {()}
    assert strict[0].prompt_end == "q0?"
    assert strict[0].expected == ("no",)
    assert '"until"' in strict[0].settings[0]
    # " no" is the shorter continuation, so the likelier one of this model.
    assert {s.reply for s in tasks["picks_yes"].filters["none"]} == {"no"}
    assert tasks["picks_yes"].higher_is_better["acc"] is True
    assert tasks["picks_yes"].num_fewshot == 0
    assert tasks["says_yes"].reported["exact_match,strict"] == 0.5
    assert not tasks["says_yes"].has_lengths
    assert run.config is None


def test_all_replies_what_was_taken_from_them_and_why_they_failed(
    tmp_path: Path, write_model: Any, sample_line: Any
) -> None:
    reasons = ["", "another needle's value"]
    lines = [
        sample_line({"id": 0, "reasons": reasons}, {"score": 0.5}, resps=[["a 1", "b 2"]],
                    filtered_resps=[["a 1", "b 2"]]),
        sample_line({"id": 1}, {"score": 0.0}, resps=[["a 1", "b 2"]], filtered_resps=["a 1"]),
        sample_line({"id": 2}, {"score": 0.0}, resps=[["a 1", "b 2"]], filtered_resps=[["1", "2"]]),
        sample_line({"id": 3}, {"score": 0.0}, resps=[["?"]], filtered_resps=["[invalid]"]),
    ]  # fmt: skip
    write_model(tmp_path, "m", {"t": lines})
    found = load_run(tmp_path).models["m"].tasks["t"].filters["none"]
    assert [s.replies for s in found] == [("a 1", "b 2")] * 3 + [("?",)]
    assert [s.extracted for s in found] == [(), (), ("1", "2"), ("[invalid]",)]
    assert [s.reasons for s in found] == [tuple(reasons), (), (), ()]


def test_newest_file_of_each_task_counts(tmp_path: Path, write_model: Any, scored: Any) -> None:
    write_model(tmp_path, "m", {"a": scored([0, 0]), "b": scored([0])}, date="2026-01-01T00-00-00.000000")
    write_model(tmp_path, "m", {"a": scored([1, 1])}, date="2026-01-02T00-00-00")
    tasks = load_run(tmp_path).models["m"].tasks
    assert [s.metrics["score"] for s in tasks["a"].filters["none"]] == [1, 1]
    assert [s.metrics["score"] for s in tasks["b"].filters["none"]] == [0]


def test_models_come_in_the_order_of_the_config(tmp_path: Path, write_model: Any, scored: Any) -> None:
    for name in ("a", "b", "c"):
        write_model(tmp_path, name, {"t": scored([1])})
    (tmp_path / "run.yaml").write_text("models: [{name: c}, {name: a}]")
    assert list(load_run(tmp_path).models) == ["c", "a", "b"]


def test_tasks_come_in_the_order_of_the_config(tmp_path: Path, write_model: Any, scored: Any) -> None:
    write_model(tmp_path, "m", {name: scored([1]) for name in ("a", "b", "short", "z")})
    (tmp_path / "run.yaml").write_text("tasks: [{task: z}, {task: long, alias: short}]")
    assert list(load_run(tmp_path).models["m"].tasks) == ["z", "short", "a", "b"]


def test_one_model_by_name_by_folder_and_by_path(tmp_path: Path, write_model: Any, scored: Any) -> None:
    folder = write_model(tmp_path, "org/model:v2", {"t": scored([1])})
    write_model(tmp_path, "other", {"t": scored([1])})
    assert list(load_run(f"{tmp_path}:org/model:v2").models) == ["org/model:v2"]
    assert list(load_run(f"{tmp_path}:{folder.name}").models) == ["org/model:v2"]
    assert list(load_run(folder).models) == ["org/model:v2"]
    with pytest.raises(UserError, match=r"no model 'third' there. It has: org/model:v2, other"):
        load_run(f"{tmp_path}:third")


def test_old_samples_without_metric_names_or_filters(tmp_path: Path, write_model: Any, scored: Any) -> None:
    samples = scored([1, 0])
    for sample in samples:
        for key in ("filter", "metrics", "doc_hash", "prompt_hash", "target_hash"):
            sample.pop(key)
        sample["arguments"] = [["Question?", {"until": []}]]
    folder = write_model(tmp_path, "old", {"t": scored([1, 0])})
    file = next(folder.glob("samples_*"))
    file.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    first, second = load_run(tmp_path).models["old"].tasks["t"].filters["none"]
    assert first.metrics == {"score": 1.0}
    assert first.doc_hash != second.doc_hash
    assert first.prompt_end == "Question?"


def test_metrics_that_are_not_one_number_are_left_out(
    tmp_path: Path, write_model: Any, sample_line: Any
) -> None:
    sample = sample_line({"id": 0}, {"f1": [0, 1], "acc": True, "word_perplexity": [-3.0, 4], "bypass": None})
    write_model(tmp_path, "m", {"t": [sample]})
    assert load_run(tmp_path).models["m"].tasks["t"].filters["none"][0].metrics == {"acc": 1.0}


@pytest.mark.parametrize(
    ("path", "message"),
    [("nothing", "no such directory"), ("empty", "not a run directory"), ("file.json", "a file, but")],
)
def test_wrong_paths(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.json").write_text("{}")
    with pytest.raises(UserError, match=message):
        load_run(tmp_path / path)


def test_missing_samples_say_how_to_get_them(tmp_path: Path, write_model: Any, scored: Any) -> None:
    folder = write_model(tmp_path, "m", {"t": scored([1])})
    next(folder.glob("samples_*")).unlink()
    with pytest.raises(UserError, match=r"samples of task 't' are missing .*--log_samples"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"doc_id": 1, "doc":', "line 2: damaged, expected a JSON object"),
        ("[1, 2]", "line 2: expected a JSON object, got list"),
        ('{"doc_id": 1, "doc": {}}', r"line 2: not an lm-eval sample \(no 'arguments'\)"),
        ('{"doc_id": 1, "doc": {}, "arguments": 5}', "line 2: not an lm-eval sample"),
    ],
)
def test_damaged_line_is_named(
    tmp_path: Path, write_model: Any, scored: Any, line: str, message: str
) -> None:
    folder = write_model(tmp_path, "m", {"t": scored([1, 0])})
    file = next(folder.glob("samples_*"))
    file.write_text(file.read_text().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(UserError, match=message):
        load_run(tmp_path)


def test_incomplete_and_empty_samples_are_refused(tmp_path: Path, write_model: Any, scored: Any) -> None:
    folder = write_model(tmp_path, "m", {"t": scored([1, 0, 1])})
    file = next(folder.glob("samples_*"))
    file.write_text("\n".join(file.read_text().splitlines()[:2]) + "\n")
    with pytest.raises(UserError, match=r"incomplete: 2 samples .* from 3"):
        load_run(tmp_path)
    file.write_text("")
    with pytest.raises(UserError, match="empty"):
        load_run(tmp_path)


def test_damaged_results_and_config(tmp_path: Path, write_model: Any, scored: Any) -> None:
    folder = write_model(tmp_path, "m", {"t": scored([1])})
    (tmp_path / "run.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"run.yaml: can't be read as YAML"):
        load_run(tmp_path)
    (tmp_path / "run.yaml").unlink()
    next(folder.glob("results_*")).write_text('{"results": ')
    with pytest.raises(UserError, match="damaged, expected JSON"):
        load_run(tmp_path)


def test_staging_folders_are_not_models(tmp_path: Path, write_model: Any, scored: Any) -> None:
    write_model(tmp_path, "m", {"t": scored([1])})
    write_model(tmp_path, ".partial", {"t": scored([1])})
    assert list(load_run(tmp_path).models) == ["m"]


def test_a_hidden_folder_of_lm_evals_is_a_model(tmp_path: Path, write_model: Any, scored: Any) -> None:
    # lm-eval names the folder of pretrained=./ckpt by replacing the slash.
    write_model(tmp_path, "./ckpt", {"t": scored([1])})
    assert (tmp_path / ".__ckpt").is_dir()
    assert list(load_run(tmp_path).models) == ["./ckpt"]
    assert list(load_run(f"{tmp_path}:./ckpt").models) == ["./ckpt"]


def test_a_word_count_is_not_a_grid_length(tmp_path: Path, write_model: Any, scored: Any) -> None:
    write_model(tmp_path, "m", {"t": scored([1, 0, 1], length=[4012, 533, 9120])})
    assert not load_run(tmp_path).models["m"].tasks["t"].has_lengths


def test_metrics_stand_in_the_configurations_order(tmp_path, write_model, sample_line):
    """A document that was not answered has no score: what it has instead isn't the main metric."""
    rows = [
        sample_line({"id": 0}, {"answered": 0.0}),
        sample_line({"id": 1}, {"other": 1.0, "hard": 1.0, "overall": 1.0, "answered": 1.0}),
    ]
    listed = [{"metric": name} for name in ("overall", "easy", "hard", "answered")]
    write_model(tmp_path, "one", {"t": rows}, config={"metric_list": listed})
    task = load_run(tmp_path).models["one"].tasks["t"]
    assert task.metrics("none") == ["overall", "hard", "answered", "other"]


def test_a_follow_ups_words_are_not_what_was_asked(tmp_path, write_model, sample_line):
    def row(thought, follow_ups):
        requests = {
            "gen_args_0": {"arg_0": "Think.", "arg_1": {"max_gen_toks": 8}},
            "gen_args_1": {"arg_0": f"{thought} So?", "arg_1": {"max_gen_toks": 4}},
        }
        doc = {"id": 0, **({"follow_ups": follow_ups} if follow_ups else {})}
        replies = [[thought], ["B"]]
        return sample_line(doc, {"score": 1.0}, arguments=requests, resps=replies, doc_hash="x")

    for name, thought, follow_ups in (("a", "yes", 1), ("b", "no", 1), ("c", "no", 0)):
        write_model(tmp_path, name, {"t": [row(thought, follow_ups)]})
    samples = {name: model.tasks["t"].filters["none"][0] for name, model in load_run(tmp_path).models.items()}
    assert samples["a"].requests_hash == samples["b"].requests_hash != samples["c"].requests_hash
    assert samples["a"].replies == ("yes", "B")
    assert [len(samples[name].settings) for name in "abc"] == [1, 1, 2]
