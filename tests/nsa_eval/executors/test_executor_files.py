"""An executor is one file: a config may name it as soon as the file is there."""

import sys

import pytest

import nsa_eval.executors as package
from nsa_eval.config import ExecutorSpec, load_config
from nsa_eval.errors import ConfigError
from nsa_eval.executors import make_executor

NEW_EXECUTOR = """
from nsa_eval.executors.local import LocalExecutor


class Queue(LocalExecutor):
    pass


def make(spec, *, settings, store):
    return Queue(settings, store)
"""


@pytest.fixture
def with_queue(tmp_path, monkeypatch):
    """A folder with one more executor beside the package's own."""
    (tmp_path / "queue_.py").write_text(NEW_EXECUTOR)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    yield
    sys.modules.pop("nsa_eval.executors.queue_", None)


def test_a_file_is_an_executor(with_queue, tiny_config):
    config = load_config(tiny_config(executor={"kind": "queue_"}))
    made = make_executor(config.executor, settings=config.engine, store=None)
    assert type(made).__name__ == "Queue"


def test_a_kind_without_a_file_is_an_error_with_those_that_have_one(tiny_config):
    with pytest.raises(
        ConfigError, match=r"executor\.kind: expected local .*or ray, got 'rya'; did you mean 'ray'"
    ):
        load_config(tiny_config(executor={"kind": "rya"}))
    with pytest.raises(ConfigError, match=r"executor\.kind: expected local .*or ray, got '_pieces'$"):
        load_config(tiny_config(executor={"kind": "_pieces"}))
    assert ExecutorSpec().kind == "local"
