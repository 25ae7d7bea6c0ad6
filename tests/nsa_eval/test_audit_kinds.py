"""Kinds of audit events: one entry each, said everywhere in its words."""

import re

import pytest
from pydantic import ValidationError

from nsa_eval import audit
from nsa_eval.audit import KINDS, AuditKind, comparison_notes, describe, kind_of, page_notes, terminal_notes
from nsa_eval.material import Material
from nsa_eval.sections import notes
from nsa_eval.store import AuditEvent


@pytest.fixture
def uncached(monkeypatch):
    """A kind that another room adds: one entry."""
    kind = AuditKind(
        title="Models read without a cache",
        sentence="read without a cache: every token reads the whole prompt again",
        of_model=True,
        always_shown=False,
    )
    monkeypatch.setitem(KINDS, "uncached", kind)
    return kind


@pytest.fixture
def recorded(tmp_path, write_model, scored):
    """The material of a run with these events of its one model."""
    import json

    def build(*events):
        write_model(tmp_path, "m", {"t": scored([1.0, 0.0])})
        (tmp_path / "run.yaml").write_text("name: r\nmodels: [{name: m, path: p}]\n")
        (tmp_path / "audit.json").write_text(json.dumps({"m": list(events)}))
        return Material(tmp_path)

    return build


def test_the_terminal_counts_by_model_and_kind():
    cut = {"model": "a", "kind": "truncated"}
    events = [cut, cut, {"model": "b", "kind": "truncated"}, {"model": "a", "kind": "odd_thing"}]
    assert terminal_notes(events) == [
        "a: 2 prompts were cut to fit (audit.json)",
        "b: 1 prompt was cut to fit (audit.json)",
        "a: 1 x odd thing (audit.json)",
    ]


@pytest.mark.parametrize("models", [3, 4, 25])
def test_the_terminal_says_once_what_is_the_same_of_many_models(models):
    events = [{"model": f"m{number}", "kind": "truncated"} for number in range(models)]
    events.append({"model": "m1", "kind": "odd_thing"})
    cut = "1 prompt was cut to fit (audit.json)"
    same = (
        [f"m{number}: {cut}" for number in range(3)]
        if models == 3
        else [f"m0 and {models - 1} more, each: {cut}"]
    )
    assert terminal_notes(events) == [*same, "m1: 1 x odd thing (audit.json)"]


def test_a_page_says_once_what_was_done_to_many_models() -> None:
    cut = {"kind": "truncated", "task": "lb_lcc", "doc_id": 3, "tokens_before": 9000, "tokens_after": 7500}
    other = {**cut, "doc_id": 4}
    line = describe(cut)
    four = [(f"m{n}", cut) for n in range(4)]
    assert page_notes([*four, ("m1", other)]) == (
        f"m0 and 3 more: lb_lcc, document 3: {line}",
        f"m1: lb_lcc, document 4: {line}",
    )
    assert page_notes(four[:3]) == tuple(f"m{n}: lb_lcc, document 3: {line}" for n in range(3))
    assert (
        page_notes([("m", cut)] * 5) == (f"m: lb_lcc, document 3: {line}",) * 5
    )  # five replies of one model
    assert page_notes([]) == ()


def test_a_comparison_says_of_each_kind_what_the_kind_says():
    events = [{"kind": "truncated"}, {"kind": "truncated"}, {"kind": "default_max_length"}]
    default = KINDS["default_max_length"].sentence
    assert comparison_notes("a", events) == [f"a: {default}", "a: 2 prompts were cut to fit"]
    assert comparison_notes("a", [{"kind": "uncached"}]) == [f"a: {KINDS['uncached'].sentence}"]


@pytest.mark.parametrize("kind", ["method", "sampled"])
def test_what_is_compared_as_it_is_is_no_note_of_a_comparison(kind):
    assert comparison_notes("a", [{"kind": kind, "detail": "quality only"}]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_sentence_has_no_colon_where_the_terminal_parts_models_from_what_is_said(kind):
    assert ": " not in KINDS[kind].say(1) + KINDS[kind].say(2)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"kind": "truncated", "before": 9000, "after": 64}, "truncated: 9,000 to 64 tokens"),
        ({"kind": "truncated", "detail": "its middle"}, "its middle"),
        ({"kind": "odd_thing"}, "odd thing"),
        ({}, "event"),
    ],
)
def test_an_event_says_its_own_sentence_or_what_it_did(event, words):
    assert describe(event) == words


def test_a_new_kind_is_one_entry(uncached, recorded):
    event = AuditEvent(kind="uncached", detail="no cache is known for this model")
    found = recorded(event.model_dump())
    [note] = [note for note in notes.build(found).notes if note.title == uncached.title]
    assert (note.count, note.total) == (1, 1)
    assert note.details == ("m: no cache is known for this model",)
    assert terminal_notes([{"model": "m", **event.model_dump()}]) == [f"m: {uncached.sentence} (audit.json)"]


def test_remarks_on_a_model_are_counted_by_models(recorded):
    remarks = [{"kind": "method", "detail": detail} for detail in ("quality only", "layer 0 stays dense")]
    [note] = [note for note in notes.build(recorded(*remarks)).notes if note.title == KINDS["method"].title]
    assert (note.count, note.total, note.unit) == (1, 1, "models")
    assert len(note.details) == 2


def test_none_is_said_only_of_what_a_reader_would_ask_about(uncached, recorded):
    titles = [note.title for note in notes.build(recorded()).notes]
    assert titles == [kind.title for kind in KINDS.values() if kind.always_shown]
    assert uncached.title not in titles


def test_an_unknown_kind_of_another_version_is_still_shown(recorded):
    found = recorded({"kind": "from_the_future", "task": "t", "doc_id": 1})
    [note] = [note for note in notes.build(found).notes if note.title == "from the future"]
    assert (note.count, note.total) == (1, 2)
    assert note.details == ("m: t, document 1: from the future",)


def test_the_engine_records_no_kind_without_an_entry():
    with pytest.raises(ValidationError, match=r"needs an entry in nsa_eval/audit\.py"):
        AuditEvent(kind="trunkated")
    assert [AuditEvent(kind=kind).kind for kind in KINDS] == list(KINDS)


def test_a_kind_that_is_in_the_table_is_that_entry():
    assert kind_of("truncated") is audit.KINDS["truncated"]


@pytest.mark.parametrize("kind", [kind for kind, about in KINDS.items() if "{n}" in about.sentence])
def test_one_event_is_said_in_the_singular(kind):
    assert re.search(r"\b1 (prompt|remark|text|task|setting)\b", KINDS[kind].say(1))
    assert f"{1234:,} " in KINDS[kind].say(1234)
    assert comparison_notes("a", [{"kind": "truncated"}]) == ["a: 1 prompt was cut to fit"]


def test_cuts_that_a_task_makes_by_itself_are_events_once_a_document():
    from nsa_eval._evaluate import _task_cuts

    cut = {"doc_id": 1, "doc": {"prompt_tokens": 9, "cut_from": 20}}
    samples = {
        "t": [{"doc_id": 0, "doc": {"prompt_tokens": 9}}, cut, cut],
        "u": [{"doc_id": 0, "doc": "text"}],
    }
    [event] = _task_cuts(samples)
    assert (event.kind, event.task, event.doc_id, event.before, event.after) == ("cut_by_task", "t", 1, 20, 9)
    assert terminal_notes([{"model": "a", **event.model_dump()}]) == [
        "a: 1 prompt was cut by its task, as its protocol says (audit.json)"
    ]
