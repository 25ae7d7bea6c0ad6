"""What a config says of a task beside its own parameters: repeats, truncation, which models can take it."""

import json
import random
from pathlib import Path

import pytest

import nsa_eval
from nsa_eval._limits import declared_max_length
from nsa_eval._tasks import load_tasks
from nsa_eval.config import load_config, to_plain
from nsa_eval.errors import ConfigError
from nsa_eval.plan import make_plan

YAML = """
task: {name}
custom_dataset: !function draws.documents
output_type: {kind}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{target}"
doc_to_choice: ["a", "b"]
metric_list: [{{metric: {metric}}}]
"""
DRAWS = """
import random
import datasets

def documents(**_):
    rows = [{"question": str(random.random()), "answer": "a"} for _ in range(4)]
    return {"test": datasets.Dataset.from_list(rows)}
"""


@pytest.fixture
def drawn(tmp_path):
    """A folder with lm-eval tasks that draw their documents as they are loaded."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "draws.py").write_text(DRAWS)
    for name, kind, target, metric in (
        ("drawn_replies", "generate_until", "{{answer}}", "exact_match"),
        ("drawn_choices", "multiple_choice", "0", "acc"),
    ):
        text = YAML.format(name=name, kind=kind, target=target, metric=metric)
        if kind == "generate_until":
            text = text.replace('doc_to_choice: ["a", "b"]\n', "")
        (folder / f"{name}.yaml").write_text(text)
    return str(folder)


def loaded(config, **changes):
    resolved = load_config(config | changes)
    model = resolved.models[0]
    return load_tasks(model, make_plan(resolved).of(model.name), resolved)


def test_a_tasks_own_truncation_goes_before_the_engines(tiny_config, tmp_path):
    config = tiny_config()
    config["models"] = config["models"][:1]
    del config["compare"]
    config["models"][0]["max_length"] = 300
    config["tasks"][0] |= {"lengths": [320], "truncation": "left"}
    config["tasks"][1] |= {"lengths": [288]}  # whole, under the engine's `error`
    result = nsa_eval.run(config, output=tmp_path / "run", progress=False)
    assert {event["task"] for event in result.audit} == {"needle_single"}
    assert {event["detail"].split(":")[0] for event in result.audit} == {"left"}
    metadata = {name: c["metadata"] for name, c in result.models[0].results["configs"].items()}
    assert metadata["needle_single"]["truncation"] == "left"
    assert "truncation" not in metadata["needle_multikey"]


def test_every_repeat_is_asked_kept_and_scored(tiny_config, tmp_path):
    config = tiny_config()
    config["models"], config["tasks"] = config["models"][:1], config["tasks"][1:]
    del config["compare"]
    config["tasks"][0] |= {"repeats": 3, "gen_kwargs": {"do_sample": True, "temperature": 1.0}}
    result = nsa_eval.run(config, output=tmp_path / "run", progress=False)
    assert (result.plan.samples, result.plan.tokens) == (2, 3 * 2 * 320)
    [file] = (tmp_path / "run" / "one").glob("samples_*.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    assert [len(set(sample["resps"][0])) for sample in samples] == [3, 3]  # drawn anew each time
    assert all(sample["filtered_resps"] == sample["resps"] for sample in samples)
    assert [sample["score"] for sample in samples] == [0.0, 0.0]


def test_lm_evals_tasks_say_where_repeats_do_not_count(tiny_config, drawn):
    tasks = [{"task": "drawn_replies", "repeats": 2}, {"task": "drawn_choices", "repeats": 2}]
    found = loaded(tiny_config(), tasks=tasks, include_path=[drawn])
    assert found.tasks["drawn_replies"].config.repeats == 2
    assert found.tasks["drawn_choices"].config.repeats == 1
    assert found.notes == [
        "drawn_replies: the task scores the first of 2 replies alone; all are in its samples",
        "drawn_choices: repeats 2 doesn't apply: the task asks for no replies",
    ]


def test_documents_drawn_at_load_depend_on_the_seed_alone(tiny_config, drawn):
    def questions(*names, seed=0):
        random.seed()  # whatever ran before
        tasks = [{"task": name} for name in names]
        found = loaded(tiny_config(), tasks=tasks, include_path=[drawn], seed=seed)
        return [doc["question"] for doc in found.tasks["drawn_replies"].eval_docs]

    alone = questions("drawn_replies")
    assert alone == questions("drawn_choices", "drawn_replies")
    assert alone != questions("drawn_replies", seed=1)


def test_what_a_task_does_not_set_is_left_out_of_run_yaml(tiny_config):
    config = tiny_config()
    config["tasks"][0] |= {"repeats": 2, "truncation": "middle"}
    one, two = to_plain(load_config(config))["tasks"]
    assert (one["repeats"], one["truncation"]) == (2, "middle")
    assert not {"repeats", "truncation"} & set(two)


class TestLimits:
    def test_a_request_longer_than_a_models_config_allows_is_told_without_loading(self, tiny_config):
        config = tiny_config()
        config["tasks"][0]["lengths"] = ["64k"]
        with pytest.raises(ConfigError) as caught:
            load_config(config)
        assert list(caught.value.problems) == [
            "config: tasks[0]: its longest request takes 65,536 tokens, model "
            f"{name} at most 512 (its config.json): ask for shorter ones, set the model's max_length if it "
            "can take more, or leave this model out"
            for name in ("one", "two")
        ]

    @pytest.mark.parametrize(
        "changes",
        [
            ["engine.truncation=left"],
            ["tasks.0.truncation=middle"],
            ["models.one.max_length=1m", "models.two.max_length=64k"],
        ],
    )
    def test_a_policy_or_the_models_own_max_length_settles_it(self, tiny_config, changes):
        config = tiny_config()
        config["tasks"][0]["lengths"] = ["64k"]
        assert load_config(config, changes).tasks[0].params["lengths"] == [65536]

    def test_max_length_counts_where_it_is_less(self, tiny_config):
        with pytest.raises(ConfigError, match=r"takes 320 tokens, model one at most 300 \(max_length\)"):
            load_config(tiny_config(), ["models.one.max_length=300"])

    @pytest.mark.parametrize(
        ("config", "tokens"),
        [
            ('{"max_position_embeddings": 4096}', 4096),
            ('{"n_positions": 1024, "max_position_embeddings": 4096}', 1024),
            ('{"n_ctx": 77}', 77),
            ('{"max_position_embeddings": 1200, "text_config": {"max_position_embeddings": 32768}}', 32768),
            ("{}", None),
            ('{"max_position_embeddings": "4096"}', None),
            ('{"max_position_embeddings": 0}', None),
            ("[]", None),
            ("{", None),
            ("[" * 100_000, None),
        ],
    )
    def test_limits_are_read_as_lm_eval_reads_them(self, tmp_path, config, tokens):
        (tmp_path / "config.json").write_text(config)
        assert declared_max_length(str(tmp_path)) == tokens

    def test_bundled_checkpoints_have_one_and_hub_ids_none(self):
        assert declared_max_length("zoo:twin-nsa-64k") >= 2048
        assert declared_max_length("zoo:nosuch") is None
        assert declared_max_length("organisation/model") is None


def test_lengths_are_read_alike_everywhere():
    """The kernels' benchmark may import nothing of ours, so it has words of its own for the same lengths."""
    from nsa_kernels.bench import parse_lengths
    from nsa_tasks import read_token_count

    for text in ("1", "512", "4k", "64K", "1m", "2M"):
        assert parse_lengths(text) == (read_token_count(text),) == (nsa_eval.config.parse_length(text),)
    for text in ("4 k", "k", "1.5k", "4q", "-1", "\u0664k"):
        for read in (parse_lengths, read_token_count, nsa_eval.config.parse_length):
            with pytest.raises(ValueError, match="expected"):
                read(text)


def test_files_of_a_tasks_parameters_are_written_by_their_absolute_path(tiny_config, tmp_path, monkeypatch):
    from nsa_eval.rundir import portable

    (tmp_path / "essay.txt").write_text("One. Two.")
    monkeypatch.chdir(tmp_path)
    config = tiny_config()
    config["tasks"][0]["haystack"] = "text:essay.txt"
    one, two = portable(load_config(config)).tasks
    assert one.params["haystack"] == f"text:{Path('essay.txt').resolve()}"
    assert two == load_config(config).tasks[1]
