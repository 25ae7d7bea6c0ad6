"""What the store returned from is there after a kill, and what was half written is not."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from nsa_eval.errors import UserError
from nsa_eval.store import AuditEvent, Response, ResponseStore, StoreError, request_key


def response(value="a reply", **changes):
    return Response(value=value, prompt_tokens=7, new_tokens=3, **changes)


def test_responses_come_back_as_they_were(tmp_path):
    event = AuditEvent(kind="truncated", task="needle", doc_id=3, detail="left", before=90, after=64)
    kept = {
        "text": response('line\nbreak, "quotes", é, \u2028, <script>'),
        "score": response((-1.2345678901234567e-3, True)),
        "rolling": response(-math.pi * 1e6),
        "cut": response("x", events=[event]),
        "empty": response(""),
    }
    with ResponseStore.open(tmp_path / "store" / "responses.jsonl") as store:
        store.put("text", kept["text"])
        store.put_many({key: item for key, item in kept.items() if key != "text"})
        assert {key: store.get(key) for key in kept} == kept
    with ResponseStore.open(tmp_path / "store" / "responses.jsonl") as store:
        assert {key: store.get(key) for key in kept} == kept
        assert isinstance(store.get("score").value, tuple)
        assert len(store) == 5
        assert store.get("unknown") is None


def test_each_put_is_one_line_of_plain_json(tmp_path):
    path = tmp_path / "responses.jsonl"
    with ResponseStore.open(path) as store:
        store.put("a", response())
        store.put_many({"b": response(), "c": response()})
        store.put_many({})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [[record["key"] for record in line] for line in lines] == [["a"], ["b", "c"]]


@pytest.mark.parametrize("cut", [1, 2, 20, -1])
def test_torn_last_line_is_dropped_and_written_over(tmp_path, cut):
    path = tmp_path / "responses.jsonl"
    with ResponseStore.open(path) as store:
        store.put("a", response("first"))
    whole = path.read_bytes()
    with ResponseStore.open(path) as store:
        store.put_many({"b": response("second"), "c": response("third")})
    line = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + line[:cut])
    with ResponseStore.open(path) as store:
        assert len(store) == 1
        store.put("d", response("fourth"))
    with ResponseStore.open(path) as store:
        assert [store.get(key) is not None for key in "abcd"] == [True, False, False, True]


def test_length_without_content_at_the_end_is_dropped(tmp_path):
    """After a power cut a file can be as long as it should be, with zeros where the last line was."""
    path = tmp_path / "responses.jsonl"
    with ResponseStore.open(path) as store:
        store.put("a", response())
    with path.open("ab") as file:
        file.write(b"\0" * 40 + b"\n")
    with ResponseStore.open(path) as store:
        assert len(store) == 1
        store.put("b", response())
    with ResponseStore.open(path) as store:
        assert len(store) == 2


def test_damage_before_the_end_is_named_by_line(tmp_path):
    path = tmp_path / "responses.jsonl"
    with ResponseStore.open(path) as store:
        store.put("a", response())
        store.put("b", response())
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("not json\n" + lines[1])
    with pytest.raises(StoreError, match=r"responses\.jsonl, line 1: not a stored response"):
        ResponseStore.open(path)


def test_second_run_in_the_same_folder_is_refused(tmp_path):
    path = tmp_path / "responses.jsonl"
    with ResponseStore.open(path), pytest.raises(UserError, match="another run is using"):
        ResponseStore.open(path)
    ResponseStore.open(path).close()  # and the lock goes with the first


def test_full_disk_is_one_clear_error_and_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "responses.jsonl"
    store = ResponseStore.open(path)
    store.put("a", response())
    write = os.write

    def half_then_full(descriptor, data):
        if len(data) > 10:
            return write(descriptor, bytes(data[:10]))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(
            os, "write", lambda d, data: half_then_full(d, data) if len(data) > 60 else write(d, data)
        )
        patch.setattr(
            os, "fsync", lambda d: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
        )
        with pytest.raises(UserError, match="no space left"):
            store.put("b", response())
    assert store.get("b") is None
    store.put("c", response())
    store.close()
    with ResponseStore.open(path) as again:
        assert [again.get(key) is not None for key in "abc"] == [True, False, True]


def test_folder_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(UserError, match="file"):
        ResponseStore.open(blocked / "responses.jsonl")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="can't be written"):
        ResponseStore.open(tmp_path / "responses.jsonl")


def test_refused_write_names_the_folder(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UserError, match=r"can't be written \(read-only file system\); choose another"):
        ResponseStore.open(tmp_path / "responses.jsonl")


def test_closed_store_says_so(tmp_path):
    store = ResponseStore.open(tmp_path / "responses.jsonl")
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.put("a", response())


WRITER = """
    import sys
    from nsa_eval.store import Response, ResponseStore
    store = ResponseStore.open(sys.argv[1])
    for number in range(10**6):
        if number % 3:
            store.put(f"{number}", Response(value="x" * 5000, prompt_tokens=1, new_tokens=1))
        else:
            keys = [f"{number}/{part}" for part in range(8)]
            store.put_many({key: Response(value=(-1.5, True), prompt_tokens=1, new_tokens=1) for key in keys})
        print(number, flush=True)
"""


def test_kill_in_the_middle_of_writing_loses_nothing_that_was_put(tmp_path):
    path = tmp_path / "responses.jsonl"
    done = -1
    for attempt in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(path)], stdout=subprocess.PIPE, text=True
        )
        seen = [writer.stdout.readline() for _ in range(20 + 7 * attempt)]
        time.sleep(0.01 * attempt)
        writer.send_signal(signal.SIGKILL)
        seen += writer.stdout.read().splitlines(keepends=True)
        writer.wait()
        done = max(done, max(int(line) for line in seen if line.endswith("\n")))
        with ResponseStore.open(path) as store:  # the dead writer's lock is gone
            for number in range(done + 1):
                if number % 3:
                    assert store.get(str(number)).value == "x" * 5000
                else:
                    assert all(store.get(f"{number}/{part}").value == (-1.5, True) for part in range(8))
            # The batch that was being written is there as a whole or not at all.
            assert sum(store.get(f"{done + 1}/{part}") is not None for part in range(8)) in (0, 8)


def key(**changes):
    named = {
        "context": "model",
        "request_type": "loglikelihood",
        "task": "toy",
        "doc": {"id": 1, "text": "é", "list": [1, 2.5, None]},
        "arguments": ("context", " continuation"),
        "repeat": 0,
    }
    return request_key(**{**named, **changes})


def test_key_names_everything_a_response_depends_on():
    others = [
        key(context="other"),
        key(request_type="generate_until"),
        key(task="other"),
        key(doc={"id": 2, "text": "é", "list": [1, 2.5, None]}),
        key(doc={"id": True, "text": "é", "list": [1, 2.5, None]}),
        key(doc={"id": "1", "text": "é", "list": [1, 2.5, None]}),
        key(arguments=("context", "continuation")),
        key(arguments=("context", {"until": ["\n"], "temperature": 0.5})),
        key(arguments=("context", {"until": ["\n"], "temperature": 0.6})),
        key(repeat=1),
    ]
    assert len({key(), *others}) == len(others) + 1


def test_key_is_the_same_tomorrow_and_elsewhere():
    """A changed key would make every stored run start over: raise the version on purpose only."""
    assert key() == key(doc={"list": (1, 2.5, None), "text": "é", "id": 1})
    assert key() == "f8b96fce82722a483db8bcf3c9e406af2c72ad13fa72ea32ffc1a9f964cac08f"


def test_key_takes_what_data_sets_hold():
    numpy = pytest.importorskip("numpy")
    assert key(doc={"n": numpy.int64(3), "a": numpy.arange(2)}) == key(doc={"n": 3, "a": [0, 1]})
    assert key(doc={"b": b"\0\1"}) != key(doc={"b": b"\0\2"})
    assert key(doc={"x": float("nan")}) == key(doc={"x": float("nan")})
    with pytest.raises(TypeError, match="object, which has no stable text form"):
        key(doc={"x": object()})
