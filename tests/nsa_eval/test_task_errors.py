# ruff: noqa: E501  (a case a line)
"""Tasks of lm-eval's with something wrong in their YAML, data, code or documents: said by file and line, exit 2."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import nsa_eval
from nsa_eval._task_errors import loading_error
from nsa_eval._tasks import load_tasks
from nsa_eval.cli import main
from nsa_eval.config import load_config
from nsa_eval.plan import make_plan

ROW = {"q": "Which?", "choices": ["x", "y"], "a": 0}
GOOD = """
task: t
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: a
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1}
"""


def rows(*found: Any) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in found)


BROKEN: dict[str, tuple[dict[str, str], str]] = {
    "a bad row": ({"data.jsonl": rows(ROW, '{"q": ')}, "data.jsonl, line 2: not JSON"),
    "a row of another kind": ({"data.jsonl": rows(ROW, [1])}, "data.jsonl, line 2: expected an object, got list"),
    "an empty file": ({"data.jsonl": ""}, "its data file is empty: "),
    "no file": ({"t.yaml": GOOD.replace("DATA", "/nowhere/x.jsonl")}, "its data file isn't there: /nowhere/x.jsonl"),
    "a missing column": (
        {"t.yaml": GOOD.replace("{{q}}", "{{nope}}")},
        "t.yaml: doc_to_text of its first document: UndefinedError: 'nope' is undefined",
    ),
    "a document of other types": ({"data.jsonl": rows(ROW, ROW | {"choices": 5})}, "task t, document 1: TypeError"),
    "no choices": ({"data.jsonl": rows(ROW | {"choices": []})}, "in its first document: no choices" ),
    "a missing include": ({"t.yaml": GOOD + "include: nope.yaml\n"}, "t.yaml: includes nope.yaml, which isn't there"),
    "includes in a circle": (
        {"t.yaml": GOOD + "include: u.yaml\n", "u.yaml": "include: t.yaml\n"},
        "its includes go round in a circle: t.yaml includes u.yaml includes t.yaml",
    ),
    "an unknown module": ({"t.yaml": GOOD + "process_docs: !function nomod.f\n"}, "Cannot import module 'nomod'"),
    "an unknown function": (
        {"t.yaml": GOOD + "process_docs: !function own.f\n", "own.py": "x = 1\n"},
        "has no function 'f'",
    ),
    "a syntax error": (
        {"t.yaml": GOOD + "process_docs: !function own.f\n", "own.py": "\ndef f(:\n"},
        "own.py, line 2: SyntaxError",
    ),
    "a function that fails": (
        {"t.yaml": GOOD + "process_docs: !function own.f\n", "own.py": "def f(d):\n    raise KeyError('boo')\n"},
        "own.py, line 2, in f: KeyError: 'boo'",
    ),
    "scoring that fails": (
        {"t.yaml": GOOD + "process_results: !function own.f\n", "own.py": "def f(d, r):\n    return d['boo']\n"},
        "task t, document 0: ",
    ),
    "a package that is missing": (
        {"t.yaml": GOOD + "process_docs: !function own.f\n", "own.py": "import notthere\n"},
        "task t needs a package that isn't installed: ",
    ),
    "a template with a syntax error": ({"t.yaml": GOOD.replace("{{q}}", "{{q")}, "TemplateSyntaxError"),
    "YAML that isn't": ({"t.yaml": GOOD + " x: [\n"}, "t.yaml:12: not valid YAML"),
    "YAML too deep": ({"t.yaml": GOOD + "x: " + "[" * 3000 + "]" * 3000}, "t.yaml:12: nested more than 100 deep"),
    "a key that no task has": ({"t.yaml": GOOD + "doc_to_txet: x\n"}, "unexpected keyword argument 'doc_to_txet'"),
    "generation settings": (
        {"t.yaml": GOOD.replace("multiple_choice", "generate_until") + "generation_kwargs: {max_gen_toks: x}\n"},
        "task t: its generation_kwargs.max_gen_toks: expected a whole number of tokens",
    ),
    "a group of itself": ({"t.yaml": "group: t\ntask: [t]\n"}, "t.yaml: RecursionError"),
    "a long name": ({"t.yaml": GOOD.replace("task: t", f"task: {'t' * 200}")}, "too many for a file's"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_said_by_file_and_line(
    name: str, tmp_path: Path, tiny_checkpoints: Any, capsys: Any, monkeypatch: Any
) -> None:
    files, says = BROKEN[name]
    monkeypatch.setenv("COLUMNS", "400")
    folder = tmp_path / "tasks"
    folder.mkdir()
    for file, text in ({"data.jsonl": rows(ROW, ROW), "t.yaml": GOOD} | files).items():
        (folder / file).write_text(text.replace("DATA", str(folder / "data.jsonl")))
    task = "t" * 200 if name == "a long name" else "t"
    with pytest.raises(SystemExit) as left:
        main(
            ["eval", "--model", str(tiny_checkpoints[0]), "--tasks", task, "--include_path", str(folder),
             "-o", str(tmp_path / "out"), "--quiet"]
        )  # fmt: skip
    said = capsys.readouterr().err
    assert left.value.code == 2, said
    assert says in said
    assert "Traceback" not in said


@pytest.mark.parametrize("error", [ConnectionError("no route"), TimeoutError("too slow")])
def test_data_out_of_reach_say_what_to_do(error: Exception) -> None:
    told = str(loading_error("arc_easy", "arc_easy", error, []))
    assert told.startswith("task arc_easy can't be loaded (")
    assert "run it once where the Hugging Face hub can be reached" in told


def test_a_fault_of_ours_stays_one(tmp_path: Path, tiny_checkpoints: Any, monkeypatch: Any) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "data.jsonl").write_text(rows(ROW))
    (folder / "t.yaml").write_text(GOOD.replace("DATA", str(folder / "data.jsonl")))

    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("nsa_eval.engine._engine.name_requests", broken)
    with pytest.raises(KeyError, match="ours"):
        nsa_eval.evaluate(
            str(tiny_checkpoints[0]), "t", include_path=[str(folder)], output=tmp_path / "o", progress=False
        )


def test_a_task_is_given_the_models_tokenizer_and_its_metadata(tmp_path: Path, tiny_checkpoints: Any) -> None:
    """As lm-eval's RULER needs them: it makes its documents as long as the metadata says, in these tokens."""
    (tmp_path / "t.yaml").write_text(
        GOOD.replace(
            "dataset_kwargs: {data_files: {test: DATA}}", "custom_dataset: !function sized.make"
        ).replace("dataset_path: json", 'dataset_path: ""')
    )
    (tmp_path / "sized.py").write_text(
        "import datasets\n"
        "def make(**given):\n"
        "    row = {'q': given['tokenizer'], 'choices': [str(n) for n in given['max_seq_lengths']], 'a': 0}\n"
        "    return {'test': datasets.Dataset.from_list([row])}\n"
    )
    checkpoint = str(tiny_checkpoints[0])
    config = load_config(
        {
            "models": [{"path": checkpoint}],
            "tasks": [{"task": "t", "metadata": {"max_seq_lengths": [256, 512]}}],
            "include_path": [str(tmp_path)],
        }
    )
    loaded = load_tasks(config.models[0], make_plan(config).jobs, config)
    [document] = loaded.tasks["t"].eval_docs
    assert (document["q"], document["choices"]) == (checkpoint, ["256", "512"])
    assert loaded.tasks["t"].get_config("metadata")["version"] == 1


def test_rulers_missing_packages_are_named(
    tiny_checkpoints: Any, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "wonderwords", None)
    monkeypatch.setenv("COLUMNS", "600")
    for module in [name for name in sys.modules if name.startswith("lm_eval.tasks.ruler")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(SystemExit) as left:
        main(
            [
                "eval",
                "--model",
                str(tiny_checkpoints[0]),
                "--tasks",
                "niah_single_1",
                "-o",
                str(tmp_path / "o"),
            ]
        )
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert "task niah_single_1 needs a package that isn't installed" in said
    assert "wonderwords" in said
