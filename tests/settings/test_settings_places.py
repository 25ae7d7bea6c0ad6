# ruff: noqa: E501  (whole messages on one line, as a user reads them)
"""Where a mistake in settings is: the file's line, what was typed after --set, a place inside of a value."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nsa_settings import SettingsError, Source, apply_override, explain, mistakes, parse_yaml, set_value

TEXT = """\
rows:
  - {size: 1}
  - size: 2
    colour: red
"""


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    size: int


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    rows: tuple[Row, ...] = Field(strict=False, min_length=1)
    named: dict[str, int] = {}

    @model_validator(mode="after")
    def _even(self) -> Settings:
        odd = {("rows", i, "size"): "an odd size" for i, row in enumerate(self.rows) if row.size > 9}
        if odd:
            raise mistakes(odd)
        return self


def told(text: str, *overrides: str) -> list[str]:
    data, lines = parse_yaml(text)
    source = Source("x.yaml", lines)
    for override in overrides:
        apply_override(data, override, source, example="rows.0.size=3")
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(data)
    return explain(caught.value, source, Settings)


@pytest.mark.parametrize(
    ("text", "overrides", "lines"),
    [
        (TEXT, [], ["x.yaml:4: rows[1].colour: unknown key; known: size"]),
        (
            TEXT.replace("colour: red", "named: 1"),
            ["rows.1.sizes=3"],
            [
                "x.yaml:4: rows[1].named: unknown key; known: size",
                "--set rows.1.sizes=3: rows[1].sizes: unknown key; did you mean 'size'?",
            ],
        ),
        # A section that was not written is made by what sets a part of it: a mistake in its name stands there.
        ("rows: [{size: 1}]", ["nmaed.a=1"], ["--set nmaed.a=1: nmaed: unknown key; did you mean 'named'?"]),
        ("rows: [{size: 1}]", ["named.a=x", "named.b=1"], ["--set named.a=x: named.a: expected a whole number, got 'x'"]),
        # What was set as a whole has no line of the file's any more, nor what was set inside of it before.
        (
            TEXT,
            ["rows.1.size=5", "rows=[{size: 1}, {sise: 2, size: 3}]"],
            ["--set rows=[{size: 1}, {sise: 2, size: 3}]: rows[1].sise: unknown key; did you mean 'size'?"],
        ),
        ("rows: []", [], ["x.yaml:1: rows: the list is empty: name at least one row"]),
        ("rows: 3", [], ["x.yaml:1: rows: expected a list, got 3"]),
        ("rows:\n  - {size: '3'}", [], ["x.yaml:2: rows[0].size: expected a whole number, got '3' (in quotes it is text)"]),
        ("rows:\n  - {size: big}", [], ["x.yaml:2: rows[0].size: expected a whole number, got 'big'"]),
        ("rows:\n  - {size: 1}\n  - {size: 11}", [], ["x.yaml:3: rows[1].size: an odd size"]),
    ],
)  # fmt: skip
def test_each_mistake_names_its_place(text: str, overrides: list[str], lines: list[str]) -> None:
    assert told(text, *overrides) == lines


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("rows.7.size", "there.yaml:3: rows has entries 0 to 1; there is no 7"),
        ("rows.a.size", "there.yaml:3: rows has no entry 'a'"),
        ("rows.0.size.x", "there.yaml:3: rows[0].size is 1, so it has no 'x' to set"),
    ],
)
def test_a_key_that_leads_nowhere_is_told_by_who_set_it(key: str, said: str) -> None:
    data, lines = parse_yaml(TEXT)
    with pytest.raises(SettingsError) as caught:
        set_value(data, key, 1, Source("x.yaml", lines), "there.yaml:3")
    assert caught.value.problems == (said,)


def test_numbers_are_keys_where_they_are_asked_for_and_mean_their_text() -> None:
    read: Any = parse_yaml("by: {2048: 1, 4096: 2}", number_keys=True)[0]
    assert read == {"by": {"2048": 1, "4096": 2}}
    with pytest.raises(ValueError, match="keys are words"):
        parse_yaml("by: {2.5: 1}", number_keys=True)
