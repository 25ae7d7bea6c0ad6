"""Every example at the end of a --help, in the README and in docs/ runs; those of bundled checkpoints fit."""

import ast
import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import nsa_eval
from nsa_eval.cli import main
from nsa_eval.cli._commands import app

EXAMPLES = [
    line
    for command in app.registered_commands
    for line in (command.epilog or "").split("\n\n")
    if line.startswith("nsa-eval ")
]
HOME = Path(__file__).resolve().parents[2]
PAGES = [HOME / "README.md", *sorted((HOME / "docs").glob("*.md"))]
COMMAND = re.compile(r"^    nsa-eval (?:[^\\\n]|\\\n)*", re.MULTILINE)
BLOCK = re.compile(r"^```(yaml|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def _commands(text):
    """The commands of a page's code blocks, each on one line and without its remark."""
    for found in COMMAND.findall(text):
        yield re.sub(r"\s+#.*|\\\n\s*", "", found).strip()


def _blocks(language):
    """(page, text) of every fenced block in that language."""
    texts = [(page.name, page.read_text(encoding="utf-8")) for page in PAGES]
    return [(name, body) for name, text in texts for kind, body in BLOCK.findall(text) if kind == language]


DOCUMENTED = [line for page in PAGES for line in dict.fromkeys(_commands(page.read_text(encoding="utf-8")))]
CONFIGS = {body.split()[3]: body for _, body in _blocks("yaml")}
"""Configs shown in the pages, by the name in their first line: `# nsa-eval run NAME`."""
PLANNED = {"run", "eval", "needle"}
"""Commands with --dry-run."""
BUNDLED = re.compile(r"nsa-eval (run|eval|needle) .*(zoo:|(?<!runs/)quickstart)")
"""Examples that evaluate a bundled checkpoint."""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_config, tiny_checkpoints):
    """A folder with what the examples name: a config, a checkpoint, finished runs."""
    home = tmp_path_factory.mktemp("workplace")
    models = [
        {"name": name, "path": str(_with_long_window(path, home / "checkpoints" / name))}
        for name, path in zip(("nsa", "dense"), tiny_checkpoints, strict=True)
    ]
    config = tiny_config(models=models, compare={"resamples": 200})
    (home / "my.yaml").write_text(yaml.safe_dump(config))
    for name, text in CONFIGS.items():
        (home / name).write_text(text, encoding="utf-8")
    (home / "essays.txt").write_text("One sentence. And one more.")
    (home / "data").mkdir()
    _with_long_window(tiny_checkpoints[0], home / "ckpt")
    _of_another_trainer(home / "fla-nsa")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "nsa_eval.report.render_report", lambda directory, *, out, **_: Path(out).write_text("page")
        )
        nsa_eval.run(config, output=home / "runs" / "quickstart", limit=1, progress=False)
    for name in ("a", "b", "batch", "sweep"):
        shutil.copytree(home / "runs" / "quickstart", home / "runs" / name)
    return home


def _with_long_window(checkpoint, folder):
    """A copy that takes 128k tokens by its config, since the examples ask for as much as real models take."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 131072}))
    return folder


def _of_another_trainer(folder):
    """A checkpoint without a tokenizer in fla's format."""
    wide = torch.zeros(8, 8)
    norms = {"model.norm": wide[0], "model.layers.0.attn_norm": wide[0], "model.layers.0.mlp_norm": wide[0]}
    tensors = norms | {"model.embeddings": torch.zeros(16, 8), "lm_head": torch.zeros(16, 8)}
    tensors |= {f"model.layers.0.attn.{name}_proj": wide for name in "qkvo"}
    tensors |= {"model.layers.0.attn.g_proj": torch.zeros(6, 8)}
    tensors |= {f"model.layers.0.mlp.{name}_proj": wide for name in ("gate", "up", "down")}
    folder.mkdir()
    save_file({f"{n}.weight": x.clone() for n, x in tensors.items()}, folder / "model.safetensors")
    config = {"model_type": "nsa", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config |= {"num_heads": 2, "num_kv_heads": 2, "head_dim": 4, "vocab_size": 16}
    (folder / "config.json").write_text(json.dumps(config))


def test_every_command_has_examples():
    named = {line.split()[1] for line in EXAMPLES}
    assert named == {"run", "eval", "needle", "compare", "report", "ls", "validate", "convert"}
    assert len(EXAMPLES) >= 2 * len(named)


def test_the_pages_name_commands_and_configs():
    assert len(DOCUMENTED) >= 20
    assert {line.split()[1] for line in DOCUMENTED} == {
        *("run", "eval", "needle", "compare", "report", "ls", "validate", "data", "convert")
    }
    assert set(CONFIGS) >= {"batch.yaml", "sweep.yaml"}


@pytest.mark.parametrize("line", dict.fromkeys([*EXAMPLES, *DOCUMENTED]))
def test_it_runs(line, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("nsa_reports.render", lambda page, *, out, **_: out)  # figures take seconds
    arguments = shlex.split(line)[1:]
    if arguments[0] in PLANNED and "--dry-run" not in arguments:
        arguments.append("--dry-run")
    with pytest.raises(SystemExit) as left:
        main(arguments)
    output, errors = capsys.readouterr()
    assert not left.value.code, errors
    assert output or "-o" in arguments


def _plan(monkeypatch, arguments):
    """The plan of a command line, without running it."""
    plans = []

    def record(config, *, overrides, limit, **_):
        extra = [] if limit is None else [f"limit={limit:g}"]
        plans.append(nsa_eval.make_plan(nsa_eval.load_config(config, [*overrides, *extra])))
        raise SystemExit(0)

    monkeypatch.setattr("nsa_eval.runner.run", record)
    with pytest.raises(SystemExit):
        main(arguments)
    [plan] = plans
    return plan


@pytest.mark.parametrize(
    "line",
    [line for line in dict.fromkeys([*EXAMPLES, *DOCUMENTED]) if BUNDLED.match(line)]
    + ["nsa-eval needle --model zoo:twin-full-64k --model zoo:twin-nsa-64k"],
)  # fmt: skip
def test_what_it_asks_of_a_bundled_checkpoint_fits(line, workplace, monkeypatch):
    """A dry run can't know: it loads neither weights nor tokenizers."""
    from nsa_eval.catalog import list_models

    longest = {
        entry.name: json.loads((entry.path / "config.json").read_text())["max_position_embeddings"]
        for entry in list_models()
    }
    monkeypatch.chdir(workplace)
    for job in _plan(monkeypatch, shlex.split(line)[1:]).jobs:
        assert max(job.task.params["lengths"]) <= longest[job.model.path]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_is_shown_is_valid(name, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    assert nsa_eval.make_plan(nsa_eval.load_config(name)).jobs


@pytest.mark.parametrize(("page", "body"), _blocks("python"))
def test_python_that_is_shown_names_what_there_is(page, body):
    tree = ast.parse(body, filename=page)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("nsa_eval", "nsa_models"):
            assert hasattr(importlib.import_module(ast.unparse(node.value)), node.attr)


@pytest.mark.parametrize(
    "page",
    [*PAGES, *HOME.glob("*.md"), *(HOME / "kernels").glob("*.md"), *HOME.glob("*/*/*/README.md")],
    ids=lambda page: str(page.relative_to(HOME)),
)
def test_links_lead_to_files(page):
    gone = [to for to in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / to).exists()]
    assert gone == []
