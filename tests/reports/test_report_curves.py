"""Line figures."""

from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from nsa_reports import curves as module
from nsa_reports.curves import Curve, CurvePanel, save_curves

SVG = "{http://www.w3.org/2000/svg}"
LENGTHS = (8192, 65536, 131072)


def _panel(title="Forward", points=None):
    points = tuple((n, n / 1000) for n in LENGTHS) if points is None else points
    curves = (
        Curve(name="dense", points=points),
        Curve(name="NSA <$x", points=points, labels=("0.9x", "", "4.0x")),
    )
    return CurvePanel(title=title, x_label="Tokens", y_label="ms", curves=curves)


def _texts(path):
    return {"".join(node.itertext()) for node in ElementTree.parse(path).iter(f"{SVG}text")}


def test_panels_are_saved_as_png_and_svg_with_text(tmp_path):
    png, svg = save_curves([_panel(), _panel("Backward")], tmp_path / "a" / "kernels.v1", caption="One GPU")
    assert (png.name, svg.name) == ("kernels.v1.png", "kernels.v1.svg")
    assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    expected = {
        "Forward",
        "Backward",
        "8k",
        "64k",
        "128k",
        "ms",
        "Tokens",
        "dense",
        "NSA <$x",
        "4.0x",
        "One GPU",
    }
    assert expected <= _texts(svg)


def test_empty_panels_are_left_out(tmp_path):
    _, svg = save_curves([_panel(), _panel("Decode", points=())], tmp_path / "kernels")
    assert "Decode" not in _texts(svg)
    with pytest.raises(ValueError, match="no curve has a point"):
        save_curves([_panel(points=())], tmp_path / "kernels")


def test_the_same_panels_give_the_same_bytes(tmp_path):
    first, second = (save_curves([_panel()], tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_label_stands_on_the_side_without_a_curve():
    dense = Curve(name="dense", points=((8192, 1.0), (65536, 9.0)))
    nsa = Curve(name="NSA", points=((8192, 2.0), (65536, 3.0)), labels=("0.5x", "3x"))
    axis = Figure().subplots()
    module._draw(axis, CurvePanel(title="", x_label="", y_label="", curves=(dense, nsa)))
    sides = {text.get_text(): text.xyann[1] > 0 for text in axis.texts}
    assert sides == {"0.5x": True, "3x": False}
