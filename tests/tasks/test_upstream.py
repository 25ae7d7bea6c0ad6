"""Prompts of others: read where they lie, and only as the file that was checked."""

import ast
import hashlib
import json

import pytest
import yaml

from nsa_tasks import TaskDataError
from nsa_tasks.upstream import (
    constants_of,
    lm_eval_source,
    lm_eval_yaml,
    package_file,
    read_json,
    read_text,
)

GSM8K = "gsm8k/gsm8k.yaml"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_lm_evals_yaml_is_read_from_the_installed_package():
    path = package_file("lm_eval", f"tasks/{GSM8K}")
    content = lm_eval_yaml(GSM8K, sha256=sha256(path))
    assert content["task"] == "gsm8k"
    assert content["doc_to_text"] == yaml.safe_load(path.read_text())["doc_to_text"]


def test_functions_stay_names_so_that_nothing_is_imported():
    path = package_file("lm_eval", "tasks/humaneval/humaneval.yaml")  # its utils ask for a metric on import
    content = lm_eval_yaml("humaneval/humaneval.yaml", sha256=sha256(path))
    assert content["metric_list"][0]["metric"] == "utils.pass_at_k"


def test_a_changed_file_is_an_error_that_names_both_hashes(tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text('{"a": "b"}')
    found = sha256(file)
    assert read_json(file, sha256=found) == json.loads(read_text(file, sha256=found)) == {"a": "b"}
    file.write_text('{"a": "c"}')
    with pytest.raises(TaskDataError, match=f"its SHA-256 is {sha256(file)}, expected {found}"):
        read_text(file, sha256=found)


def test_missing_packages_and_files_are_named(tmp_path):
    with pytest.raises(TaskDataError, match="the package no_such_package is not installed"):
        package_file("no_such_package", "x.yaml")
    with pytest.raises(TaskDataError, match=r"the installed lm_eval has no tasks/no/such\.yaml"):
        lm_eval_yaml("no/such.yaml", sha256="0" * 64)
    with pytest.raises(TaskDataError, match=f"no {tmp_path}/x: the file whose SHA-256 is {'0' * 64}"):
        read_text(tmp_path / "x", sha256="0" * 64)


def test_text_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(TaskDataError, match="not UTF-8 text"):
        read_text(tmp_path / "x", sha256=sha256(tmp_path / "x"))


def test_constants_are_read_out_of_python_without_running_it():
    module = ast.parse(
        "import package_that_is_not_there\n"
        "A = {'text': 'one' 'two', 'n': 3}\n"
        "B = C = ('x',)\n"
        "D = A['text'] + 'computed'\n"
        "raise SystemExit\n"
    )
    assert constants_of(module) == {"A": {"text": "onetwo", "n": 3}, "B": ("x",), "C": ("x",)}


def test_lm_evals_python_files_are_checked_by_their_hash():
    with pytest.raises(TaskDataError, match=r"vt_utils\.py: another file than the one that was checked"):
        lm_eval_source("ruler/vt_utils.py", sha256="0" * 64)
    with pytest.raises(TaskDataError, match=r"has no tasks/ruler/none\.py"):
        lm_eval_source("ruler/none.py", sha256="0" * 64)
