"""`nsa-eval data check`: every data set of every family, whether it is here, and what is wrong with it."""

import hashlib
import json

import pytest

from nsa_eval.cli import main
from nsa_tasks import families
from nsa_tasks.data import ENVIRONMENT, DataSource

LINES = '{"q": 1}\n{"q": 2}\n'
SOURCES = (
    DataSource(
        file="sums.jsonl", how="Write it.", fields=("q",), hub="a/sums", revision="f00", licence="MIT"
    ),
    DataSource(file=("short.jsonl", "long.jsonl"), how="Take both."),
    DataSource(file="essays", how="Write them."),
    DataSource(
        file="sums.jsonl", how="Write it.", fields=("q",), hub="a/sums", revision="f00", licence="MIT"
    ),
)


@pytest.fixture
def check(capsys, monkeypatch):
    """Run `data check`: exit code, rows of the list, standard error."""
    needle = families()["needle"]
    monkeypatch.setattr(type(needle), "data_sources", lambda self, params=None: SOURCES)
    monkeypatch.delenv(ENVIRONMENT, raising=False)

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main(["data", "check", "--family", "needle", *map(str, arguments)])
        output, errors = capsys.readouterr()
        return left.value.code or 0, [line.split("\t") for line in output.splitlines()], errors

    return run


def test_what_is_there_has_records_and_hash_and_what_is_not_has_a_way_to_get_it(check, tmp_path):
    (tmp_path / "sums.jsonl").write_text(LINES)
    (tmp_path / "short.jsonl").write_text(LINES)
    code, rows, _ = check("--data-root", tmp_path)
    digest = hashlib.sha256(LINES.encode()).hexdigest()
    assert code == 0
    assert rows == [
        ["needle", "there", "sums.jsonl", "2", digest, "a/sums@f00", "MIT", "Write it."],
        [
            *("needle", "incomplete", "short.jsonl long.jsonl", "", "", "", ""),
            f"no {tmp_path}/long.jsonl, beside short.jsonl: all are needed. Take both.",
        ],
        ["needle", "missing", "essays", "", "", "", "", "Write them."],
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"q": 1}\n{"p": 2}\n', "line 2: the record has no q"),
        ('{"q": 1}\n{"q": \n', "line 2: not valid JSON"),
    ],
)
def test_a_damaged_file_is_told_by_line_and_by_the_exit_code(check, tmp_path, monkeypatch, content, message):
    (tmp_path / "sums.jsonl").write_text(content)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    code, rows, _ = check()
    assert code == 2
    assert rows[0][:3] == ["needle", "damaged", "sums.jsonl"]
    assert f"{tmp_path}/sums.jsonl, {message}" in rows[0][-1]


def test_a_set_that_is_there_twice_is_damaged(check, tmp_path):
    for name in ("sums.jsonl", "sums.jsonl.xz"):
        (tmp_path / name).write_bytes(b"")
    code, rows, _ = check("--data-root", tmp_path)
    assert (code, rows[0][1]) == (2, "damaged")
    assert "there also is sums.jsonl.xz; keep one of them" in rows[0][-1]


def test_without_a_data_root_all_is_missing_and_that_is_no_error(check):
    code, rows, _ = check()
    assert code == 0
    assert {row[1] for row in rows} == {"missing"}


def test_a_data_root_that_is_no_folder_is_an_error(check, tmp_path):
    code, _, errors = check("--data-root", tmp_path / "no")
    assert code == 2
    assert "no such folder" in errors


def test_a_terminal_shows_where_a_missing_file_was_looked_for(check, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    _, rows, _ = check("--data-root", tmp_path)
    text = "\n".join(" ".join(row) for row in rows)
    assert f"    no {tmp_path}/sums.jsonl\n    hub: a/sums; MIT; Write it." in text


def test_every_familys_sources_say_how_to_get_them():
    for family in families().values():
        for source in family.data_sources():
            assert source.how.endswith("."), (family.name, json.dumps(source.files))
