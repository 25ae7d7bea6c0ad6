"""Records from files and from the hub: what is found, and what is said when it isn't."""

import gzip
import hashlib
import json
import os

import pytest

from nsa_tasks import TaskDataError
from nsa_tasks.data import ENVIRONMENT, DataSource, data_root, file_sha256, load_data, read_records

RECORDS = [{"question": "1 + 1?", "answer": "2"}, {"question": "a\u2028b", "answer": "c"}]
LINES = "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS) + "\n"
SOURCE = DataSource(
    file="sums/test.jsonl", how="Take it from the benchmark's page.", fields=("question", "answer")
)


@pytest.fixture(autouse=True)
def no_root(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "sums").mkdir()
    (tmp_path / "sums" / "test.jsonl").write_text(LINES, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("way", ["given", "environment"])
def test_a_file_under_the_data_root_is_read_and_named_by_its_content(root, monkeypatch, way):
    if way == "environment":
        monkeypatch.setenv(ENVIRONMENT, str(root))
    data = load_data(SOURCE, root if way == "given" else None)
    assert data.records == RECORDS
    assert data.name == f"data:{hashlib.sha256(LINES.encode()).hexdigest()[:16]}"


def test_a_given_root_wins_over_the_environment(root, tmp_path_factory, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path_factory.mktemp("empty")))
    assert load_data(SOURCE, root).records == RECORDS


def test_a_root_that_is_no_folder_is_named_with_where_it_came_from(monkeypatch):
    with pytest.raises(TaskDataError, match="data_root = 'no/where': no such folder"):
        data_root("no/where")
    monkeypatch.setenv(ENVIRONMENT, "no/where")
    with pytest.raises(TaskDataError, match=f"{ENVIRONMENT} = 'no/where': no such folder"):
        data_root()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.jsonl", LINES.encode()),
        ("r.jsonl", b"\xef\xbb\xbf" + LINES.encode().replace(b"\n", b"\r\n\n")),
        ("r.json", json.dumps(RECORDS).encode()),
        ("r.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("r.json.gz", gzip.compress(json.dumps(RECORDS).encode(), mtime=0)),
    ],
)
def test_lines_and_lists_are_read_also_compressed(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read_records(tmp_path / name, ["answer"]) == RECORDS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", b'{"answer": 1}\n\n{"answer": \n', r"r\.jsonl, line 3: not valid JSON"),
        ("r.jsonl", b'{"answer": 1}\n[1]\n', r"r\.jsonl, line 2: expected a mapping of fields, got list"),
        ("r.jsonl", b'{"answer": 1}\n{"b": 1, "c": 2}\n', r"line 2: the record has no answer; it has b, c"),
        ("r.jsonl", b"[" * 100_000, "line 1: not valid JSON"),
        ("r.json", b'[{"answer": 1}, {}]', r"r\.json, record 2: the record has no answer"),
        ("r.json", b'{"answer": 1}', "expected a list of records, got dict"),
        ("r.json", b"[]", "holds no records"),
        ("r.jsonl", b"\n\n", "holds no records"),
        ("r.jsonl", b"\xff\xfe", "not UTF-8 text"),
        ("r.jsonl.gz", b"not gzip", "cannot be read"),
        ("r.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-12], "cannot be read"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskDataError, match=message):
        read_records(tmp_path / name, ["answer"])


@pytest.mark.timeout(20)
def test_a_pipe_in_a_files_place_is_refused_and_not_waited_on(root):
    (root / "sums" / "test.jsonl").unlink()
    os.mkfifo(root / "sums" / "test.jsonl")
    with pytest.raises(TaskDataError, match="expected a regular file"):
        load_data(SOURCE, root)
    with pytest.raises(TaskDataError, match="expected a regular file"):
        read_records(root / "sums" / "test.jsonl")


def test_another_file_than_the_checked_one_names_both_hashes(root):
    found = file_sha256(root / "sums" / "test.jsonl")
    assert load_data(DataSource(file=SOURCE.file, how="", sha256=found), root).records == RECORDS
    with pytest.raises(TaskDataError, match=f"its SHA-256 is {found}, expected {'0' * 64}"):
        load_data(DataSource(file=SOURCE.file, how="", sha256="0" * 64), root)


def test_a_missing_file_is_named_with_how_to_get_it(tmp_path):
    with pytest.raises(TaskDataError) as caught:
        load_data(SOURCE, tmp_path)
    assert str(caught.value) == f"no {tmp_path}/sums/test.jsonl. Take it from the benchmark's page."
    with pytest.raises(
        TaskDataError, match=rf"no data root is named \(data_root, or {ENVIRONMENT}.*sums/test"
    ):
        load_data(SOURCE)


def test_without_a_file_the_hub_is_asked_and_its_records_are_checked(monkeypatch):
    asked = []

    def load_dataset(*arguments, **keys):
        asked.append((arguments, keys))
        return RECORDS

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    source = DataSource(**{**_fields(SOURCE), "hub": "a/sums", "config": "main", "revision": "f00"})
    data = load_data(source)
    assert asked == [(("a/sums", "main"), {"split": "test", "revision": "f00"})]
    assert (data.records, data.name) == (RECORDS, "hub:a/sums@f00")
    with pytest.raises(TaskDataError, match=r"a/sums \(test\), record 1: the record has no level"):
        load_data(DataSource(**{**_fields(source), "fields": ("level",)}))


def test_offline_the_error_names_file_hub_and_remedy(tmp_path, monkeypatch):
    def load_dataset(*arguments, **keys):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    source = DataSource(**{**_fields(SOURCE), "hub": "a/sums"})
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    with pytest.raises(
        TaskDataError,
        match=rf"no {tmp_path}/sums/test.jsonl, and the hub's a/sums can't be had \(Conn.*: .*page\.",
    ):
        load_data(source)


def test_a_root_given_for_the_purpose_is_never_passed_over_for_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: RECORDS)
    with pytest.raises(TaskDataError, match=r"test\.jsonl\. Take it"):
        load_data(DataSource(**{**_fields(SOURCE), "hub": "a/sums"}), tmp_path)


def _fields(source):
    return {name: getattr(source, name) for name in source.__dataclass_fields__}
