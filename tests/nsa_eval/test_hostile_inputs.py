"""Hostile inputs, one table: exit code 2, one message that names the input, no traceback, nothing lost.

Configs, flags, checkpoints and run directories that are broken, huge, endless or not what their names say.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import nsa_eval
from nsa_eval.cli import main

SECONDS = 20
"""Far more than any of these takes; what waits for a pipe or builds a million layers doesn't end at all."""
DEEP = "[" * 100_000 + "]" * 100_000
DIGITS = "9" * 5000
TASK = "{task: needle_single, lengths: [256], depths: 1, samples: 1, new_tokens: 4}"
PAIRS = list(zip("abcdefghi", "bcdefghij", strict=True))
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in PAIRS
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n" for old, new in PAIRS
)
LONG = "n" * 300
"""Longer than a name may be on any file system."""


@pytest.fixture(scope="module")
def refused() -> Callable[..., str]:
    """Run a command line that has to be refused, within seconds; returns what it said."""

    def run(capsys: Any, *arguments: object) -> str:
        def hung(*_: object) -> None:
            raise TimeoutError(f"no answer within {SECONDS} s")

        before = signal.signal(signal.SIGALRM, hung)
        signal.alarm(SECONDS)
        try:
            with pytest.raises(SystemExit) as left:
                main([str(argument) for argument in arguments])
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        said = capsys.readouterr()
        assert left.value.code == 2, said.err
        assert "Traceback" not in said.err + said.out
        assert "internal error" not in said.err
        assert said.err.count("error: ") == 1, said.err
        return str(said.err)

    return run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


class Text(NamedTuple):
    """A config that is a text of its own."""

    name: str
    text: str
    says: str


CONFIGS = [
    Text("alias bomb", BOMB, "more than 100,000 values with its aliases"),
    Text("merge bomb", MERGES, "more than 100,000 values with its aliases"),
    Text("nesting in brackets", "x: " + "[" * 3000 + "]" * 3000, "c.yaml:1: nested more than 100 deep"),
    Text(
        "nesting in lines", "x:\n" + "".join(" " * i + "- \n" for i in range(1, 900)), "nested more than 100"
    ),
    Text("whole number of 5,000 digits", f"seed: {DIGITS}", "c.yaml:1: seed: a number of 5,000 digits"),
    Text("number of 5,000 digits", f"limit: {DIGITS}.5", "c.yaml:1: limit: expected a number of samples"),
    Text("many values", "x: [" + "1," * 100_001 + "]", "c.yaml:1: more than 100,000 values"),
    Text("many characters", "# " + "x" * 2_000_000, "c.yaml:1: 2,000,"),
    Text("file of 8 MB", "# " + "x" * 8_000_000, "c.yaml: 8,000,"),
]


@pytest.mark.parametrize("case", CONFIGS, ids=lambda case: case.name)
def test_a_config_is_read_within_bounds(case: Text, home: Path, refused: Any, capsys: Any) -> None:
    (home / "c.yaml").write_text(f"{case.text}\nmodels: [{{path: x/y}}]\ntasks: [{TASK}]\n")
    assert case.says in refused(capsys, "validate", "c.yaml")


KEYS = {
    "limit: 1e300": "limit: expected a number of samples",
    "limit: .nan": "limit: expected a number of samples",
    "limit: 99999999999": "at most 1,000,000,000",
    "engine: {batch_size: 99999999999}": "engine.batch_size: expected auto or a number of rows",
    f"engine: {{prefill_chunk: {'9' * 30}}}": "engine.prefill_chunk: expected auto or a number of tokens",
    "compare: {confidence: .nan}": "compare.confidence: expected a value",
    f"name: {LONG}": "name: expected a name",
    f"include_path: [{LONG}]": "include_path[0]: no such folder: nnn",
    "include_path: [~nosuch/x]": "include_path[0]: no such folder: ~nosuch/x",
    "include_path: [pipe]": "include_path[0]: no such folder: pipe",
}


@pytest.mark.parametrize("line", KEYS)
def test_a_key_of_a_run(line: str, home: Path, refused: Any, capsys: Any) -> None:
    os.mkfifo("pipe")
    (home / "c.yaml").write_text(f"models: [{{path: x/y}}]\ntasks: [{TASK}]\n{line}\n")
    said = refused(capsys, "run", "c.yaml", "-o", "out")
    assert "c.yaml:3: " in said
    assert KEYS[line] in said
    assert not Path("out").exists()


TASK_KEYS = {
    'gen_kwargs: {top_k: "x"}': "tasks[0].gen_kwargs.top_k: expected a whole number from 0, got 'x'",
    "gen_kwargs: {top_k: 1e400}": "tasks[0].gen_kwargs.top_k: expected a whole number from 0, got inf",
    "gen_kwargs: {temperature: .nan}": "tasks[0].gen_kwargs.temperature: expected a number from 0, got nan",
    "gen_kwargs: {temperature: -1}": "tasks[0].gen_kwargs.temperature: expected a number from 0, got -1",
    "gen_kwargs: {top_p: .nan}": "tasks[0].gen_kwargs.top_p: expected a number above 0 and at most 1",
    "gen_kwargs: {max_gen_toks: 1e300}": "tasks[0].gen_kwargs.max_gen_toks: expected a whole number",
    "gen_kwargs: {max_gen_toks: many}": "tasks[0].gen_kwargs.max_gen_toks: expected a whole number",
    "gen_kwargs: {until: 5}": "tasks[0].gen_kwargs.until: expected text or a list of texts, got 5",
    "gen_kwargs: {do_sample: maybe}": "tasks[0].gen_kwargs.do_sample: expected true or false, got 'maybe'",
    "repeats: 1000000000": "tasks[0].repeats: expected a value at most 100000",
    "lengths: [1m]": "its longest request takes 1,048,576 tokens, model small at most 512",
    "lengths: [64k]": "its longest request takes 65,536 tokens, model small at most 512",
    "lengths: [999999999999k]": "tasks[0].lengths: expected a whole number of tokens",
    "depths: .nan": "tasks[0].depths: expected a count of depths",
    "depths: 100000000": "tasks[0].depths: expected a count of depths",
    "samples: 1000000000": "tasks[0].samples: expected a whole number from 1 to 100000",
    "new_tokens: 1e300": "tasks[0].new_tokens: expected",
    "haystack: text:~nosuch/x.txt": "haystack text:~nosuch/x.txt: no such file or folder",
    "haystack: text:pipe": "haystack text:pipe: expected a .txt file",
    "haystack: text:/dev/zero": "haystack text:/dev/zero: expected a .txt file",
    f"haystack: text:{LONG}": "no such file or folder",
    "haystack: text:huge.txt": "haystack text:huge.txt: 107,374,182,400 bytes of text",
    f"alias: {LONG}": "tasks[0].alias: expected a name",
}


@pytest.mark.parametrize("key", TASK_KEYS)
def test_a_key_of_a_task(key: str, home: Path, tiny_checkpoints: Any, refused: Any, capsys: Any) -> None:
    os.mkfifo("pipe")
    with Path("huge.txt").open("wb") as file:
        file.truncate(100 * 2**30)  # a hole: it takes no space
    given = key.split(":")[0]
    others = ", ".join(part for part in TASK[1:-1].split(", ") if not part.startswith(given))
    model = f"{{name: small, path: {tiny_checkpoints[0]}}}"
    (home / "c.yaml").write_text(f"models: [{model}]\ntasks: [{{{others}, {key}}}]\n")
    assert TASK_KEYS[key] in refused(capsys, "run", "c.yaml", "-o", "out")
    # Refused before anything was loaded; only a haystack's size is read when its text is.
    assert not list(Path().glob("out/store/*.jsonl")) or "huge" in key


MODEL_KEYS = {
    "path: ~nosuch/x": "models[0].path: no such folder: ~nosuch/x",
    f"path: /{LONG}, name: long": f"models[0].path: no such folder: /{LONG}",
    'path: "a\\0b", name: null-byte': "models[0].path: no such folder",
    "path: pipe": "models[0].path: pipe is a file",
    f"path: x/y, name: {LONG}": "models[0].name: expected a name",
    "path: x/y, max_length: 1e300": "models[0].max_length: expected a length",
    "path: x/y, variants: [{set: {a: [%s], b: [%s]}}]": "4,000,000 variants, at most 1,000",
}


@pytest.mark.parametrize("keys", MODEL_KEYS)
def test_a_key_of_a_model(keys: str, home: Path, refused: Any, capsys: Any) -> None:
    os.mkfifo("pipe")
    many = ", ".join(map(str, range(2000)))
    (home / "c.yaml").write_text(f"models: [{{{keys.replace('%s', many)}}}]\ntasks: [{TASK}]\n")
    said = refused(capsys, "run", "c.yaml", "-o", "out")
    assert "c.yaml:1: " in said
    assert MODEL_KEYS[keys] in said


FLAGS = {
    ("--limit", "1e300"): "limit: expected a number of samples",
    ("--seed", "1e400"): "--seed 1e400: expected whole numbers, got inf",
    ("--seed", "nan"): "--seed nan: expected whole numbers, got nan",
    ("--batch_size", "²"): "engine.batch_size: expected auto or a number of rows (1, 2, ...), got '²'",
    ("--gen_kwargs", "temperature=.nan"): "temperature: expected a number from 0",
    ("--include_path", "~nosuch/x"): "include_path[0]: no such folder: ~nosuch/x",
    ("--include_path", LONG): "include_path[0]: no such folder",
    ("--method", "quest:99999999999999999999"): "method.budget: expected a length in tokens",
    ("--set", "models.².x=1"): "models has no entry '²'",
    ("--set", f"seed={DIGITS}"): "the value is a number of 5,000 digits",
    ("--set", "seed=" + "[" * 3000): "the value is",
    ("-o", LONG): "cannot be written (File name too long)",
}


@pytest.mark.parametrize("flags", FLAGS)
def test_a_flag(flags: tuple[str, str], home: Path, refused: Any, capsys: Any) -> None:
    start = [
        "eval",
        "--model",
        "zoo:twin-full-64k",
        "--tasks",
        "needle_single",
        "--set",
        "tasks.0.lengths=[512]",
    ]
    assert FLAGS[flags] in refused(capsys, *start, *flags)


@pytest.mark.parametrize("name", ["~nosuch/x", LONG, "a\0b", "pipe", "/dev/zero"])
@pytest.mark.parametrize("command", ["run", "validate", "compare", "report"])
def test_a_path_on_the_command_line(command: str, name: str, home: Path, refused: Any, capsys: Any) -> None:
    os.mkfifo("pipe")
    assert f"error: {name}: no such" in refused(capsys, command, name)


# ---- checkpoints


def _config(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | values))

    return edit


def _text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)  # type: ignore[return-value]


def _pipe(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return edit


def _dangling(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("nowhere")

    return edit


TEMPLATE = "chat_template.jinja"
CHECKPOINTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a million layers": (_config(num_hidden_layers=10**6), "config.json says num_hidden_layers 1,000,000"),
    "a layer less than none": (_config(num_hidden_layers=-1), "config.json says num_hidden_layers -1"),
    "layers in words": (_config(num_hidden_layers="x"), "num_hidden_layers"),
    "hidden size of a trillion": (_config(hidden_size=10**12), "can't be loaded"),
    "an unknown architecture": (_config(model_type="nope"), "config.json can't be used"),
    "config 100,000 deep": (_text("config.json", DEEP), "can't be"),
    "config as a list": (_text("config.json", "[]"), "can't be"),
    "config as a pipe": (_pipe("config.json"), "has no config.json"),
    "config as a link to nothing": (_dangling("config.json"), "has no config.json"),
    "weights as a pipe": (_pipe("model.safetensors"), "model.safetensors isn't a file"),
    "weights as a link to nothing": (
        _dangling("model.safetensors"),
        "model.safetensors is a link to nowhere",
    ),
    "weights of no bytes": (_text("model.safetensors", ""), "model.safetensors (0 bytes) is truncated"),
    "tokenizer cut": (_text("tokenizer.json", "{"), "the tokenizer in"),
    "tokenizer 100,000 deep": (_text("tokenizer.json", DEEP), "the tokenizer in"),
    "tokenizer as a pipe": (_pipe("tokenizer.json"), "tokenizer.json is no plain file"),
    "template with a syntax error": (_text(TEMPLATE, "{% for m in messages %}{{ m"), "the chat template of"),
    "template that refuses": (_text(TEMPLATE, "{{ raise_exception('no') }}"), "the chat template of"),
    "template without end": (
        _text(TEMPLATE, "{% for i in range(10**12) %}x{% endfor %}"),
        "the chat template of",
    ),
    "template that calls itself": (
        _text(TEMPLATE, "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"),
        "the chat template of",
    ),
    "template as a pipe": (_pipe(TEMPLATE), f"{TEMPLATE} is no plain file"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint(name: str, home: Path, tiny_checkpoints: Any, refused: Any, capsys: Any) -> None:
    edit, says = CHECKPOINTS[name]
    shutil.copytree(tiny_checkpoints[0], "ckpt")
    edit(Path("ckpt"))
    template = ", chat_template: true" if "template" in name else ""
    (home / "c.yaml").write_text(f"models: [{{path: {home}/ckpt{template}}}]\ntasks: [{TASK}]\n")
    said = refused(capsys, "run", "c.yaml", "-o", "out", "--quiet")
    assert says in said
    assert "ckpt" in said


# ---- finished runs, damaged since


@pytest.fixture(scope="module")
def finished(tiny_checkpoints: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two models with their comparison."""
    home = tmp_path_factory.mktemp("finished")
    models = [{"name": name, "path": str(path)} for name, path in zip("ab", tiny_checkpoints, strict=True)]
    task = {"task": "needle_single", "lengths": [256], "depths": 2, "samples": 1, "new_tokens": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nsa_eval.report.render_report", lambda directory, *, out, **_: out.write_text(""))
        nsa_eval.evaluate(models, [task], output=str(home / "run"), progress=False)
    return home / "run"


def _key(name: str, value: Any) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | {name: value})


DAMAGE: dict[str, str | Callable[[str], str]] = {
    "cut": "{",
    "100,000 deep": DEEP + "\n{}\n",
    "a number of 5,000 digits": f'{{"a": {DIGITS}}}\n{{}}\n',
    "a number": "5\n",
}
FILES = (
    "a/results_*.json",
    "a/samples_*.jsonl",
    "a/costs.json",
    "a/audit.json",
    "audit.json",
    "env.json",
    "run.yaml",
)
REWRITTEN = {
    ("run", "audit.json"),  # gathered anew from the models' own
    *(("report", "a/audit.json"), ("compare", "a/audit.json")),  # the run's own is read
}


def _damaged(finished: Path, home: Path, pattern: str, damage: str | Callable[[str], str]) -> Path:
    shutil.copytree(finished, home / "run")
    [file] = (home / "run").glob(pattern)
    file.write_text(damage(file.read_text()) if callable(damage) else damage)
    (home / "run" / "report.html").unlink(missing_ok=True)
    return file


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("pattern", FILES)
@pytest.mark.parametrize("command", ["run", "report", "compare"])
def test_a_damaged_file_of_a_run(
    command: str, pattern: str, damage: str, finished: Path, home: Path, refused: Any, capsys: Any
) -> None:
    if (command, pattern) in REWRITTEN:
        pytest.skip("not read by this command")
    file = _damaged(finished, home, pattern, DAMAGE[damage])
    store = (home / "run/store/responses.jsonl").read_bytes()
    assert file.name in refused(capsys, command, "run")
    assert (home / "run/store/responses.jsonl").read_bytes() == store


@pytest.mark.parametrize("value", [None, 5, [1]], ids=repr)
@pytest.mark.parametrize(
    "key", ["config", "results", "configs", "versions", "n-shot", "higher_is_better", "n-samples"]
)
@pytest.mark.parametrize("command", ["run", "report", "compare"])
def test_a_results_file_with_a_part_of_another_kind(
    command: str, key: str, value: Any, finished: Path, home: Path, refused: Any, capsys: Any
) -> None:
    if command == "run" and key in ("results", "configs"):
        pytest.skip("a file without results finishes no model: they are made anew from the store")
    _damaged(finished, home, "a/results_*.json", _key(key, value))
    said = refused(capsys, command, "run")
    assert "results_" in said
    assert f"'{key}' should be a mapping" in said


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_comparison_is_made_again(damage: str, finished: Path, home: Path) -> None:
    before = json.loads((finished / "comparison.json").read_text())
    file = _damaged(finished, home, "comparison.json", DAMAGE[damage])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nsa_eval.report.render_report", lambda directory, *, out, **_: out.write_text(""))
        nsa_eval.run(str(home / "run"), progress=False)
    assert json.loads(file.read_text())["rows"] == before["rows"]


@pytest.mark.parametrize(
    "line", [DEEP, f'[{{"key": {DIGITS}}}]', "5", '[{"key": "k"}]'], ids=lambda line: line[:20]
)
def test_a_damaged_line_in_the_store(
    line: str, finished: Path, home: Path, refused: Any, capsys: Any
) -> None:
    file = _damaged(finished, home, "store/responses.jsonl", lambda text: f"{line}\n{text}")
    before = file.read_bytes()
    shutil.rmtree(home / "run" / "a")
    assert "responses.jsonl, line 1: not a stored response" in refused(capsys, "run", "run", "--quiet")
    assert file.read_bytes() == before
