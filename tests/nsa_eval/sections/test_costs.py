"""The section of costs."""

from nsa_eval.material import Material
from nsa_eval.results import load_run
from nsa_eval.sections import costs
from nsa_eval.store import Cost


def run_with(tmp_path, write_model, scored, found):
    write_model(tmp_path, "nsa", {"task": scored([1, 0])})
    run = load_run(tmp_path)
    model = run.models["nsa"].model_copy(update={"costs": found})
    return run.model_copy(update={"models": {"nsa": model}})


def test_rows_say_time_memory_and_reads(tmp_path, write_model, scored):
    cost = Cost(
        prefill_seconds=0.25, decode_seconds=2.0, prompt_tokens=100, new_tokens=41, decode_steps=40,
        peak_bytes=3 * 2**30, kv_read=4000, kv_kept=1234,
    )  # fmt: skip
    data = costs.build(Material(run_with(tmp_path, write_model, scored, {"task": cost})))
    [row] = data.rows
    assert (row.task, row.model, row.prefill, row.decode) == ("task", "nsa", "250 ms", "2.0 s")
    assert (row.pace, row.memory, row.reads, row.kept) == ("20", "3.0 GiB", "100", "1,234")
    assert data.memory


def test_scored_text_has_no_decode(tmp_path, write_model, scored):
    cost = Cost(prefill_seconds=150.4, prompt_tokens=100, new_tokens=41)
    data = costs.build(Material(run_with(tmp_path, write_model, scored, {"task": cost})))
    [row] = data.rows
    assert (row.prefill, row.decode, row.pace, row.memory, row.reads) == ("150 s", "", "", "", "")
    assert not data.memory


def test_nothing_is_shown_where_nothing_was_recorded(tmp_path, write_model, scored):
    assert costs.build(Material(run_with(tmp_path, write_model, scored, {}))) is None
