"""Chat templates that print the day's date: noted, and held to one day by `template_date`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import nsa_eval
from nsa_eval.comparison import ProtocolMismatchError, compare
from nsa_eval.config import load_config
from nsa_eval.errors import ConfigError
from nsa_tasks import calls_clock

DATED = "Today is {{ strftime_now('%d %b %Y') }}.{% for m in messages %}{{ m.content }}{% endfor %}"
TASK = {"task": "needle_single", "lengths": [400], "depths": 1, "samples": 1, "new_tokens": 4}


@pytest.fixture
def dated(tmp_path: Path, tiny_checkpoints: Any, monkeypatch: Any) -> str:
    monkeypatch.setattr("nsa_eval.report.render_report", lambda directory, *, out, **_: out.write_text(""))
    folder = tmp_path / "dated"
    shutil.copytree(tiny_checkpoints[0], folder)
    (folder / "chat_template.jinja").write_text(DATED)
    return str(folder)


def evaluate(path: str, folder: Path, **keys: Any) -> nsa_eval.RunResult:
    model = {"path": path, "chat_template": True, **keys}
    return nsa_eval.evaluate([model], [TASK], output=str(folder), progress=False)


def prompts(folder: Path) -> list[str]:
    [file] = folder.glob("*/samples_*.jsonl")
    return [json.loads(line)["arguments"]["gen_args_0"]["arg_0"] for line in file.read_text().splitlines()]


def test_the_date_is_the_one_that_is_given(dated: str, tmp_path: Path) -> None:
    result = evaluate(dated, tmp_path / "run", template_date="2024-02-29")
    assert all(prompt.startswith("Today is 29 Feb 2024.") for prompt in prompts(tmp_path / "run"))
    assert not result.audit


def test_a_running_clock_is_noted_and_named_where_prompts_differ(dated: str, tmp_path: Path) -> None:
    result = evaluate(dated, tmp_path / "today")
    assert [event["kind"] for event in result.audit] == ["clock"]
    assert "prints the day's date" in result.notes[0]
    evaluate(dated, tmp_path / "then", template_date="2024-02-29")
    with pytest.raises(ProtocolMismatchError, match="prints the day's date"):
        compare([tmp_path / "today", tmp_path / "then"])


def test_a_template_without_a_clock_is_not_noted(dated: str, tmp_path: Path) -> None:
    (Path(dated) / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert not evaluate(dated, tmp_path / "run").audit
    assert calls_clock("{{ datetime.now() }}")
    assert not calls_clock(None)


@pytest.mark.parametrize("day", ["today", "2026-13-01", "2026-1-1", 20260101])
def test_a_day_is_written_in_full(day: Any) -> None:
    with pytest.raises(ConfigError, match=r"models\[0\].template_date: expected a day such as 2026-01-31"):
        load_config({"models": [{"path": "a/b", "template_date": day}], "tasks": [TASK]})
