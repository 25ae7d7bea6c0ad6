"""Checks of a config that need to know what exists: tasks, models, folders."""

from __future__ import annotations

import re
from collections.abc import Iterator

from nsa_eval._gen_kwargs import contradiction
from nsa_eval._limits import declared_max_length
from nsa_eval._paths import is_file, is_folder, is_there, user_path
from nsa_eval.catalog import (
    LARGEST_TASK_FILE,
    checkpoint_config,
    lm_eval_models,
    lm_eval_tasks,
    task_yaml_files,
    zoo_names,
)
from nsa_eval.config._check_tables import check_tables
from nsa_eval.config._generation import generation_problems, unknown_settings
from nsa_eval.config._members import expand
from nsa_eval.config._variants import Variant, all_variants, variants_of
from nsa_eval.config.schema import MethodSpec, ModelSpec, RunConfig, TaskSpec, VariantSpec
from nsa_eval.errors import ConfigError
from nsa_settings import Place, Source, did_you_mean

Problem = tuple[Place, str]
RESERVED = frozenset(
    {
        *("store", "figures", "tables", "audit.json", "comparison.json", "comparison.md"),
        *("costs.json", "env.json", "report.html", "run.yaml"),
    }
)
"""Names in a run's folder that no model may take."""
_SECRET = frozenset({"auth_token", "api_key", "header", "token", "hf_token"})
_OURS_ALONE = ("dtype", "backend", "revision", "trust_remote_code", "max_length", "template_date")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def check(config: RunConfig, source: Source) -> None:
    """Check names, folders and task parameters.

    Raises:
        ConfigError: One line per mistake.
    """
    problems: list[Problem] = []
    problems += _repeated([m.name for m in config.models], "models", "name")
    problems += _check_variants(config)
    problems += _repeated([t.label for t in config.tasks], "tasks", "alias")
    for i, model in enumerate(config.models):
        problems += [((*("models", i), *path), text) for path, text in _check_model(model)]
    for i, task in enumerate(config.tasks):
        problems += [((*("tasks", i), *path), text) for path, text in _check_task(task, config)]
    if not problems:
        problems += _check_members(config)
    for i, folder in enumerate(config.include_path):
        if not is_folder(user_path(folder)):
            problems.append((("include_path", i), f"no such folder: {folder}"))
            continue
        for file in task_yaml_files(user_path(folder)):
            if not is_file(file):
                text = f"{file} is no plain file: reading it would never end, or can't begin"
                problems.append((("include_path", i), text))
            elif file.stat().st_size > LARGEST_TASK_FILE:
                text = f"{file} has {file.stat().st_size:,} bytes: that is no task"
                problems.append((("include_path", i), text))
    names = _variant_names(config)
    problems += check_tables(config, names)
    if config.compare.baseline is not None and config.compare.baseline not in names:
        text = f"no model is named {config.compare.baseline!r}{did_you_mean(config.compare.baseline, names)}"
        problems.append((("compare", "baseline"), text))
    if problems:
        raise ConfigError([source.message(path, text) for path, text in problems])


def _repeated(names: list[str], section: str, key: str) -> Iterator[Problem]:
    """Two of one name would write over each other's files; case counts for nothing on some file systems."""
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        first = seen.setdefault(name.casefold(), i)
        if first != i:
            yield (section, i), f"{name!r} is {section}[{first}] already: give one of them another {key}"


def _variant_names(config: RunConfig) -> list[str]:
    try:
        return [variant.name for variant in all_variants(config)]
    except ValueError:
        return []  # said by _check_variants


def _check_variants(config: RunConfig) -> Iterator[Problem]:
    """Their names become folders of a run: each once, and none that the run itself uses."""
    taken: dict[str, Place] = {}
    for i, model in enumerate(config.models):
        if not model.variants:
            text = "the list is empty: leave it out to evaluate the checkpoint as it is"
            yield ("models", i, "variants"), text
        for j, spec in enumerate(model.variants):
            where: Place = (
                ("models", i) if model.variants == [VariantSpec()] else ("models", i, "variants", j)
            )
            try:
                found = variants_of(model.model_copy(update={"variants": [spec]}))
            except ValueError as error:
                yield where, str(error)
                continue
            wrong = dict.fromkeys(text for variant in found for text in _check_fields(variant))
            yield from (((*where, "set"), text) for text in wrong)
            if spec.name is not None and len(found) > 1:
                yield (*where, "name"), f"{spec.name!r} would name {len(found)} variants: leave it out"
                continue
            for variant in found:
                name = variant.name
                if name.casefold() in RESERVED:
                    yield where, f"{name!r} is what a file of the run's own is called: choose another name"
                # Models of one name are said by _repeated.
                if len(where) > 2 and name.casefold() in taken:
                    yield where, f"{name!r} is the name of another variant already: give one of them a name"
                taken.setdefault(name.casefold(), where)
                if variant.method is not None:
                    problems = _check_method(variant.method)
                    yield from (((*where, "method", *path), text) for path, text in problems)


def _check_fields(variant: Variant) -> Iterator[str]:
    """Fields that a checkpoint's config doesn't have or can't take, where the checkpoint is at hand."""
    model = variant.checkpoint
    if not variant.changes or model.lm is not None or checkpoint_config(model.path) is None:
        return
    import nsa_models  # torch takes seconds

    try:
        config = nsa_models.load_config(model.path, trust_remote_code=model.trust_remote_code)
    except nsa_models.ModelLoadError:
        return  # said in full when the checkpoint is loaded
    try:
        nsa_models.config_with(config, variant.changes)
    except nsa_models.ModelLoadError as error:
        yield str(error)


def _check_method(method: MethodSpec) -> Iterator[Problem]:
    from nsa_models.methods import MethodError, method_at

    try:
        method_at(method.name, method.single_budget, **method.options)
    except MethodError as error:
        yield (), str(error)


def _check_lm(model: ModelSpec) -> Iterator[Problem]:
    """A model that one of lm-eval's classes loads: what that class is told, and what isn't for it."""
    names = lm_eval_models()
    if model.lm not in names:
        yield ("lm",), f"lm-eval has no model class {model.lm!r}{did_you_mean(str(model.lm), names)}"
    for key in model.lm_args:
        if key in _SECRET:
            text = "would stand in run.yaml and the results: leave it to the environment (OPENAI_API_KEY)"
            yield ("lm_args", key), text
        if key in ("model", "pretrained"):
            yield ("lm_args", key), f"the model is named twice: path is {model.path} already"
    for key in _OURS_ALONE:
        if getattr(model, key) != ModelSpec.model_fields[key].get_default():
            yield (key,), f"{model.lm} loads the model itself: give it in lm_args"
    if model.variants != [VariantSpec()]:
        yield ("variants",), f"only the engine's own models have variants, not lm-eval's {model.lm}"


def _check_model(model: ModelSpec) -> Iterator[Problem]:
    if model.lm is not None:
        yield from _check_lm(model)
        return
    if model.lm_args:
        yield ("lm_args",), "arguments of no class: say which with lm (vllm, local-completions, ...)"
    path = model.path
    if path.startswith("zoo:"):
        names = zoo_names()
        if path not in names:
            yield ("path",), f"no bundled checkpoint {path!r}{did_you_mean(path, names)}"
        return
    folder = user_path(path)
    if is_folder(folder):
        if not is_file(folder / "config.json"):
            yield ("path",), f"{path} has no config.json: name the folder that save_pretrained wrote"
    elif is_there(folder):
        yield ("path",), f"{path} is a file: name the folder that holds config.json and the safetensors files"
    elif not _HUB_ID.fullmatch(path):
        yield ("path",), f"no such folder: {path}"


def _check_members(config: RunConfig) -> Iterator[Problem]:
    """A task that two entries ask for in different ways, one of them as a member of a group."""
    for label in expand(config.tasks).clashes:
        for i, task in enumerate(config.tasks):
            members = expand([task])
            if label in {*(one.spec.label for one in members.tasks), *(one.label for one in members.groups)}:
                text = f"{label} is asked for elsewhere with other settings: give one of the two an alias"
                yield ("tasks", i), text


def _check_group(task: TaskSpec, config: RunConfig) -> Iterator[Problem]:
    """What is wrong with a group's entry is told once, however many members it concerns."""
    from nsa_tasks import family_of, parameters_of

    known = parameters_of(task.task)
    common = [name for name in TaskSpec.model_fields if name != "task"]
    for key in task.params:
        if key not in known:
            yield (key,), f"unknown key{did_you_mean(key, [*known, *common])}"
    members = expand([task]).tasks
    if task.metadata and all(family_of(member.spec.task) for member in members):
        yield ("metadata",), f"{task.task} takes its parameters as keys of the task: {', '.join(known)}"
    found: dict[Problem, None] = {}
    for member in members:
        for path, text in _check_task(member.spec, config):
            # A key that only the group's YAML sets is no key of the entry.
            place = path if not path or path[0] in task.model_dump() else ()
            found[place, text if place or not path else f"{member.spec.task}: {path[0]}: {text}"] = None
    yield from found


def _check_task(task: TaskSpec, config: RunConfig) -> Iterator[Problem]:
    from nsa_tasks import TaskParameterError, families, family_of, group_of, list_groups

    if group_of(task.task) is not None:
        yield from _check_group(task, config)
        return
    wrong = list(generation_problems(task.gen_kwargs or {}))
    if any(model.lm is None for model in config.models):
        wrong += unknown_settings(task.gen_kwargs or {})
    for key, text in wrong:
        yield ("gen_kwargs", key), text
    against = None if wrong or config.engine.parity is not None else contradiction(task.gen_kwargs or {})
    if against is not None:
        yield ("gen_kwargs",), against
    family = family_of(task.task)
    if family is None:
        own = [info.name for info in list_groups()] + [name for f in families().values() for name in f.tasks]
        yield from _check_lm_eval_task(task, config, own)
        return
    known = [parameter.name for parameter in family.parameters(task.task)]
    common = [name for name in TaskSpec.model_fields if name != "task"]
    unknown = [key for key in task.params if key not in known]
    for key in unknown:
        yield (key,), f"unknown key{did_you_mean(key, [*known, *common])}"
    if task.num_fewshot and not family.fewshot:
        yield ("num_fewshot",), f"{task.task} has no solved examples to show: leave num_fewshot out"
    if task.metadata:
        yield ("metadata",), f"{task.task} takes its parameters as keys of the task: {', '.join(known)}"
    if not unknown:
        try:
            params = family.resolve(task.task, task.params)
            policy = task.truncation or family.truncation or config.engine.truncation
            if policy == "error":
                yield from _check_lengths(family.max_request_tokens(params), config)
        except TaskParameterError as error:
            # "needle_single: depths = 0: expected ..." stands at the key that it names.
            text = str(error).removeprefix(f"{task.task}: ")
            match = re.match(r"(\w+) = .*?: ", text)
            if match and match[1] in task.params:
                yield (match[1],), f"{text[match.end() :]}, got {task.params[match[1]]!r}"
            else:
                yield (), text


def _check_lengths(longest: int | None, config: RunConfig) -> Iterator[Problem]:
    """Requests that a model's own config rules out, where none of them may be cut."""
    if longest is None:
        return
    for model in config.models:
        named = model.lm_args.get("max_length")
        declared = named if isinstance(named, int) else declared_max_length(model.path)
        limit, where = (model.max_length, "max_length") if model.max_length else (declared, "its config.json")
        if limit is not None and longest > limit:
            yield (
                (),
                f"its longest request takes {longest:,} tokens, model {model.name} at most {limit:,} "
                f"({where}): ask for shorter ones, set the model's max_length if it can take more, or leave "
                "this model out",
            )


def _check_lm_eval_task(task: TaskSpec, config: RunConfig, own: list[str]) -> Iterator[Problem]:
    folders = [folder for folder in map(user_path, config.include_path) if is_folder(folder)]
    theirs = lm_eval_tasks([str(folder) for folder in folders])
    if task.task not in theirs:
        near = did_you_mean(task.task, own)
        if not near.startswith("; did you mean"):
            near = did_you_mean(task.task, theirs) or near
        yield ("task",), f"no task is named {task.task!r}{near} (nsa-eval ls tasks lists them)"
        return
    for key in task.params:
        common = [name for name in TaskSpec.model_fields if name != "task"]
        yield (
            (key,),
            f"{task.task} is one of lm-eval's tasks, which take {', '.join(common)} only"
            f"{did_you_mean(key, common)}",
        )
    if task.alias is not None:
        yield ("alias",), f"{task.task} is one of lm-eval's tasks, which keep their names: leave alias out"
