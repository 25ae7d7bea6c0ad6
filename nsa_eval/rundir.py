"""The folder of a run: checked before anything expensive starts, and never left half-written.

    run.yaml                   the resolved config; its presence makes the folder a run
    env.json                   machine, versions, command line
    store/responses*.jsonl     every finished response; a file for each process that answers
    MODEL/results_DATE.json, samples_TASK_DATE.jsonl, audit.json     one folder per finished model
    MODEL/looks.json           where it looked, if that was asked for; written afterwards
    audit.json, comparison.json, comparison.md, report.html, figures/

A model's folder is written under `.partial/` and moved into place in one step, so it is there as a whole or
not at all. Whoever holds the lock of `store/` may change any of it, and nobody else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from nsa_eval._paths import is_file, is_folder, is_there, user_path
from nsa_eval.config import RunConfig, TaskSpec, all_variants, dump_yaml, load_config, to_plain
from nsa_eval.config.marks import without_neutral
from nsa_eval.errors import UserError
from nsa_tasks import is_own
from nsa_tasks import portable as portable_params

_NEEDED_BYTES = 16 * 2**20
"""Free space asked for before a run starts: results and samples of a small grid take a few MiB."""
_FULL = {errno.ENOSPC, errno.EDQUOT}
DISK_ERRORS = frozenset({*_FULL, errno.EROFS})
"""Error numbers that mean trouble with the disk, whatever was being written."""
_OWN_FILES = ("audit.json", "comparison.json", "comparison.md", "costs.json", "report.html", "env.json")


class RunDirectory:
    """A folder that holds, or is about to hold, one run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Name the folder; it may not exist yet."""
        self.path = user_path(path)

    @property
    def store_path(self) -> Path:
        """File of the finished responses."""
        return self.path / "store" / "responses.jsonl"

    @property
    def staging(self) -> Path:
        """Where a model's files are written before they are moved into place."""
        return self.path / ".partial"

    def check_usable(self, *, overwrite: bool = False) -> None:
        """Refuse a folder that can't be a run's, before anything is written into it.

        Raises:
            UserError: The folder can't be written, the disk is full, or the folder holds something else.
        """
        self._check_writable()
        if self._previous() is not None or overwrite:
            return
        strangers = sorted(
            p.name for p in self.path.iterdir() if not p.name.startswith(".") and p.name != "store"
        )
        if strangers:
            shown = ", ".join(strangers[:4]) + (", ..." if len(strangers) > 4 else "")
            raise UserError(
                f"{self.path} isn't empty and isn't a run (it has no run.yaml; it holds {shown}): "
                "choose another folder with -o"
            )

    def prepare(self, config: RunConfig, *, overwrite: bool = False) -> bool:
        """Make the folder this run's, while its lock is held.

        Args:
            config: The run's config.
            overwrite: Replace the results of another config; responses that still apply are kept and reused.

        Returns:
            Whether run.yaml is new or changed, so that tables and report have to be made anew.

        Raises:
            UserError: The folder holds a run whose config differs in more than neutral keys.
        """
        previous = self._previous()
        config = portable(config)
        if previous is not None:
            changes = list(differences(without_neutral(previous), without_neutral(config)))
            if changes and not overwrite:
                raise UserError(
                    f"{self.path} holds a run with another config:\n"
                    + "\n".join(f"  {change}" for change in changes)
                    + "\nChoose another folder with -o, or add --overwrite to replace its results "
                    "(finished responses that still apply are kept and reused)."
                )
            if changes:
                self._remove_results(previous)
            elif to_plain(previous) == to_plain(config):
                return False
            else:  # names may change; what the old ones wrote is made again from the store
                self._remove_models(
                    {v.name for v in all_variants(previous)} - {v.name for v in all_variants(config)}
                )
        write_atomically(
            self.path / "run.yaml",
            dump_yaml(
                config, header=f"The resolved config of this run.\nnsa-eval run {self.path} goes on with it."
            ),
        )
        return True

    def results_file(self, model: str) -> Path | None:
        """The results file of a finished model, or None.

        A file without results, an empty mapping say, finishes no model; one that can't be read is returned,
        and whoever reads it says so.
        """
        found = sorted((self.path / model).glob("results_*.json"))
        return found[-1] if found and not _is_empty(found[-1]) else None

    def forget(self, model: str) -> None:
        """Remove the results of a model, which are to be made anew; the store stays."""
        self._remove_models({model})

    def publish(self, model: str) -> Path:
        """Move a model's staged folder into place.

        Returns:
            Its results file.
        """
        staged, final = self.staging / model, self.path / model
        if final.exists():  # left by an older version or by hand: it holds no results, or we wouldn't be here
            shutil.rmtree(final)
        for file in staged.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        staged.rename(final)
        with contextlib.suppress(OSError):  # another model's files are still being written there
            self.staging.rmdir()
        found = self.results_file(model)
        if found is None:
            raise UserError(f"{final}: the results file vanished while it was moved into place; run again")
        return found

    def _check_writable(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.path).free
            probe = self.path / f".probe-{os.getpid()}"
            try:
                with probe.open("wb") as file:
                    file.write(b"\0" * 65536)
                    file.flush()
                    os.fsync(file.fileno())
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise explain_os_error(error, self.path) from None
        if free < _NEEDED_BYTES:
            raise UserError(
                f"{self.path}: only {free / 2**20:.0f} MiB are free, a run needs {_NEEDED_BYTES >> 20}: "
                "free some space or choose another folder with -o"
            )

    def _previous(self) -> RunConfig | None:
        file = self.path / "run.yaml"
        if not file.is_file():
            return None
        try:
            return load_config(file, check_names=False)
        except UserError as error:
            raise UserError(
                f"the folder's own run.yaml can't be read; choose another folder with -o\n{error}"
            ) from None

    def _remove_results(self, previous: RunConfig) -> None:
        """Remove what the former config's run wrote, by the names it wrote them under; the store stays."""
        self._remove_models({variant.name for variant in all_variants(previous)})
        for name in _OWN_FILES:
            (self.path / name).unlink(missing_ok=True)

    def _remove_models(self, names: Collection[str]) -> None:
        for name in names:
            folder = self.path / name
            for pattern in ("results_*.json", "samples_*.jsonl", "audit.json", "costs.json", "looks.json"):
                for file in folder.glob(pattern):
                    file.unlink()
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _is_empty(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and not all(
        isinstance(content.get(key), dict) and content[key] for key in ("results", "configs")
    )


def home_of(config: object) -> Path | None:
    """The run folder that a config was named by (the folder, or the run.yaml in it), or None.

    A run.yaml counts where a store lies beside it: another file may have that name too.
    """
    if not isinstance(config, str | os.PathLike):
        return None
    path = user_path(config)
    if is_folder(path) and is_file(path / "run.yaml"):
        return path
    return path.parent if path.name == "run.yaml" and is_folder(path.parent / "store") else None


def portable(config: RunConfig) -> RunConfig:
    """The config with its folders as absolute paths, so that run.yaml means the same from anywhere."""

    def absolute(path: str) -> str:
        expanded = user_path(path)
        return str(expanded.resolve()) if is_there(expanded) else path

    def task(spec: TaskSpec) -> TaskSpec:
        return spec.with_params(portable_params(spec.task, spec.params)) if is_own(spec.task) else spec

    models = [
        m.model_copy(update={"path": absolute(m.path)}) if is_folder(user_path(m.path)) else m
        for m in config.models
    ]
    tasks = [task(t) for t in config.tasks]
    return config.model_copy(
        update={"models": models, "tasks": tasks, "include_path": [absolute(p) for p in config.include_path]}
    )


def differences(there: Any, here: Any, key: str = "") -> Iterator[str]:  # noqa: ANN401  (plain data)
    """Say in which keys two configs, as plain data, differ: one line each."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in [*there, *(k for k in here if k not in there)]:
            yield from differences(there.get(name), here.get(name), f"{key}.{name}" if key else name)
    elif (
        isinstance(there, list)
        and isinstance(here, list)
        and any(isinstance(v, dict) for v in [*there, *here])
    ):
        for i in range(max(len(there), len(here))):
            one, other = (side[i] if i < len(side) else None for side in (there, here))
            yield from differences(one, other, f"{key}[{i}]")
    elif there != here:
        yield f"{key}: {_shown(there)} there, {_shown(here)} here"


def _shown(value: object) -> str:
    if value is None:
        return "not given"
    if isinstance(value, dict):
        return str(value.get("name") or value.get("alias") or value.get("task") or "given")
    return json.dumps(value, default=str)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one, never a part.

    Raises:
        UserError: The disk is full or the folder can't be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise explain_os_error(error, path) from None


def write_json(path: Path, data: object) -> None:
    """Write plain data as JSON, atomically."""
    write_atomically(path, json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n")


def explain_os_error(error: OSError, path: Path) -> UserError:
    """One message for a folder that can't be written or a disk that is full."""
    if error.errno in _FULL:
        return UserError(
            f"{path}: no space left on its disk. What is finished is kept: free some space and run the same "
            "command again"
        )
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return UserError(f"{path}: cannot be written ({error.strerror}): choose another folder with -o")
    if isinstance(error, FileExistsError | NotADirectoryError):
        return UserError(f"{path}: a file is in the way of this folder: choose another folder with -o")
    return UserError(f"{path}: cannot be written ({error.strerror or error}): choose another folder with -o")
