"""Read a run's config: a YAML file, a bundled name, or a dict made in Python."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from nsa_eval.catalog import find_config
from nsa_eval.config._check import check
from nsa_eval.config._variants import all_variants
from nsa_eval.config.schema import RunConfig, TaskSpec, VariantSpec, default_model_name
from nsa_eval.errors import ConfigError, UserError
from nsa_settings import (
    MOST_CHARACTERS,
    SettingsError,
    Source,
    YamlError,
    apply_override,
    as_meant,
    explain,
    parse_yaml,
)

_LARGEST_FILE = 4 * MOST_CHARACTERS
"""Bytes: a character of UTF-8 has at most four."""

ConfigLike = str | os.PathLike[str] | Mapping[str, Any] | RunConfig
"""What `run` takes: a path or bundled name, a dict of the same keys, or a RunConfig."""


def load_config(config: ConfigLike, overrides: Iterable[str] = (), *, check_names: bool = True) -> RunConfig:
    """Read and check a config; no weights, tokenizer or network are touched.

    Args:
        config: Path of a YAML file, name of a bundled config (`quickstart`), a dict, or a RunConfig.
        overrides: `key=value` settings that win over the config, as with `--set`.
        check_names: Also check that its tasks, checkpoints and folders exist.

    Returns:
        The config with every default filled in.

    Raises:
        ConfigError: What is wrong with it, one line per mistake, each with file and line.
        UserError: No such file.

    Example:
        >>> load_config("quickstart", overrides=["limit=2"]).limit
        2
    """
    data, source = _read(config)
    try:
        for override in overrides:
            apply_override(data, override, source, example="engine.batch_size=4")
        resolved = RunConfig.model_validate(data)
    except SettingsError as error:
        raise ConfigError(error.problems) from None
    except ValidationError as error:
        problems = explain(error, source, RunConfig)
        more = _besides(data, error, source) if check_names else ()
        raise ConfigError([*problems, *more]) from None
    if check_names:
        check(resolved, source)
        resolved = resolved.model_copy(update={"tasks": [normal_task(task) for task in resolved.tasks]})
    try:
        names = [variant.name for variant in all_variants(resolved)]
    except ValueError as error:
        raise ConfigError([source.message(("models",), str(error))]) from None
    if resolved.compare.baseline is None and len(names) > 1:
        compare = resolved.compare.model_copy(update={"baseline": names[0]})
        resolved = resolved.model_copy(update={"compare": compare})
    return resolved


def _besides(data: dict[str, Any], error: ValidationError, source: Source) -> Sequence[str]:
    """What is wrong with names and folders too, so that a config is mended in one round where that can be."""
    meant = as_meant(data, error, source, RunConfig)
    try:
        if meant is not None:
            check(RunConfig.model_validate(meant), source)
    except ConfigError as found:
        return found.problems
    except ValidationError:
        pass  # of what was left out, or of a value under a key that was misspelt: told when that is mended
    return ()


def normal_task(task: TaskSpec) -> TaskSpec:
    """Write a checked task's own parameters in one form, so that 1k and 1024 are one run."""
    from nsa_tasks import is_own, normal

    return task.with_params(normal(task.task, task.params)) if is_own(task.task) else task


def _read(config: ConfigLike) -> tuple[dict[str, Any], Source]:
    if isinstance(config, RunConfig):
        return to_plain(config), Source("config")
    if isinstance(config, Mapping):
        return {"name": "run", **copy.deepcopy(dict(config))}, Source("config")
    path = find_config(config)
    source = Source(_short(path))
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UserError(f"{source.label}: {path.stat().st_size:,} bytes: that is no config")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{source.label}: not a UTF-8 text file (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{source.label}: cannot be read: {error.strerror}") from None
    try:
        data, source.lines = parse_yaml(text)
    except YamlError as error:
        source.lines = {error.path: error.line}
        raise ConfigError([source.message(error.path, error.message)]) from None
    if data is None:
        raise ConfigError([f"{source.label}: the file is empty: a config needs models and tasks"])
    if not isinstance(data, dict):
        raise ConfigError(
            [f"{source.label}:1: expected keys such as models: and tasks:, got {type(data).__name__}"]
        )
    data.setdefault("name", default_model_name(path.stem))
    return data, source


def _short(path: Path) -> str:
    """The path as people would type it: relative to the current folder when it lies below."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def to_plain(config: RunConfig) -> dict[str, Any]:
    """The config as plain data with every default written out, as in run.yaml."""
    data: dict[str, Any] = config.model_dump(mode="json")
    for model, given in zip(data["models"], config.models, strict=True):
        for key in ("lm", "lm_args", "template_date"):
            if not getattr(given, key):
                del model[key]
        if given.variants == [VariantSpec()]:
            del model["variants"]
        else:
            model["variants"] = [
                spec.model_dump(mode="json", exclude_defaults=True) for spec in given.variants
            ]
    for task in data["tasks"]:
        for key in [k for k in TASK_DEFAULTS if task.get(k) is None]:
            task.pop(key)
    return data


TASK_DEFAULTS = tuple(name for name, info in TaskSpec.model_fields.items() if info.default is None)
"""Keys of a task that are left out of run.yaml when they aren't set: most tasks set none of them."""


def dump_yaml(config: RunConfig, *, header: str = "") -> str:
    """Write a config as YAML that `load_config` reads back as the same config.

    Args:
        config: The config.
        header: Comment lines to open with, without `#`.
    """
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    body: str = yaml.dump(to_plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return comment + body


class _Dumper(yaml.SafeDumper):
    """Quotes text that any YAML version would read as something else; no anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401  (PyYAML's own signature)
        return True
