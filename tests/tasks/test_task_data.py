"""Records from files and from the hub: what is found, and what is said when it isn't."""

import gzip
import hashlib
import json
import lzma
import os
import zipfile

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
        ("r.jsonl.xz", lzma.compress(LINES.encode())),
        ("r.json.xz", lzma.compress(json.dumps(RECORDS).encode())),
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
        ("r.jsonl", b"{}\n\xff\xfe", r"r\.jsonl, line 2: not UTF-8 text"),
        ("r.jsonl.gz", b"not gzip", "cannot be read"),
        ("r.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-12], "cannot be read"),
        ("r.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:10] + b"\xff" * 20, "cannot be read"),
        ("r.jsonl.xz", b"not xz", "cannot be read"),
        ("r.jsonl.xz", lzma.compress(LINES.encode())[:-12], "cannot be read"),
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
    assert (data.records, data.name) == (RECORDS, f"hub:a/sums@f00:{data.sha256[:16]}")
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


def _with(**changes):
    return DataSource(**{**_fields(SOURCE), **changes})


@pytest.mark.parametrize("packed", [".gz", ".xz"])
def test_a_compressed_copy_is_found_by_itself_and_is_the_same_data(root, packed):
    plain = load_data(SOURCE, root)
    path = root / "sums" / "test.jsonl"
    pack = gzip.compress if packed == ".gz" else lzma.compress
    path.with_name(f"test.jsonl{packed}").write_bytes(pack(path.read_bytes()))
    with pytest.raises(TaskDataError, match=rf"test\.jsonl: there also is test\.jsonl{packed}; keep one"):
        load_data(SOURCE, root)
    path.unlink()
    data = load_data(_with(sha256=plain.sha256), root)
    assert (data.records, data.name) == (plain.records, plain.name)
    assert [file.name for file in data.files] == [f"test.jsonl{packed}"]
    assert load_data(_with(file=f"sums/test.jsonl{packed}"), root).name == plain.name


class TestAliases:
    """Fields that other copies of a set call something else."""

    SOURCE = DataSource(
        file="a.jsonl", how="", fields=("problem", "answer"), aliases={"problem": ("question", "prompt")}
    )

    def load(self, folder, *records):
        (folder / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
        return load_data(self.SOURCE, folder).records

    @pytest.mark.parametrize("name", ["problem", "question", "prompt"])
    def test_each_name_gives_the_same_records(self, tmp_path, name):
        assert self.load(tmp_path, {name: "1 + 1?", "answer": 2}) == [{"answer": 2, "problem": "1 + 1?"}]

    def test_a_field_that_is_there_twice_may_say_one_thing_only(self, tmp_path):
        both = {"problem": "x", "question": "x", "answer": 1}
        assert self.load(tmp_path, both) == [{"answer": 1, "problem": "x"}]
        with pytest.raises(
            TaskDataError, match=r"a\.jsonl, line 2: ambiguous: problem and question differ, and each could"
        ):
            self.load(tmp_path, both, {**both, "question": "y"})

    def test_a_missing_field_is_named_with_all_its_names(self, tmp_path):
        with pytest.raises(
            TaskDataError, match="line 1: the record has no problem or question or prompt; it"
        ):
            self.load(tmp_path, {"answer": 1})

    def test_the_hubs_records_are_renamed_too(self, monkeypatch):
        rows = [{"prompt": "x", "answer": 1}]
        monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: rows)
        source = DataSource(**{**_fields(self.SOURCE), "hub": "a/sums"})
        assert load_data(source).records == [{"answer": 1, "problem": "x"}]


def test_several_files_are_one_set_in_their_order(tmp_path):
    source = _with(file=("short.jsonl", "long.jsonl"), fields=("answer",))
    (tmp_path / "long.jsonl.xz").write_bytes(lzma.compress(b'{"answer": 2}'))
    with pytest.raises(
        TaskDataError, match=rf"no {tmp_path}/short\.jsonl, beside long\.jsonl\.xz: all are needed\. Take"
    ):
        load_data(source, tmp_path)
    (tmp_path / "short.jsonl").write_text('{"answer": 1}')
    data = load_data(source, tmp_path)
    assert [record["answer"] for record in data.records] == [1, 2]
    assert data.places == (f"{tmp_path}/short.jsonl, line 1", f"{tmp_path}/long.jsonl.xz, line 1")
    other = load_data(_with(file=("long.jsonl", "short.jsonl"), fields=("answer",)), tmp_path)
    assert other.name != data.name
    with pytest.raises(TaskDataError, match=f"its SHA-256 is {data.sha256}, expected 0000"):
        load_data(_with(file=source.file, fields=(), sha256="0" * 64), tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_texts_are_records_a_file_each_from_one_or_a_folder(tmp_path, packed):
    folder = tmp_path / "essays"
    (folder / "more").mkdir(parents=True)
    for name, text in (("b", "two\n"), ("a", "one\n"), ("more/c", "three\n")):
        raw = text.encode()
        end = ".txt.xz" if packed else ".txt"
        (folder / f"{name}{end}").write_bytes(lzma.compress(raw) if packed else raw)
    (folder / "LICENSE.md").write_text("not a text")
    data = load_data(DataSource(file="essays", how="", fields=("id", "text")), tmp_path)
    assert data.records == [
        {"id": "a.txt", "text": "one\n"},
        {"id": "b.txt", "text": "two\n"},
        {"id": "c.txt", "text": "three\n"},
    ]
    one = load_data(DataSource(file="essays/a.txt", how=""), tmp_path)
    assert one.records == data.records[:1]
    assert one.sha256 == hashlib.sha256(b"one\n").hexdigest()


def test_a_folder_without_texts_is_named(tmp_path):
    (tmp_path / "essays").mkdir()
    with pytest.raises(TaskDataError, match=r"essays: the folder holds no \.txt file"):
        load_data(DataSource(file="essays", how=""), tmp_path)


@pytest.mark.parametrize(
    ("content", "at", "expected"),
    [
        ({"data": RECORDS}, "data", RECORDS),
        (RECORDS[0], "", RECORDS[:1]),
        ({"rows": RECORDS}, "data", "expected a mapping with the records under 'data'"),
        ({"data": {}}, "data", "expected a list of records, got dict"),
        (RECORDS, "", "expected a mapping of fields, got list"),
    ],
)
def test_a_json_file_may_hold_its_records_under_a_key_or_be_one(tmp_path, content, at, expected):
    (tmp_path / "r.json").write_text(json.dumps(content))
    source = _with(file="r.json", at=at)
    if isinstance(expected, list):
        assert load_data(source, tmp_path).records == expected
    else:
        with pytest.raises(TaskDataError, match=rf"r\.json: {expected}"):
            load_data(source, tmp_path)


def test_a_file_of_the_hub_is_the_same_data_as_its_local_copy(root, monkeypatch, tmp_path_factory):
    archive = tmp_path_factory.mktemp("hub") / "data.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data/sums.jsonl", LINES)
    asked = []

    def download(*arguments, **keys):
        asked.append((arguments, keys))
        return str(archive if arguments[1].endswith(".zip") else root / "sums" / "test.jsonl")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    local = load_data(SOURCE, root)
    inside = _with(hub="a/sums", hub_file="data.zip/data/sums.jsonl", revision="f00", sha256=local.sha256)
    for source in (inside, _with(hub="a/sums", hub_file="sums.jsonl")):
        data = load_data(source)
        assert (data.records, data.name) == (local.records, local.name)
    assert asked[0] == (("a/sums", "data.zip"), {"repo_type": "dataset", "revision": "f00"})
    assert asked[1][0] == ("a/sums", "sums.jsonl")
    with pytest.raises(TaskDataError, match=r"data\.zip/data/none\.jsonl: cannot be read"):
        load_data(_with(hub="a/sums", hub_file="data.zip/data/none.jsonl"))


def _fields(source):
    return {name: getattr(source, name) for name in source.__dataclass_fields__}
