"""`limit` on a grid of documents: an even share of its cells, said; lm-eval's tasks keep their first n."""

import json

import nsa_eval
from nsa_eval._tasks import load_tasks
from nsa_eval.config import load_config
from nsa_eval.plan import make_plan

YAML = """
task: listed
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "a"
metric_list: [{{metric: exact_match}}]
"""


def one_model(config):
    config["models"], config["tasks"] = config["models"][:1], config["tasks"][:1]
    del config["compare"]
    return config


def asked(home):
    [file] = (home / "one").glob("samples_*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_lengths_and_depths_share_a_small_limit_and_the_run_says_so(tiny_config, tmp_path):
    result = nsa_eval.run(one_model(tiny_config()), output=tmp_path / "run", limit=2, progress=False)
    samples = asked(tmp_path / "run")
    assert sorted(sample["doc"]["length"] for sample in samples) == [256, 320]
    assert sorted(sample["doc"]["depth"] for sample in samples) == [0.0, 100.0]
    assert [sample["doc_id"] for sample in samples] == [0, 3]  # their places in the whole grid
    [event] = [event for event in result.audit if event["kind"] == "sampled"]
    assert event["detail"].startswith("2 of 4 documents, spread evenly")
    assert any("evenly over the cells" in note for note in result.notes)
    assert result.models[0].results["config"]["limit"] == 2
    assert "spread evenly over the cells" in (tmp_path / "run" / "report.html").read_text()
    assert result.plan.samples == 2


def test_a_fraction_is_rounded_up_and_a_full_grid_is_no_sample(tiny_config, tmp_path):
    config = load_config(one_model(tiny_config()), ["limit=0.6"])
    loaded = load_tasks(config.models[0], make_plan(config).of("one"), config)
    assert loaded.limits() == {"samples": {"needle_single": [0, 1, 3]}}
    for limit in ("4", "0.99", "100"):
        config = load_config(one_model(tiny_config()), [f"limit={limit}"])
        loaded = load_tasks(config.models[0], make_plan(config).of("one"), config)
        assert loaded.limits() == {"limit": float(limit)}
        assert loaded.events == []


def test_a_larger_limit_uses_the_answers_of_a_smaller_one(tiny_config, tmp_path):
    home = tmp_path / "run"
    nsa_eval.run(one_model(tiny_config()), output=home, limit=2, progress=False)

    def stored():
        lines = (home / "store" / "responses.jsonl").read_text().splitlines()
        return sum(len(json.loads(line)) for line in lines)

    assert stored() == 2
    nsa_eval.run(one_model(tiny_config()), output=home, limit=3, overwrite=True, progress=False)
    assert len(asked(home)) == stored() == 3


def test_a_cut_prompt_is_named_by_its_place_in_the_whole_grid(tiny_config, tmp_path):
    config = one_model(tiny_config())
    config["models"][0]["max_length"] = 300
    config["tasks"][0]["truncation"] = "left"
    result = nsa_eval.run(config, output=tmp_path / "run", limit=2, progress=False)
    assert [event["doc_id"] for event in result.audit if event["kind"] == "truncated"] == [3]


def test_lm_evals_tasks_beside_a_grid_keep_their_first_documents(tiny_config, tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [json.dumps({"question": f"q{number}"}) for number in range(5)]
    (folder / "rows.json").write_text("\n".join(rows))
    (folder / "listed.yaml").write_text(YAML.format(file=folder / "rows.json"))
    config = one_model(tiny_config())
    config["tasks"].append({"task": "listed"})
    resolved = load_config(config | {"include_path": [str(folder)]}, ["limit=2"])
    loaded = load_tasks(resolved.models[0], make_plan(resolved).of("one"), resolved)
    assert loaded.limits() == {"samples": {"needle_single": [0, 3], "listed": [0, 1]}}
