"""What may differ between two runs, and what may not."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nsa_eval.comparison import ProtocolMismatchError, compare, to_table
from nsa_eval.errors import UserError

FAST = {"resamples": 200}


def refused(path: Any) -> tuple[str, ...]:
    with pytest.raises(ProtocolMismatchError) as caught:
        compare(path, baseline="b", **FAST)
    return caught.value.differences


def test_other_documents(tmp_path: Path, write_model: Any, scored: Any) -> None:
    write_model(tmp_path, "a", {"t": scored([1, 0, 1], seed=[1, 2, 3])})
    write_model(tmp_path, "b", {"t": scored([1, 0], seed=[1, 9])})
    assert refused(tmp_path) == (
        "t: documents differ: 1 only in b (ids 1), 2 only in a (ids 1, 2), 1 in both",
    )


def test_other_tokenizers_are_named_as_the_reason(tmp_path: Path, write_model: Any, scored: Any) -> None:
    for name in ("a", "b"):
        write_model(
            tmp_path,
            name,
            {"t": scored([1], seed=[ord(name)])},
            config={"metadata": {"version": 1, "tokenizer": name}},
        )
    (line,) = refused(tmp_path)
    assert "their tokenizers differ" in line


def test_other_prompts_for_the_same_documents(tmp_path: Path, write_model: Any, sample_line: Any) -> None:
    for name, text, template in (("a", "<|user|>Q", "f00"), ("b", "Q", None)):
        lines = [sample_line({"id": i}, {"score": 1}, prompt=f"{text} {i}") for i in range(8)]
        write_model(tmp_path, name, {"t": lines}, chat_template_sha=template)
    (line,) = refused(tmp_path)
    assert (
        line
        == "t: prompts differ on 8 of 8 shared documents (ids 0, 1, 2, 3, 4, ...): chat template none / f00"
    )


def test_other_generation_settings(tmp_path: Path, write_model: Any, sample_line: Any) -> None:
    for name, temperature in (("a", 0.7), ("b", 0.0)):
        line = sample_line({"id": 0}, {"score": 1}, settings={"temperature": temperature})
        write_model(tmp_path, name, {"t": [line]}, config={"generation_kwargs": {"temperature": temperature}})
    lines = refused(tmp_path)
    assert any("generation settings" in line and "0.7" in line for line in lines)


def test_other_choices(tmp_path: Path, write_model: Any, sample_line: Any) -> None:
    for name, choice in (("a", " yes"), ("b", " maybe")):
        arguments = {"gen_args_0": {"arg_0": "Q", "arg_1": choice}}
        write_model(tmp_path, name, {"t": [sample_line({"id": 0}, {"acc": 1}, arguments=arguments)]})
    assert refused(tmp_path) == ("t: answer choices or continuations differ on 1 documents (ids 0)",)


def test_other_answers(tmp_path: Path, write_model: Any, sample_line: Any) -> None:
    for name in ("a", "b"):
        write_model(tmp_path, name, {"t": [sample_line({"id": 0}, {"acc": 1}, target_hash=name)]})
    assert refused(tmp_path) == ("t: expected answers differ on 1 shared documents (ids 0)",)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ({"versions": {"t": 1}}, {"versions": {"t": 2}}, "t: task version: 2 in b, 1 in a"),
        ({"n_shot": {"t": 5}}, {"n_shot": {"t": 0}}, "t: few-shot examples: 0 in b, 5 in a"),
        (
            {"config": {"doc_to_text": "x"}},
            {"config": {"doc_to_text": "y"}},
            't: task config doc_to_text: "y" in b, "x" in a',
        ),
        (
            {"config": {"metadata": {"haystack": "noise"}}},
            {"config": {"metadata": {"haystack": "generated"}}},
            't: task config metadata.haystack: "generated" in b, "noise" in a',
        ),
        (
            {"config": {"metadata": {"haystack": "text:/here.txt", "text_hash": "text:1"}}},
            {"config": {"metadata": {"haystack": "text:/here.txt", "text_hash": "text:2"}}},
            't: task config metadata.text_hash: "text:2" in b, "text:1" in a',
        ),
    ],
)
def test_other_task(
    tmp_path: Path, write_model: Any, scored: Any, a: dict[str, Any], b: dict[str, Any], expected: str
) -> None:
    for name, top in (("a", a), ("b", b)):
        write_model(tmp_path, name, {"t": scored([1, 0])}, **top)
    assert refused(tmp_path) == (expected,)


def test_one_text_under_two_paths_is_one_haystack(tmp_path: Path, write_model: Any, scored: Any) -> None:
    for name in ("a", "b"):
        metadata = {"haystack": f"text:/home/{name}/essay.txt", "text_hash": "text:1"}
        metadata |= {"data_root": f"/home/{name}/data", "data_hash": "data:1"}
        write_model(tmp_path, name, {"t": scored([1, 0])}, config={"metadata": metadata})
    assert len(compare(tmp_path, **FAST).rows) == 1


def _set(folder: Path, **settings: Any) -> None:
    """Change lm-eval's run settings in a results file."""
    [file] = folder.glob("results_*.json")
    content = json.loads(file.read_text())
    content["config"] |= settings
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("key", ["limit", "gen_kwargs"])
def test_other_settings(tmp_path: Path, write_model: Any, scored: Any, key: str) -> None:
    for name, value in (("a", 1), ("b", 2)):
        _set(write_model(tmp_path, name, {"t": scored([1, 0])}), **{key: value})
    assert refused(tmp_path) == (f"t: {key}: 2 in b, 1 in a",)


SEEDS = ["random_seed", "numpy_seed", "torch_seed", "fewshot_seed"]


@pytest.mark.parametrize(
    ("settings", "fewshot", "acting"),
    [
        ({"do_sample": False, "temperature": 0.7}, 0, []),
        ({"until": ["\n"]}, 0, []),
        ({"do_sample": True}, 0, SEEDS[:3]),
        ({"temperature": 0.7}, 0, SEEDS[:3]),
        ({"do_sample": False}, 5, SEEDS[3:]),
        ({"do_sample": True}, 5, SEEDS),
    ],
)
def test_a_seed_counts_only_where_it_acts(
    tmp_path: Path,
    write_model: Any,
    sample_line: Any,
    settings: dict[str, Any],
    fewshot: int,
    acting: list[str],
) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        lines = [sample_line({"id": 0}, {"score": 1}, settings=settings)]
        folder = write_model(tmp_path / name, name, {"t": lines}, n_shot={"t": fewshot})
        _set(folder, **dict.fromkeys(SEEDS, seed))
        (tmp_path / name / "run.yaml").write_text(f"seed: [{seed}, {seed}, {seed}, {seed}]")
    runs = [tmp_path / "a", tmp_path / "b"]
    if acting:
        assert refused(runs) == tuple(f"t: {key}: 2 in b, 1 in a" for key in acting)
    else:
        assert compare(runs, **FAST).rows[0].n == 1


def test_other_tasks_and_metrics(tmp_path: Path, write_model: Any, scored: Any) -> None:
    write_model(tmp_path, "a", {"t": scored([1], "acc"), "only_a": scored([1])})
    write_model(tmp_path, "b", {"t": scored([1], "f1"), "only_b": scored([1])})
    lines = refused(tmp_path)
    assert "tasks only in b: only_b" in lines
    assert "tasks only in a: only_a" in lines
    assert 't: metrics: ["f1"] in b, ["acc"] in a' in lines


def test_shared_tasks_can_be_selected(tmp_path: Path, write_model: Any, scored: Any) -> None:
    write_model(tmp_path, "a", {"t": scored([1]), "only_a": scored([1])})
    write_model(tmp_path, "b", {"t": scored([1])})
    assert [row.task for row in compare(tmp_path, tasks=["t"], **FAST).rows] == ["t"]


def _two_runs(tmp_path: Path, write_model: Any, scored: Any, a: str, b: str) -> list[Path]:
    for name, text in (("a", a), ("b", b)):
        write_model(tmp_path / name, name, {"t": scored([1, 0])})
        (tmp_path / name / "run.yaml").write_text(text)
    return [tmp_path / "a", tmp_path / "b"]


def _cut_alike(runs: list[Path]) -> None:
    event = {"kind": "truncated", "task": "t", "doc_id": 1, "before": 99, "after": 64}
    for run in runs:
        (run / "audit.json").write_text(json.dumps([event]))


def test_other_run_settings(tmp_path: Path, write_model: Any, scored: Any) -> None:
    runs = _two_runs(
        tmp_path, write_model, scored,
        "{limit: null, engine: {truncation: left}}",
        "{limit: 4, engine: {truncation: error}}",
    )  # fmt: skip
    _cut_alike(runs)
    assert refused(runs) == (
        "limit: 4 in b, none in a",
        "truncation policy: error in b, left in a",
    )


def test_prompts_cut_for_one_model_only(tmp_path: Path, write_model: Any, scored: Any) -> None:
    runs = _two_runs(
        tmp_path, write_model, scored, "{engine: {truncation: left}}", "{engine: {truncation: left}}"
    )
    event = {"model": "a", "kind": "truncated", "task": "t", "doc_id": 1, "before": 99, "after": 64}
    (tmp_path / "a" / "audit.json").write_text(json.dumps([event]))
    (line,) = refused(runs)
    assert line.startswith("t: prompts were cut differently: 0 documents of b")


def test_speed_and_machine_are_noted_not_refused(tmp_path: Path, write_model: Any, scored: Any) -> None:
    runs = _two_runs(
        tmp_path, write_model, scored,
        "{models: [{name: a, dtype: float32, backend: torch}], engine: {truncation: left, batch_size: 1}}",
        "{models: [{name: b, dtype: bfloat16, backend: triton}], engine: {truncation: left, batch_size: 8}}",
    )  # fmt: skip
    notes = compare(runs, baseline="b", **FAST).notes
    assert "dtype: bfloat16 in b, float32 in a" in notes
    assert "backend: triton in b, torch in a" in notes
    assert "engine.batch_size: 8 in b, 1 in a" in notes


def test_model_names_in_the_task_are_not_a_difference(tmp_path: Path, write_model: Any, scored: Any) -> None:
    # simple_evaluate copies model_args into every task's metadata, and functions are dumped with their
    # address.
    for name, address in (("a", "0x7f01"), ("b", "0x7f99")):
        write_model(
            tmp_path,
            name,
            {"t": scored([1, 0])},
            config={
                "metadata": {
                    "version": 1,
                    "pretrained": name,
                    "tokenizer": name,
                    "dtype": name,
                    "special": name,
                },
                "process_results": f"<function score at {address}>",
            },
            config_top=None,
        )
        file = next((tmp_path / name).glob("results_*"))
        content = json.loads(file.read_text())
        content["config"]["model_args"] = f"pretrained={name},special={name}"
        file.write_text(json.dumps(content))
    assert compare(tmp_path, **FAST).rows[0].n == 2


def test_one_message_lists_everything(tmp_path: Path, write_model: Any, scored: Any) -> None:
    write_model(tmp_path, "a", {"t": scored([1, 0])}, versions={"t": 1}, n_shot={"t": 0})
    write_model(tmp_path, "b", {"t": scored([1, 0, 1])}, versions={"t": 2}, n_shot={"t": 5})
    with pytest.raises(ProtocolMismatchError) as caught:
        compare(tmp_path, **FAST)
    text = str(caught.value)
    assert text.count("\n  - ") == 3
    assert "task version" in text
    assert "few-shot" in text
    assert "documents differ" in text


def test_a_truncation_policy_that_cut_nothing_is_noted_not_refused(
    tmp_path: Path, write_model: Any, scored: Any
) -> None:
    runs = _two_runs(
        tmp_path, write_model, scored, "{engine: {truncation: left}}", "{engine: {truncation: error}}"
    )
    comparison = compare(runs, baseline="b", **FAST)
    assert "truncation policy: error in b, left in a; nothing was cut" in comparison.notes
    _cut_alike(runs)
    assert refused(runs) == ("truncation policy: error in b, left in a",)


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [
        ("limit", 8, 8.0),
        ("gen_kwargs", None, {}),
        ("gen_kwargs", {"temperature": 1}, {"temperature": 1.0}),
    ],
)
def test_settings_of_one_meaning_are_equal(
    tmp_path: Path, write_model: Any, scored: Any, key: str, one: Any, other: Any
) -> None:
    for name, value in (("a", one), ("b", other)):
        _set(write_model(tmp_path, name, {"t": scored([1, 0])}), **{key: value})
    assert len(compare(tmp_path, **FAST).rows) == 1


def test_metadata_of_one_meaning_is_equal_and_what_differs_is_named(
    tmp_path: Path, write_model: Any, scored: Any
) -> None:
    ours = {"version": 1, "apply_chat_template": False, "config_source": "inline", "samples": 2}
    theirs = {"version": 1, "config_source": "/tasks/t.yaml", "filters": [], "samples": 3}
    for name, metadata in (("a", ours), ("b", theirs)):
        write_model(tmp_path, name, {"t": scored([1, 0])}, config={"metadata": metadata})
    assert refused(tmp_path) == ("t: task config metadata.samples: 3 in b, 2 in a",)


@pytest.fixture
def templates(tmp_path: Path, write_model: Any, sample_line: Any) -> Path:
    """Two models asked the same, one of them with its chat template."""
    for name, text, template, score in (("a", "<|user|>Q", "f00", 1), ("b", "Q", None, 0)):
        lines = [sample_line({"id": i}, {"score": score}, prompt=f"{text} {i}") for i in range(8)]
        write_model(tmp_path, name, {"t": lines}, chat_template_sha=template)
    return tmp_path


def test_a_deliberate_difference_is_allowed_and_marked_in_every_table(templates: Path) -> None:
    comparison = compare(templates, baseline="b", allow=["chat_template"], **FAST)
    [line] = comparison.allowed
    assert line.startswith("t: prompts differ on 8 of 8 shared documents")
    assert comparison.rows[0].wins == 8
    for format in ("md", "latex", "csv", "json"):
        assert "chat template none / f00" in str(to_table(comparison, format))
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(to_table(comparison))
    assert "COMPARED ALTHOUGH this differs on purpose" in console.file.getvalue()  # type: ignore[attr-defined]
    assert comparison.method[0].startswith("Compared although this differs on purpose: t: prompts differ")


def test_only_what_is_named_is_allowed(templates: Path) -> None:
    with pytest.raises(ProtocolMismatchError):
        compare(templates, baseline="b", allow=["truncation"], **FAST)
    with pytest.raises(UserError, match="--allow prompts: one may allow chat_template, system_instruction"):
        compare(templates, baseline="b", allow=["prompts"], **FAST)
    assert compare(templates, baseline="b", allow=["chat_template", "truncation"], **FAST).allowed


def test_cuts_are_allowed_by_name(tmp_path: Path, write_model: Any, scored: Any) -> None:
    runs = _two_runs(
        tmp_path, write_model, scored, "{engine: {truncation: left}}", "{engine: {truncation: middle}}"
    )
    event = {"model": "a", "kind": "truncated", "task": "t", "doc_id": 1, "before": 99, "after": 64}
    (tmp_path / "a" / "audit.json").write_text(json.dumps([event]))
    assert len(compare(runs, baseline="b", allow=["truncation"], **FAST).allowed) == 2
