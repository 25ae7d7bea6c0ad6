"""The package's functions and the strictness of parameters."""

import pytest

from nsa_tasks import (
    TASKS_DIR,
    TaskParameterError,
    list_tasks,
    read_token_count,
    resolve,
    task_spec,
)
from nsa_tasks._parameters import read_depths, read_lengths, write_depths
from nsa_tasks._tokens import request_tokens
from nsa_tasks.needle import FAMILY


@pytest.mark.parametrize(
    ("given", "tokens"),
    [(4096, 4096), ("4096", 4096), ("4k", 4096), ("64K", 65536), (" 1k ", 1024), ("1m", 1 << 20)],
)
def test_token_counts_are_read(given, tokens):
    assert read_token_count(given) == tokens


@pytest.mark.parametrize(
    "given", [0, -1, "0k", 1.5, "1.5k", "k", "", "4 k", None, True, [4096], "\u0664k", "9" * 5000, 2**40]
)
def test_other_token_counts_are_refused(given):
    with pytest.raises(ValueError, match="whole number of tokens"):
        read_token_count(given)


@pytest.mark.parametrize(
    ("given", "depths"),
    [
        (5, [0, 25, 50, 75, 100]),
        ("11", [10 * i for i in range(11)]),
        (1, [50]),
        (2, [0, 100]),
        (7, [0, 16.67, 33.33, 50, 66.67, 83.33, 100]),
        ([0, 12.5, 100], [0, 12.5, 100]),
        ("0,50", [0, 50]),
        ("50%", [50]),
        ("0%, 12.5%", [0, 12.5]),
    ],
)
def test_depths_are_a_count_or_a_list(given, depths):
    assert read_depths(given) == depths


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 11, 1001])
def test_even_depths_are_written_as_their_count(steps):
    assert write_depths(read_depths(steps)) == steps
    assert write_depths([0.0, 50.0]) == [0.0, 50.0]


@pytest.mark.parametrize(
    "given",
    [0, -3, True, [], [50, 50], [-1], [101], ["10"], "deep", 2.5, None, "nan", "inf", 1002, "101%", ""],
)
def test_other_depths_are_refused(given):
    with pytest.raises(ValueError, match="percentages from 0 to 100"):
        read_depths(given)


def test_lengths_take_one_many_or_a_comma_list():
    assert read_lengths("1k,4k") == read_lengths(["1k", 4096]) == [1024, 4096]
    assert read_lengths(512) == [512]
    with pytest.raises(ValueError, match="stands there twice"):
        read_lengths(["1k", 1024])
    with pytest.raises(ValueError, match="at least one length"):
        read_lengths([])


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("needle_singel", {}, "unknown task 'needle_singel'. There are: .*needle_single"),
        ("needle_single", {"length": ["4k"]}, r"unknown parameter 'length' \(did you mean 'lengths'\?\)"),
        ("needle_single", {"num_keys": 3}, "unknown parameter 'num_keys'.*It takes: lengths"),
        (
            "needle_single",
            {"lengths": ["4kk"]},
            r"needle_single: lengths = \['4kk'\]: expected a whole number",
        ),
        ("needle_single", {"depths": 0}, "depths = 0: expected a count"),
        ("needle_single", {"samples": 0}, "samples = 0: expected a whole number from 1"),
        ("needle_single", {"samples": 2.0}, "samples = 2.0: expected"),
        ("needle_single", {"seed": "x"}, "seed = 'x': expected"),
        (
            "needle_single",
            {"haystack": "essays"},
            "haystack = 'essays': expected generated, noise, needles, or text:PATH",
        ),
        (
            "needle_single",
            {"haystack": "text:no/such.txt"},
            "haystack text:no/such.txt: no such file or folder",
        ),
        ("needle_single", {"haystack": "text:"}, "haystack = 'text:': expected"),
        (
            "needle_single",
            {"needle": "numbers"},
            "needle = 'numbers': expected one of number, uuid, word, sentence",
        ),
        ("needle_single", {"key": ["words"]}, "key = .*expected one of words, uuid"),
        ("needle_single", {"new_tokens": 0}, 'new_tokens = 0: expected "auto" or'),
        ("needle_multikey", {"needle": "sentence"}, "only needle_single hides a sentence"),
        ("needle_single", {"needle": "sentence", "haystack": "needles"}, "has no distractors"),
        ("needle_multivalue", {"num_values": 0}, "num_values = 0: expected a whole number from 1"),
    ],
)
def test_bad_parameters_are_one_clear_error(name, params, message):
    with pytest.raises(TaskParameterError, match=message):
        task_spec(name, params, tokenizer="anywhere")
    with pytest.raises(TaskParameterError, match=message):
        resolve(name, params)


def test_alias_names_the_task_and_has_to_suit_file_names():
    assert task_spec("needle_single", {}, tokenizer="t", alias="needle-uuid.2")["task"] == "needle-uuid.2"
    with pytest.raises(TaskParameterError, match="alias 'a/b'"):
        task_spec("needle_single", {}, tokenizer="t", alias="a/b")


def test_spec_holds_resolved_parameters():
    metadata = task_spec(
        "needle_multiquery", {"lengths": ["1k"], "depths": 3, "needle": "uuid"}, tokenizer="t"
    )["metadata"]
    assert metadata["lengths"] == [1024]
    assert metadata["depths"] == [0, 50, 100]
    assert metadata["new_tokens"] == 4 * 48
    assert metadata["protocol"] == "classic"
    assert metadata["tokenizer"] == "t"
    assert metadata["apply_chat_template"] is False


def test_size_needs_no_tokenizer():
    grid = {"lengths": ["1k", "4k"], "depths": 5, "samples": 2}
    assert FAMILY.size(resolve("needle_single", grid)) == (20, 10 * (1024 + 4096))
    assert FAMILY.size(resolve("needle_single")) == (44, 44 * 4096)
    assert FAMILY.max_request_tokens(resolve("needle_single", grid)) == 4096


def test_tasks_are_listed_from_their_yamls():
    infos = {info.name: info for info in list_tasks() if info.family == "needle"}
    asked = {"needle_single", "needle_multikey", "needle_multivalue", "needle_multiquery"}
    assert set(infos) == asked | {"needle_single_nll", "needle_multikey_nll"}
    for info in infos.values():
        assert info.protocol == "classic"
    for info in list_tasks():
        assert info.description
        assert all(parameter.help and parameter.unit for parameter in info.parameters)
    defaults = {parameter.name: parameter.default for parameter in infos["needle_multikey"].parameters}
    assert defaults["num_keys"] == 4
    assert defaults["lengths"] == ["4k"]
    assert (TASKS_DIR / "needle" / "README.md").is_file()


def test_metadata_may_hold_the_models_arguments_but_no_misspelt_parameter():
    metadata = {"pretrained": "m", "dtype": "auto", "max_length": 4096, "num_values": 2, "config_source": "x"}
    assert FAMILY.from_metadata("needle_single", {**metadata, "samples": 1}).samples == 1
    with pytest.raises(
        TaskParameterError, match=r"unknown parameter 'sample' in the metadata \(did you mean 'samples'\?\)"
    ):
        FAMILY.from_metadata("needle_single", {**metadata, "sample": 1})


def test_missing_and_unusable_tokenizers_are_named(tmp_path, bpe_tokenizer, byte_tokenizer):
    with pytest.raises(TaskParameterError, match="was told no tokenizer"):
        request_tokens("needle_single", {})
    with pytest.raises(TaskParameterError, match="cannot be loaded"):
        request_tokens("needle_single", {"tokenizer": str(tmp_path)})
    with pytest.raises(TaskParameterError, match="has no chat template"):
        request_tokens("needle_single", {"tokenizer": byte_tokenizer, "apply_chat_template": True})
    assert request_tokens("needle_single", {"pretrained": bpe_tokenizer}).tokenizer.is_fast
