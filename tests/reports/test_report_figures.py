"""Figures for papers."""

from xml.etree import ElementTree

import pytest

from nsa_reports.figures import save_figures

SVG = "{http://www.w3.org/2000/svg}"


def _texts(path):
    return ["".join(node.itertext()) for node in ElementTree.parse(path).iter(f"{SVG}text")]


def test_every_heatmap_is_saved_as_png_and_svg(make_group, tmp_path):
    names = ("nsa", "dense")
    written = save_figures((make_group(names),), tmp_path)
    assert len(written) == 1
    assert [files.svg for files in (written[0].combined, *written[0].panels)] == [
        "figures/needle_single.svg",
        "figures/needle_single-nsa.svg",
        "figures/needle_single-dense.svg",
        "figures/needle_single-nsa-minus-dense.svg",
    ]
    for files in (written[0].combined, *written[0].panels):
        assert (tmp_path / files.png).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert ElementTree.parse(tmp_path / files.svg).getroot().tag == f"{SVG}svg"


def test_svg_text_stays_text_with_axes_and_values(make_group, tmp_path):
    names = ("nsa", "dense")
    group = make_group(names, missing=True)
    files = save_figures((group,), tmp_path)[0]
    texts = _texts(tmp_path / files.panels[0].svg)
    assert {"Context length (tokens)", "Needle depth (%)", "Score (%)", "nsa", "512", "1k", "2k"} <= set(
        texts
    )
    shown = [f"{100 * cell.value:.0f}" for cell in group.maps[0].cells]
    axis = ["0", "25", "50", "75", "100"]
    bar = ["0", "20", "40", "60", "80", "100"]
    numbers = [text for text in texts if text.isdigit() and text != "512"]
    assert sorted(numbers) == sorted([*shown, *axis, *bar])  # 14 cells, and nothing where one is missing
    assert len(shown) == 14


def test_names_cannot_break_out_of_files_or_xml(make_group, tmp_path):
    names = ("../../etc/$x_{$ <b>", "名前\x00\x1b 💥", "../../ETC/$x_{$ <b>")
    files = save_figures((make_group(names),), tmp_path)[0]
    paths = [entry.svg for entry in files.panels]
    assert len(set(paths)) == len(paths) == 5
    assert all(path.count("/") == 1 and path.isascii() for path in paths)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures"]
    assert "../../etc/$x_{$ <b>" in _texts(tmp_path / files.panels[0].svg)


def test_the_same_view_gives_the_same_bytes(make_group, tmp_path):
    names = ("nsa",)
    groups = (make_group(names),)
    first, second = (save_figures(groups, tmp_path / name)[0].combined for name in ("a", "b"))
    for ending in ("png", "svg"):
        path = getattr(first, ending)
        assert path == getattr(second, ending)
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


@pytest.mark.parametrize(("models", "panels"), [(1, 1), (2, 3), (3, 5)])
def test_any_number_of_models_is_drawn(make_group, tmp_path, models, panels):
    names = [f"m{index}" for index in range(models)]
    files = save_figures((make_group(names, depths=3, lengths=(512,)),), tmp_path)[0]
    assert len(files.panels) == panels
    titles = _texts(tmp_path / files.combined.svg)
    assert all(name in titles for name in names)
