"""A task's documents are made once for all models that count tokens alike, and anew for every other."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from nsa_tasks import _kept, resolve, task_spec
from nsa_tasks._tokens import RequestTokens
from nsa_tasks.needle import build

GRID = {"lengths": [300, 400], "depths": 2, "samples": 1}


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(_kept, "_rows", type(_kept._rows)())


@pytest.fixture
def made(monkeypatch):
    """Ids of the documents that are made, in order."""
    found = []
    document = build.document

    def counted(*arguments):
        row = document(*arguments)
        found.append(row["id"])
        return row

    monkeypatch.setattr(build, "document", counted)
    return found


def copy(tokenizer, folder, **changes):
    """Another model's folder with the same tokenizer, or one changed in its JSON."""
    shutil.copytree(tokenizer, folder)
    path = Path(folder) / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(folder)


def load(tokenizer, parameters=GRID, task="needle_single", **options):
    spec = task_spec(task, parameters, tokenizer=tokenizer, **options)
    [loaded] = TaskManager(include_defaults=False).load([spec])["tasks"].values()
    return loaded


def texts(task):
    return [task.doc_to_text(doc) for doc in task.dataset["test"]]


def test_two_models_with_one_tokenizer_share_them(bpe_tokenizer, tmp_path, made):
    first = load(bpe_tokenizer)
    assert len(made) == 4
    second = load(copy(bpe_tokenizer, tmp_path / "twin"))
    assert len(made) == 4
    assert texts(second) == texts(first)
    assert second.dataset["test"].to_list() == first.dataset["test"].to_list()


@pytest.mark.parametrize(
    "parameters",
    [
        {**GRID, "seed": 7},
        {**GRID, "lengths": [300]},
        {**GRID, "haystack": "noise"},
        {**GRID, "new_tokens": 20},
    ],
)
def test_other_parameters_are_other_documents(bpe_tokenizer, made, parameters):
    load(bpe_tokenizer)
    load(bpe_tokenizer, parameters)
    fresh = build.documents(resolve("needle_single", parameters), RequestTokens.load(bpe_tokenizer))
    assert len(made) == 4 + 2 * len(fresh)


def test_another_text_under_the_same_name_is_read_anew(bpe_tokenizer, tmp_path, made):
    words = "The keeper of lamp {} wrote of storms to the harbour below the hill."
    path = tmp_path / "book.txt"
    for name in ("x", "y"):
        path.write_text(" ".join(words.format(name * (1 + i % 9)) for i in range(600)))
        task = load(bpe_tokenizer, {**GRID, "haystack": f"text:{path}"})
        assert f"{name}{name}" in texts(task)[0]
    assert len(made) == 8


def test_another_tokenizer_counts_anew(bpe_tokenizer, byte_tokenizer, made):
    load(bpe_tokenizer)
    load(byte_tokenizer, {**GRID, "lengths": [1500]})
    load(bpe_tokenizer, {**GRID, "lengths": [1500]})
    assert len(made) == 4 + 2 + 2


@pytest.mark.parametrize(
    "change",
    [
        {"add_bos_token": False},
        {"system_instruction": "Answer."},
        {"chat_template": lambda messages, **_: "", "template_source": None},
    ],
)
def test_whatever_changes_a_request_changes_the_identity(bpe_tokenizer, change):
    tokens = RequestTokens.load(bpe_tokenizer)
    assert tokens.identity() == RequestTokens.load(bpe_tokenizer).identity()
    assert tokens.identity() is not None
    assert replace(tokens, **change).identity() != tokens.identity()


def test_a_tokenizer_with_other_rules_is_another(bpe_tokenizer, tmp_path):
    changed = copy(bpe_tokenizer, tmp_path / "changed", normalizer={"type": "Lowercase"})
    assert RequestTokens.load(changed).identity() != RequestTokens.load(bpe_tokenizer).identity()


def test_a_chat_template_is_known_with_its_day_alone(bpe_tokenizer):
    def identity(day):
        return RequestTokens.load(bpe_tokenizer, apply_chat_template=True, template_date=day).identity()

    assert identity(None) is None  # today's: another tomorrow
    assert identity("2026-01-01") == identity("2026-01-01") != identity("2026-01-02")
    assert identity("2026-01-01") != RequestTokens.load(bpe_tokenizer).identity()


def test_a_template_prints_special_tokens_that_count_for_nothing_else(bpe_tokenizer, tmp_path):
    """A base model and its chat model may have one tokenizer.json, one template, and another end token."""
    found = []
    for name, end in (("base", "<s>"), ("chat", "</s>")):
        shutil.copytree(bpe_tokenizer, tmp_path / name)
        path = tmp_path / name / "tokenizer_config.json"
        settings = {**json.loads(path.read_text()), "eos_token": end}
        path.write_text(json.dumps(settings))
        tokens = RequestTokens.load(
            str(tmp_path / name), apply_chat_template=True, template_date="2026-01-01"
        )
        found.append((tokens.tokenizer.backend_tokenizer.to_str(), tokens.identity()))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_a_tokenizer_in_python_is_asked_each_time(slow_tokenizer, made):
    assert RequestTokens.load(slow_tokenizer).identity() is None
    for _ in range(2):
        load(slow_tokenizer, {**GRID, "lengths": [1500]})
    assert len(made) == 4


def test_what_a_task_does_to_its_rows_stays_its_own(bpe_tokenizer):
    first = load(bpe_tokenizer)
    expected = texts(first)
    kept = [row["input"] for rows, _ in _kept._rows.values() for row in rows]
    assert kept == expected  # the task took `input` out of rows of its own
    assert texts(load(bpe_tokenizer)) == expected


def test_the_oldest_go_when_the_texts_are_too_many(bpe_tokenizer, made, monkeypatch):
    grids = [{**GRID, "seed": seed} for seed in range(3)]
    load(bpe_tokenizer, grids[0])
    [(_, size)] = _kept._rows.values()
    monkeypatch.setattr(_kept, "_MOST_CHARACTERS", int(2.5 * size))
    load(bpe_tokenizer, grids[1])
    load(bpe_tokenizer, grids[0])  # the newest again
    load(bpe_tokenizer, grids[2])
    assert len(made) == 12
    load(bpe_tokenizer, grids[0])
    assert len(made) == 12
    load(bpe_tokenizer, grids[1])
    assert len(made) == 16


def test_one_too_large_for_all_room_is_used_and_kept_alone(bpe_tokenizer, made, monkeypatch):
    monkeypatch.setattr(_kept, "_MOST_CHARACTERS", 10)
    for _ in range(2):
        load(bpe_tokenizer)
    assert len(made) == 4
