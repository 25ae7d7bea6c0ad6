"""Checks of the tables that a config lays out: every name in them stands for something of the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from nsa_eval._paths import is_folder, user_path
from nsa_eval.catalog import lm_eval_tasks
from nsa_eval.config._members import expand
from nsa_eval.config.schema import ColumnSpec, RunConfig, TableSpec
from nsa_settings import Place, did_you_mean

Problem = tuple[Place, str]


def check_tables(config: RunConfig, models: Sequence[str]) -> Iterator[Problem]:
    """Find names of tasks, models and columns that there are not.

    Args:
        config: The config.
        models: Names of its variants.
    """
    seen = {"scores", "budgets"}  # every run's own
    for i, table in enumerate(config.report.tables):
        where: Place = ("report", "tables", i)
        if table.name.casefold() in seen:
            yield (*where, "name"), f"{table.name!r} is the name of another table already"
        seen.add(table.name.casefold())
        for path, text in _check_table(table, config, models):
            yield (*where, *path), text


def _check_table(table: TableSpec, config: RunConfig, models: Sequence[str]) -> Iterator[Problem]:
    titles = [column.title for column in table.columns]
    for title, count in Counter(titles).items():
        if count > 1:
            yield ("columns",), f"{count} columns are called {title!r}: give each a header of its own"
    tasks, open_ended = _names(config)
    for i, column in enumerate(table.columns):
        for key, text in _check_column(column, titles[:i], tasks, open_ended):
            yield ("columns", i, *key), text
    for i, row in enumerate(table.rows):
        if row.model not in models:
            yield ("rows", i, "model"), f"no model is named {row.model!r}{did_you_mean(row.model, models)}"
    for i, block in enumerate(table.reported):
        for j, reported in enumerate(block.rows):
            for header in reported.values:
                if header not in titles:
                    text = f"no column is called {header!r}{did_you_mean(header, titles)}"
                    yield ("reported", i, "rows", j, "values", header), text


def _check_column(
    column: ColumnSpec, before: Sequence[str], tasks: set[str], open_ended: frozenset[str]
) -> Iterator[Problem]:
    if (column.task is None) == (column.mean is None):
        yield (), "a column shows a task, or the mean of other columns: name one of task and mean"
    elif column.task is not None and column.task not in tasks and column.task not in open_ended:
        yield ("task",), f"no task of this run is named {column.task!r}{did_you_mean(column.task, tasks)}"
    for header in column.mean if isinstance(column.mean, list) else ():
        if header not in before:
            yield ("mean",), f"no column before it is called {header!r}{did_you_mean(header, before)}"
    if column.mean is not None and (column.metric is not None or column.length is not None):
        yield ("mean",), "a mean has the metrics and lengths of its columns: leave them out here"


def _names(config: RunConfig) -> tuple[set[str], frozenset[str]]:
    """Names in the results: those known from the config, and those that lm-eval's groups may bring."""
    members = expand(config.tasks)
    known = {*(one.spec.label for one in members.tasks), *(one.label for one in members.groups)}
    from nsa_tasks import is_own

    if all(is_own(one.spec.task) for one in members.tasks):
        return known, frozenset()
    folders = [folder for folder in map(user_path, config.include_path) if is_folder(folder)]
    return known, lm_eval_tasks([str(folder) for folder in folders])
