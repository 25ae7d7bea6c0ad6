"""YAML as configs are read: YAML 1.2's scalars, lines of keys, and its refusals."""

import pytest

from nsa_settings import YamlError, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),  # YAML 1.1's false, and Norway
        ("on", "on"),
        ("true", True),
        ("010", "010"),  # YAML 1.1's 8
        ("0", 0),
        ("-12", -12),
        ("1:30", "1:30"),  # YAML 1.1's 90
        ("1e-3", 0.001),  # YAML 1.1's text
        ("2.50", 2.5),
        ("1k", "1k"),
        ("2024-01-31", "2024-01-31"),  # YAML 1.1's date
        ("~", None),
        ("null", None),
        ("'3'", "3"),
        (".inf", float("inf")),
    ],
)
def test_scalars_mean_what_they_look_like(text, value):
    read, _ = parse_yaml(f"key: {text}")
    assert read == {"key": value}
    assert type(read["key"]) is type(value)


def test_lines_of_keys_and_entries():
    _, lines = parse_yaml("a: 1\n\n# comment\nb:\n  - x\n  - c: 2\n    d: {e: 3}\n")
    assert lines[("a",)] == 1
    assert lines[("b",)] == 4
    assert lines[("b", 1)] == 6
    assert lines[("b", 1, "d")] == 7
    assert lines[("b", 1, "d", "e")] == 7


def test_a_key_given_twice_is_refused_with_both_lines():
    with pytest.raises(YamlError, match=r"given twice \(first on line 1\)") as caught:
        parse_yaml("limit: 1\nname: x\nlimit: 2\n")
    assert caught.value.line == 3
    assert caught.value.path == ("limit",)


def test_anchors_and_merges_work_and_own_keys_win():
    data, lines = parse_yaml("a: &base {x: 1, y: 2}\nb:\n  y: 3\n  <<: *base\nc: *base\n")
    assert data["b"] == {"x": 1, "y": 3}
    assert data["c"] == {"x": 1, "y": 2}
    assert lines[("b", "y")] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", "alias"),
        ("1: x", "keys are words"),
        ("? [a]\n: x", "keys are words"),
        ("a: !!python/object/apply:os.getcwd []", "isn't allowed|could not determine"),
        ("a: !thing 3", "isn't allowed"),
        ("a: [1, 2", "not valid YAML"),
        ("a:\n\t- 1", "tab"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: \x07", "not valid YAML"),
    ],
)
def test_what_a_config_may_not_hold(text, message):
    with pytest.raises(YamlError, match=message):
        parse_yaml(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!int abc", "not a whole number, as its tag says: 'abc'"),
        ("!!int ''", "not a whole number, as its tag says: ''"),
        ("!!int 010", "not a whole number, as its tag says: '010'"),  # YAML 1.1's 8
        ("!!float 1:30.5", "not a number, as its tag says: '1:30.5'"),
        ("!!bool yes", "not true or false, as its tag says: 'yes'"),  # YAML 1.1's true
        ("!!null none", "not null, as its tag says: 'none'"),
    ],
)
def test_a_tag_does_not_make_a_value_what_it_is_not(text, message):
    with pytest.raises(YamlError, match=message) as caught:
        parse_yaml(f"limit: 1\nkey: {text}")
    assert (caught.value.line, caught.value.path) == (2, ("key",))
    with pytest.raises(YamlError, match="keys are words"):
        parse_yaml(f"{text}: 1")


def test_a_tag_may_say_what_a_value_is():
    data, _ = parse_yaml("{a: !!int 3, b: !!float 3, c: !!str 3, d: !!bool true, e: !!null ~}")
    assert data == {"a": 3, "b": 3.0, "c": "3", "d": True, "e": None}
    assert isinstance(data["b"], float)


def test_python_tags_run_nothing(tmp_path):
    marker = tmp_path / "ran"
    with pytest.raises(YamlError):
        parse_yaml(f"a: !!python/object/apply:os.mkdir ['{marker}']")
    assert not marker.exists()


def test_an_empty_document_is_none():
    assert parse_yaml("# nothing\n")[0] is None
