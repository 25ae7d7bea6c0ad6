"""Read a series: its file, and the recipe of each of its runs."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from nsa_models.train.reading import change, checked, read
from nsa_models.train.recipe import Folder, Recipe, RecipePart
from nsa_settings import SettingsError, Source, set_value

Changes = dict[str, Any]
"""Keys of a recipe (`stages.1.max_steps`) and their values, as for the trainer's --set."""


_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def _folder_name(value: object) -> object:
    if isinstance(value, str) and _FOLDER.fullmatch(value):
        return value
    raise ValueError(f"expected letters, digits, '.', '_', '+' and '-' (it names a folder), got {value!r}")


FolderName = Annotated[str, BeforeValidator(_folder_name)]


class SeriesFile(RecipePart):
    """What a series' YAML holds."""

    name: FolderName
    output: Folder
    """Folder with a folder for each run, and NAME.json."""
    base: Folder
    """Recipe that all runs begin from, relative to the series' own folder."""
    set: Changes = Field(default_factory=dict)
    """What all runs have otherwise than the base."""
    runs: Annotated[dict[FolderName, Changes], Field(min_length=1)]
    """What each run has otherwise again, by the run's name; {} = nothing. They are trained in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A series whose recipes are checked."""

    name: str
    output: Path
    recipes: Mapping[str, Recipe]
    """By the runs' names, in order."""

    @property
    def file(self) -> Path:
        """What came of all runs."""
        return self.output / f"{self.name}.json"


def load_series(path: Path, changes: Sequence[str] = (), *, output: Path | None = None) -> Series:
    """Read a series and the recipe of each of its runs.

    Args:
        path: YAML file.
        changes: Keys to set otherwise in every run, as for a recipe.
        output: Folder in place of the file's own.

    Raises:
        SettingsError: A file can't be read, or a key of the series or of a run's recipe is unknown or wrong;
            a line for each, by the file that it stands in.
    """
    raw, source = read(path, "a series'")
    file = checked(SeriesFile, raw, source)
    base = path.parent / file.base
    if not base.is_file():
        text = f"{base}: cannot be read: no such file (it is named relative to the series' own folder)"
        raise SettingsError([source.message(("base",), text)])
    folder = file.output if output is None else output
    recipes = {}
    problems: list[str] = []
    for name in file.runs:
        try:
            recipes[name] = _recipe(file, name, folder, source, base, changes)
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError(list(dict.fromkeys(problems)))  # what is wrong in the base is so in every run
    return Series(name=file.name, output=folder, recipes=recipes)


def _recipe(
    file: SeriesFile, name: str, folder: Path, source: Source, base: Path, changes: Sequence[str]
) -> Recipe:
    """The recipe of one run: the base, what all runs set, what this one does, what the command line does."""
    raw, of_recipe = read(base, "a recipe's")
    for where, keys in ((("set",), file.set), (("runs", name), file.runs[name])):
        for key, value in keys.items():
            label = f"{source.place((*where, key))}: {'.'.join(where)}"
            _refuse_names(key, label)
            # A later key may change a part of the value.
            set_value(raw, key, copy.deepcopy(value), of_recipe, label)
    for one in changes:
        _refuse_names(one.partition("=")[0], f"--set {one}")
    change(raw, changes, of_recipe)
    raw |= {"name": f"{file.name}-{name}", "output": str(folder / name)}
    return checked(Recipe, raw, of_recipe)


def _refuse_names(key: str, where: str) -> None:
    if key in ("name", "output"):
        told = f"{key} of a run follows from the series; name the run otherwise, or give --output"
        raise SettingsError([f"{where}: {told}"])
