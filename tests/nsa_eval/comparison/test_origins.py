"""Where a score comes from: protocol, data with checksum, truncation, in every table."""

import csv
import hashlib
import io
import json

import pytest

from nsa_eval.comparison import compare, to_table
from nsa_eval.material import Material
from nsa_eval.results import Origin, load_run, origin_of
from nsa_eval.sections.result import build as result_section

FAST = {"resamples": 200}


def documents(*hashes):
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()[:16]


@pytest.fixture
def origin(tmp_path, write_model, scored):
    """The origin of task `t`, of a model with this config of the task and these settings of the run."""

    def of(config, *, settings=None, audit=(), engine=None):
        samples = scored([1.0, 0.0, 1.0])
        folder = write_model(tmp_path, "one", {"t": samples}, config=config)
        content = json.loads(next(folder.glob("results_*.json")).read_text())
        content["config"] |= settings or {}
        next(folder.glob("results_*.json")).write_text(json.dumps(content))
        (tmp_path / "audit.json").write_text(json.dumps({"one": list(audit)}))
        if engine is not None:
            (tmp_path / "run.yaml").write_text(json.dumps({"engine": engine}))
        run = load_run(tmp_path)
        return origin_of(run.models, "t"), documents(*(sample["doc_hash"] for sample in samples))

    return of


def cut(*ids):
    return [{"kind": "truncated", "task": "t", "doc_id": i} for i in ids]


def test_a_data_sets_hash_counts_before_everything_else(origin):
    metadata = {"version": 1, "protocol": "official", "data_hash": "data:00ff", "data_root": "/x"}
    found, _ = origin({"metadata": metadata, "dataset_path": "a/sums"})
    assert found == Origin(protocol="official", data="data:00ff", truncation="cuts not recorded")


@pytest.mark.parametrize(
    ("config", "data", "protocol"),
    [
        ({"dataset_path": "openai/gsm8k", "dataset_name": "main"}, "openai/gsm8k (main), documents {}", ""),
        (
            {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "/home/me/x.jsonl"}}},
            "x.jsonl, documents {}",
            "",
        ),
        ({}, "documents {}", ""),
        (
            {"metadata": {"config_source": "/site/lm_eval/tasks/gsm8k/gsm8k.yaml"}},
            "documents {}",
            "lm-eval",
        ),
        ({"metadata": {"config_source": "/home/me/gsm8k.yaml"}}, "documents {}", ""),
    ],
)
def test_without_a_hash_the_documents_have_one(origin, config, data, protocol):
    found, digest = origin(config)
    assert (found.data, found.protocol) == (data.format(digest), protocol)


@pytest.mark.parametrize(
    ("settings", "metadata", "engine", "events", "text"),
    [
        ({"task_truncation": {"t": "error"}}, {}, None, (), "nothing cut"),
        ({"task_truncation": {"t": "left"}}, {}, None, cut(0, 1, 1), "left: 2 of 3 cut"),
        ({"task_truncation": {"t": "middle"}}, {}, None, (), "middle: nothing cut"),
        ({}, {}, {"truncation": "middle"}, cut(2), "middle: 1 of 3 cut"),
        (
            {},
            {"truncation": "middle, at 9 tokens"},
            {"truncation": "error"},
            (),
            "middle, at 9 tokens: nothing cut",
        ),
        ({}, {}, None, (), "cuts not recorded"),
    ],
)
def test_truncation_is_the_policy_and_what_it_cut(origin, settings, metadata, engine, events, text):
    found, _ = origin({"metadata": metadata}, settings=settings, audit=events, engine=engine)
    assert found.truncation == text


@pytest.mark.parametrize(
    ("doc", "metadata", "text"),
    [
        ({"prompt_tokens": [9, 5, 9], "cut_from": [20, None, 10]}, {}, "by the task: 2 of 3 cut"),
        ({"prompt_tokens": [9, 5, 9], "cut_from": [20, None, None]}, {}, "by the task: 1 of 3 cut"),
        ({"prompt_tokens": [9, 5, 9], "cut_from": [20] * 3}, {"truncation": "middle"}, "middle: 3 of 3 cut"),
        ({"prompt_tokens": [9, 5, 9]}, {}, "nothing cut"),
    ],
)  # fmt: skip
def test_what_a_task_cuts_by_its_own_protocol_counts_too(tmp_path, write_model, scored, doc, metadata, text):
    config = {"metadata": {"version": 1, **metadata}}
    write_model(tmp_path, "one", {"t": scored([1.0, 0.0, 1.0], **doc)}, config=config)
    (tmp_path / "run.yaml").write_text(json.dumps({"engine": {"truncation": "error"}}))
    assert origin_of(load_run(tmp_path).models, "t").truncation == text


@pytest.fixture
def two(tmp_path, write_model, scored):
    for name, scores in (("a", [1.0, 0.0] * 5), ("b", [0.0] * 10)):
        write_model(
            tmp_path,
            name,
            {"t": scored(scores)},
            config={"metadata": {"version": 1, "protocol": "official", "data_hash": "data:00ff_1"}},
        )
    return tmp_path


def test_every_format_of_a_comparison_says_it(two):
    comparison = compare(two, baseline="b", **FAST)
    assert comparison == type(comparison).model_validate_json(comparison.model_dump_json())
    assert "| t | official | data:00ff\\_1 | cuts not recorded | 10 |" in to_table(comparison, "md")
    assert r"% t: official; data:00ff\_1; cuts not recorded" in to_table(comparison, "latex")
    [row] = csv.DictReader(io.StringIO(to_table(comparison, "csv")))
    assert (row["protocol"], row["data"], row["truncation"], row["n"]) == (
        *("official", "data:00ff_1", "cuts not recorded", "10"),
    )


def test_every_row_of_a_page_says_it(two):
    [row] = result_section(Material(two)).rows
    assert (row.protocol, row.data, row.truncation, row.n) == (
        *("official", "data:00ff_1", "cuts not recorded", 10),
    )
