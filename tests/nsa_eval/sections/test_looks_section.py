"""The section of looks: recall beside scores, what was selected against what was answered, and pictures."""

import re

import pytest

from nsa_eval.looks import AnswerLook, BlockGrid, Look, LooksSheet, NotLooked, Picture
from nsa_eval.material import Material
from nsa_eval.results import load_run
from nsa_eval.sections import build_page, looks
from nsa_reports import to_html

GRID = BlockGrid(layers=2, groups=2, select_block=8, select_count=4, first_blocks=1, last_blocks=2, window=16)
PICTURE = Picture(
    columns=((0, 0), (1, 1), (2, 2), (3, 11), (12, 12), (13, 13)),
    rows=((4, 0, 1, 4, 4, 4), (4, 1, 4, 2, 4, 4)),
    tokens=("<b>is", " 4"),
    asked=1,
)


def look(held, by_token, *, prompt_tokens=104, picture=None, forced=False, in_window=False):
    answer = AnswerLook(
        first=17, last=18, blocks=(2,), held=held, by_token=by_token, forced=forced, in_window=in_window
    )
    return Look(grid=GRID, prompt_tokens=prompt_tokens, answers=(answer,), picture=picture)


# (length, depth, score, look): two lengths, the shorter chosen whole.
DOCUMENTS = [
    (24, 0.0, 1.0, look((2, 2), (4, 4), prompt_tokens=20)),
    (24, 50.0, 0.0, look((2, 2), (4, 4), prompt_tokens=20)),
    (128, 0.0, 1.0, look((1, 0), (1, 1), picture=PICTURE)),
    (128, 0.0, 0.0, look((2, 1), (3, 1))),
    (128, 50.0, 1.0, look((0, 0), (1, 0), in_window=True)),
    (128, 50.0, 0.0, look((0, 0), (0, 0), picture=PICTURE)),
    (128, 100.0, 1.0, look((2, 2), (4, 4), forced=True)),
]


@pytest.fixture
def write(tmp_path, write_model, sample_line):
    def made(sheets):
        for name, sheet in sheets.items():
            lines = [
                sample_line({"id": number, "length": length, "depth": depth}, {"score": score})
                for number, (length, depth, score, _) in enumerate(DOCUMENTS)
            ]
            folder = write_model(tmp_path, name, {"needle_single": lines})
            if sheet is not None:
                (folder / "looks.json").write_text(sheet.model_dump_json())
        return Material(load_run(tmp_path))

    return made


def sheet_of(documents=DOCUMENTS, **more):
    found = {str(number): one for number, (*_, one) in enumerate(documents)} | more
    return LooksSheet(per_cell=2, seconds=1.5, tasks={"needle_single": found})


def test_recall_stands_beside_the_share_of_right_answers(write):
    [task] = looks.build(write({"nsa": sheet_of()})).tasks
    [model] = task.models
    recall, right = model.panels
    assert (recall.title, recall.lengths, recall.depths) == ("selection recall", (24, 128), (0, 50, 100))
    texts = [[[panel.cell_text(cell) for cell in row] for row in panel.matrix] for panel in model.panels]
    assert texts[0] == [["100", "50"], ["100", "0"], ["", "100"]]
    assert texts[1] == [["100", "50"], ["0", "50"], ["", "100"]]
    assert model.whole == {(24, 0.0), (24, 50.0), (128, 100.0)}
    assert right.title == "answered right"


def test_a_cells_recall_leaves_out_what_stands_in_forced_blocks(write, monkeypatch):
    documents = [*DOCUMENTS, (128, 0.0, 1.0, look((2, 2), (4, 4), forced=True))]
    monkeypatch.setitem(globals(), "DOCUMENTS", documents)
    [model] = looks.build(write({"nsa": sheet_of(documents)})).tasks[0].models
    texts = [[[panel.cell_text(cell) for cell in row] for row in panel.matrix] for panel in model.panels]
    assert texts[0] == [["100", "50"], ["100", "0"], ["", "100"]]  # as without it
    assert texts[1][0] == ["100", "67"]  # its answer counts


def test_documents_are_counted_by_selection_and_answer(write):
    [model] = looks.build(write({"nsa": sheet_of()})).tasks[0].models
    short, long, whole = model.outcomes
    assert (short.length, short.n, short.always_right, short.always_wrong) == (24, 2, 1, 1)
    assert (short.right, short.misread, short.missed_right, short.missed_wrong) == (0, 0, 0, 0)
    assert (long.length, long.n, long.always_right, long.always_wrong) == (128, 5, 1, 0)
    assert (long.right, long.misread, long.missed_right, long.missed_wrong) == (1, 1, 1, 1)
    assert long.missed_in_window == 1
    assert long.recall == pytest.approx((0.25 + 0.75 + 0 + 0) / 4)  # the fifth stands in forced blocks
    assert short.recall == 1  # in all of them it does
    assert (whole.length, whole.n) == (None, 7)
    [layers] = model.layers  # the short documents have nothing to choose, one of the long ones neither
    assert (layers.length, layers.n) == (128, 4)
    assert [cell.value for cell in layers.cells] == [3 / 8, 1 / 8]


def test_pictures_show_wrong_answers_first_and_frame_the_answer(write):
    [model] = looks.build(write({"nsa": sheet_of()})).tasks[0].models
    assert ["wrong" in one.caption for one in model.pictures] == [True, False]
    wrong = model.pictures[0]
    assert (
        "5: wrong. When the reply begins, 0 of the 4 layers and groups hold the whole answer" in wrong.caption
    )
    assert wrong.caption.endswith("0, 0.")
    [frame] = wrong.picture.marked
    assert frame.label == "block 2"
    # The prompt's last query stands at 103, in block 12: forced are 0, 11 and 12; the next, at 104, is in 13.
    assert wrong.picture.forced == "M0 0h1v.9h-1zM4 0h1v.9h-1zM0 1h1v.9h-1zM4 1h2v.9h-2z"
    assert wrong.picture.shades[3].startswith("M3 0h1v.9h-1z")


def test_the_page_has_the_section_and_escapes_tokens(write):
    html = to_html(
        build_page(write({"nsa": sheet_of(), "dense": LooksSheet(per_cell=2, why_not="it reads all")}))
    )
    section = re.search(r'<section id="looks">.*?</section>', html, re.DOTALL)[0]
    assert '<a href="#looks">Where it looks</a>' in html
    assert "&lt;b&gt;is" in section
    assert "<b>is" not in section
    assert "it reads all" in section
    assert section.count('<figure class="choices">') == 2
    assert section.count('class="whole"') == 6  # three cells, in both maps
    assert "1.5 s" in section


def test_documents_that_were_not_looked_at_are_counted(write):
    documents = DOCUMENTS[:-1]
    sheet = sheet_of(documents, **{"6": NotLooked(why="its prompt was cut")})
    [model] = looks.build(write({"nsa": sheet})).tasks[0].models
    assert model.left_out == "1 document not looked at: its prompt was cut."
    assert model.outcomes[-1].n == 6


def test_a_task_without_depths_has_a_table_and_no_map(tmp_path, write_model, sample_line):
    lines = [sample_line({"id": 0, "length": 128}, {"score": 1.0})]
    folder = write_model(tmp_path, "nsa", {"t": lines})
    sheet = LooksSheet(per_cell=1, tasks={"t": {"0": DOCUMENTS[2][3]}})
    (folder / "looks.json").write_text(sheet.model_dump_json())
    material = Material(load_run(tmp_path))
    [model] = looks.build(material).tasks[0].models
    assert (model.panels, model.layers) == ((), ())
    assert [row.n for row in model.outcomes] == [1]
    assert 'id="looks"' in to_html(build_page(material))


@pytest.mark.parametrize(
    "sheet", [None, LooksSheet(per_cell=2, why_not="its attention reads every key"), LooksSheet(per_cell=2)]
)
def test_runs_without_looks_have_no_such_section(write, sheet):
    material = write({"nsa": sheet})
    assert looks.build(material) is None
    assert 'id="looks"' not in to_html(build_page(material))
