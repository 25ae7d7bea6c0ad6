"""Finds the files of a run directory and puts the newest of each task together."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsa_eval._json import read_json, read_mapping
from nsa_eval._paths import is_file, is_folder, user_path
from nsa_eval.config import ModelSpec, variants_of
from nsa_eval.errors import UserError
from nsa_eval.looks import FILE as LOOKS
from nsa_eval.looks import read_looks
from nsa_eval.results._groups import groups_of
from nsa_eval.results._samples import read_samples
from nsa_eval.results._types import ModelRun, Run, Sample, TaskResult
from nsa_eval.store import CostSheet
from nsa_settings import YamlError, parse_yaml

# lm-eval's date_id: an ISO time with ":" replaced. Before it stands "results" or, for --output_path x.json,
# "x".
_RESULTS = re.compile(r"^(?P<stem>.+)_(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.json$")
# Characters that lm-eval replaces in a model's name to get the name of its folder.
_UNSAFE = re.compile(r"[\"<>:/|\\?*\[\]]+")
_AGAIN = "Evaluate again."
_BY_TASK = ("results", "configs", "higher_is_better", "n-samples")
_MAPPINGS = ("config", "versions", "n-shot")
_CONTEXT = (
    "chat_template_sha",
    "system_instruction_sha",
    "fewshot_as_multiturn",
    "max_length",
    "lm_eval_version",
    "transformers_version",
    "git_hash",
    "task_hashes",
    "tokenizer_bos_token",
    "tokenizer_eos_token",
    "total_evaluation_time_seconds",
)


@dataclass(frozen=True, slots=True)
class _ResultsFile:
    path: Path
    date: str
    content: dict[str, Any]


def load_run(path: str | Path) -> Run:
    """Reads a run directory, or one model of it.

    Takes directories that nsa-eval wrote and ones that lm-eval wrote by itself (`--output_path DIR
    --log_samples`). Of each task of each model the newest results file counts.

    Args:
        path: "DIR" for all models of a directory, "DIR:model" for one. DIR may also be one model's own
            folder.

    Raises:
        UserError: Not a run directory, unknown model, missing or incomplete samples, or a damaged file.
    """
    directory, wanted = _split(str(path))
    models: dict[str, ModelRun] = {}
    folders = _model_folders(directory)
    if not folders:
        raise UserError(
            f"{directory}: not a run directory: no results_*.json in it or in a folder of it. Expected what "
            f"`nsa-eval run ... -o DIR` or lm-eval's `--output_path DIR --log_samples` writes."
        )
    home = (
        directory.parent if directory in folders and (directory.parent / "run.yaml").is_file() else directory
    )
    config = _mapping(home / "run.yaml")
    named = {_model_name(files, folder): folder for folder, files in folders.items()}
    if wanted is not None and wanted not in named:
        by_folder = {folder.name: name for name, folder in named.items()}
        if wanted not in by_folder:
            raise UserError(f"{directory}: no model {wanted!r} there. It has: {', '.join(sorted(named))}")
        wanted = by_folder[wanted]
    env, audit = _mapping(home / "env.json"), _audit(home / "audit.json")
    configs = _model_configs(config)
    # The order of the config is the order of every table; folders that it doesn't know come last, by name.
    for name in sorted(
        named, key=lambda name: (list(configs).index(name) if name in configs else len(configs), name)
    ):
        if wanted is None or name == wanted:
            files = folders[named[name]]
            tasks = _tasks(named[name], files, config)
            sheet = _costs(named[name] / "costs.json")
            models[name] = ModelRun(
                name=name,
                directory=home,
                tasks=tasks,
                groups={
                    key: group
                    for file in files
                    for key, group in groups_of(file.content, tasks, file.path).items()
                },
                config=configs.get(name),
                run_config=config,
                env=env,
                audit=[event for event in audit if event.get("model") in (name, None)],
                costs=sheet.tasks,
                costs_by_length=sheet.by_length,
                conditions=sheet.conditions,
                looks=read_looks(named[name] / LOOKS) if (named[name] / LOOKS).is_file() else None,
            )
    return Run(directory=home, models=models, config=config, env=env)


def _split(text: str) -> tuple[Path, str | None]:
    """ "DIR" or "DIR:model"; a colon may stand in either, so the first split whose left side exists
    counts."""
    path = user_path(text)
    if is_folder(path):
        return path, None
    for at, character in enumerate(text):
        left = user_path(text[:at])
        if character == ":" and at > 0 and is_folder(left):
            return left, text[at + 1 :]
    if is_file(path):
        raise UserError(f"{text}: a file, but a run directory was expected (DIR, or DIR:model)")
    raise UserError(
        f"{text}: no such directory. Expected a run directory (DIR), or DIR:model for one model of it."
    )


def _model_folders(directory: Path) -> dict[Path, list[_ResultsFile]]:
    found: dict[Path, list[_ResultsFile]] = {}
    try:
        # A run that is going on, or was killed, stages its files there. Other hidden folders may be results:
        # lm-eval makes `.__ckpt` of pretrained=./ckpt.
        children = (child for child in directory.iterdir() if child.is_dir() and child.name != ".partial")
        folders = [directory, *sorted(children)]
        for folder in folders:
            files = sorted(_results_files(folder), key=lambda file: file.date)
            if files:
                found[folder] = files
    except OSError as error:
        raise UserError(f"{directory}: can't be read ({error})") from error
    return found


def _results_files(folder: Path) -> Iterator[_ResultsFile]:
    for path in folder.iterdir():
        match = _RESULTS.match(path.name)
        if not match or not path.is_file():
            continue
        content = read_json(path, _AGAIN)
        if isinstance(content, dict) and "results" in content and "configs" in content:
            _check_results(path, content)
            yield _ResultsFile(path, match["date"], content)
        elif match["stem"] == "results":
            raise UserError(f"{path}: not an lm-eval results file: it has no 'results' and 'configs'")


def _check_results(path: Path, content: Mapping[str, Any]) -> None:
    """The parts of a results file are what lm-eval writes, or aren't there.

    Raises:
        UserError: One is something else; names it.
    """
    for key in (*_BY_TASK, *_MAPPINGS):
        part = content.get(key, {})
        if not isinstance(part, dict):
            raise UserError(f"{path}: damaged, {key!r} should be a mapping, got {_kind(part)}. {_AGAIN}")
        for task, inside in part.items() if key in _BY_TASK else ():
            if not isinstance(inside, dict):
                raise UserError(
                    f"{path}: damaged, {key!r} of {task} should be a mapping, got {_kind(inside)}. {_AGAIN}"
                )


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _model_name(files: list[_ResultsFile], folder: Path) -> str:
    """The name the model was given; the folder's own name where that isn't recorded or belongs to another."""
    name = files[-1].content.get("model_name")
    return name if isinstance(name, str) and _UNSAFE.sub("__", name) == folder.name else folder.name


def _tasks(folder: Path, files: list[_ResultsFile], config: dict[str, Any] | None) -> dict[str, TaskResult]:
    newest = {task: file for file in files for task in file.content["configs"]}
    listed = (config or {}).get("tasks")
    order = [
        entry.get("alias") or entry.get("task")
        for entry in (listed if isinstance(listed, list) else ())
        if isinstance(entry, Mapping)
    ]
    # lm-eval sorts its tasks by name; a table keeps the order of the config, then names (members of groups).
    names = sorted(newest, key=lambda task: (order.index(task) if task in order else len(order), task))
    tasks = {task: _task(task, folder, newest[task]) for task in names}
    if not tasks:
        raise UserError(f"{files[-1].path}: holds no tasks")
    return tasks


def _task(name: str, folder: Path, file: _ResultsFile) -> TaskResult:
    content = file.content
    samples_file = folder / f"samples_{name}_{file.date}.jsonl"
    if not samples_file.is_file():
        raise UserError(
            f"{file.path}: the samples of task {name!r} are missing ({samples_file.name}). Documents can't "
            "be paired without them: evaluate again with lm-eval's --log_samples, or with nsa-eval, which "
            "always writes them."
        )
    filters = read_samples(samples_file)
    expected = (content.get("n-samples", {}).get(name) or {}).get("effective")
    for filter_name, samples in filters.items():
        if isinstance(expected, int) and len(samples) < expected:
            raise UserError(
                f"{samples_file}: incomplete: {len(samples)} samples (filter {filter_name!r}), but "
                f"{file.path.name} was made from {expected}. Evaluate again."
            )
    if not filters:
        raise UserError(f"{samples_file}: empty, no samples in it. Evaluate again.")
    version = content.get("versions", {}).get(name)
    return TaskResult(
        name=name,
        filters={key: _ordered(samples) for key, samples in sorted(filters.items())},
        config=dict(content["configs"][name]),
        version=None if version is None else str(version),
        num_fewshot=content.get("n-shot", {}).get(name),
        higher_is_better=dict(content.get("higher_is_better", {}).get(name) or {}),
        reported={
            key: float(value)
            for key, value in content["results"].get(name, {}).items()
            if "," in key and isinstance(value, int | float) and not isinstance(value, bool)
        },
        settings=dict(content.get("config") or {}),
        context={key: content[key] for key in _CONTEXT if content.get(key) is not None},
        results_file=file.path,
        samples_file=samples_file,
    )


def _ordered(samples: list[Sample]) -> tuple[Sample, ...]:
    # Several ranks write their documents interleaved; ids that are text keep the file's order.
    if all(isinstance(sample.doc_id, int) for sample in samples):
        return tuple(sorted(samples, key=lambda sample: int(sample.doc_id)))
    return tuple(samples)


def _model_configs(config: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The entry of each variant of each model in run.yaml, by its name, in the order of the file."""
    models = (config or {}).get("models")
    entries = [dict(m) for m in models if isinstance(m, Mapping)] if isinstance(models, list) else []
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        try:
            variants = variants_of(ModelSpec.model_validate(entry))
        except ValueError:  # written by another version
            found |= {str(entry["name"]): entry} if "name" in entry else {}
            continue
        written = {key: value for key, value in entry.items() if key != "variants"}
        for variant in variants:
            own = {"name": variant.name, "checkpoint": variant.checkpoint.name}
            found[variant.name] = {**written, **variant.settings, **own}
    return found


def _costs(path: Path) -> CostSheet:
    """The costs of a model's tasks; none where they weren't recorded."""
    content = _mapping(path)
    if content is None:
        return CostSheet()
    if "tasks" not in content or "conditions" not in content:  # an earlier form: the tasks alone
        content = {"tasks": content}
    try:
        return CostSheet.model_validate(content)
    except ValueError as error:
        raise UserError(f"{path}: damaged ({str(error).splitlines()[0]}). Evaluate again.") from error


def _mapping(path: Path) -> dict[str, Any] | None:
    """A YAML or JSON file that holds a mapping; None if there is no such file."""
    if not path.is_file():
        return None
    if path.suffix == ".json":
        return read_mapping(path, _AGAIN)
    try:
        content, _ = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read as YAML ({str(error).splitlines()[0]})") from error
    except YamlError as error:
        raise UserError(f"{path}: can't be read as YAML (line {error.line}: {error.message})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping, got {type(content).__name__}")
    return content


def _audit(path: Path) -> list[dict[str, Any]]:
    """The events of audit.json, each with its model's name: a list of events, or lists by model."""
    if not path.is_file():
        return []
    content = read_json(path, _AGAIN)
    if isinstance(content, list):
        return [dict(event) for event in content if isinstance(event, dict)]
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a list of events, got {type(content).__name__}")
    return [
        {"model": model, **event}
        for model, events in content.items()
        for event in (events if isinstance(events, list) else [])
        if isinstance(event, dict)
    ]
