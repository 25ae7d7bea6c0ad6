"""The page: what it shows, that it needs nothing else, and that text in it stays text."""

import base64
import dataclasses
import hashlib
import re

import jinja2
import pytest

import nsa_reports
from nsa_eval.sections.provenance import Origin
from nsa_reports import Extract, Reply, SampleLimits
from nsa_reports._format import MINUS
from nsa_reports.render import environment

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!-- --> {{7*7}} {% raw %} ]]>",
    "\"'><svg onload=alert(1)>",
    "</title></style></textarea></pre>\u2028",
)


def to_html(demo, **options):
    return nsa_reports.to_html(demo.page(), **options)


def render(demo, **options):
    return nsa_reports.render(demo.page(), **options)


@pytest.fixture(scope="module")
def demo(make_view):
    return make_view()


@pytest.fixture(scope="module")
def html(demo):
    return to_html(demo)


@pytest.fixture(scope="module")
def page(html, parse_page):
    return parse_page(html)


def test_the_outcome_stands_first(page, demo):
    sentence = demo.headline.replace(" %", "\xa0%")  # a number and its unit stay on one line
    words = " ".join(sentence.split())
    assert page.text.index(words) < page.text.index("Scores with their own 95 % intervals")
    for row in demo.rows:
        assert row.task in page.text


def test_the_table_gives_scores_intervals_p_and_verdict(page, demo):
    row = demo.rows[0]
    pair = row.comparisons[0]
    for text in (
        f"{100 * row.scores[0].value:.1f} %",
        f"[{100 * row.scores[0].low:.1f}, {100 * row.scores[0].high:.1f}]",
        f"{100 * row.scores[1].value:.1f} %",
        f"{MINUS}{-100 * pair.difference:.1f} pp",
        "Holm < 0.001",
        f"{100 * pair.minimum_detectable:.1f} pp",
        "dense better",
        "not distinguishable",
        "word_perplexity",
        "21.40",
    ):
        assert text in page.text


def test_notes_count_events_and_say_none(page):
    assert "Prompts truncated: none of 480" in page.text
    assert "Longest context taken from a default: 1" in page.text
    assert "dense: 2,048 tokens, from the config" in page.text


def test_no_notes_at_all_is_said_plainly(demo, parse_page):
    page = parse_page(to_html(dataclasses.replace(demo, audit=())))
    assert "None: nothing was recorded" in page.text


def test_provenance_is_complete(page, demo):
    card = demo.models[0]
    origin = demo.provenance
    for text in (
        card.path,
        card.fingerprint,
        "6.12 M",
        card.dtype,
        card.tokenizer,
        origin.command,
        origin.git_commit,
    ):
        assert text in page.text
    assert "torch 2.13.0" in page.text
    assert 'path: "zoo:twin-nsa-64k"' in page.text


def test_nothing_is_fetched_from_anywhere(page):
    assert "link" not in {tag for tag, attributes in page.tags if attributes.get("rel") not in (None, "icon")}
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            target = attributes.get(name) or ""
            assert not re.match(r"\s*(\w+:)?//", target), f"<{tag} {name}={target}>"
            assert tag != "script" or name != "src" or not target
    assert not {"iframe", "object", "embed", "base", "form", "img"} & {tag for tag, _ in page.tags}


def test_the_policy_allows_exactly_the_inline_script(page):
    policy = next(meta["content"] for meta in page.attributes("meta") if "http-equiv" in meta)
    hashes = {
        f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
        for script in page.scripts
    }
    assert len(page.scripts) == 1
    assert hashes == set(re.findall(r"sha256-[\w+/=]+", policy))
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.split("style-src")[0]
    assert {part.split()[0] for part in policy.split("; ")} == {
        "default-src",
        "script-src",
        "style-src",
        "img-src",
    }


def test_a_page_is_small(demo, html, tmp_path):
    assert len(html) < 150_000
    assert render(demo, out=tmp_path / "report.html").stat().st_size < 600_000  # with its figures


def test_samples_of_both_models_stand_side_by_side(page, demo):
    bundle = page.json["samples"]["g0"]["0,0"]
    record = bundle["shown"][0]
    sample = next(s for s in demo.heatmaps[0].samples if s.id == record["id"])
    replies = {
        page.json["models"][model]: reply["text"] for reply in record["replies"] for model in reply["models"]
    }
    assert replies == {reply.model: reply.text for reply in sample.replies}
    assert (record["needle"], record["seed"], record["prompt"]) == (
        sample.needle,
        sample.seed,
        sample.prompt_end,
    )
    assert record["expected"] == list(sample.expected)


def test_samples_left_out_are_counted(demo, parse_page):
    page = parse_page(to_html(demo, limits=SampleLimits(per_cell=1)))
    assert (
        "This page holds 22 of 79 samples" in page.text
    )  # 14 + 5 cells with one each, 3 of a task without a grid


def _view_full_of(text, make_view, make_group):
    names = (text, "dense")
    group = make_group(names, task=text, lengths=(512,), depths=2, per_cell=1)
    sample = dataclasses.replace(
        group.samples[0],
        id=text,
        prompt_end=text,
        needle=text,
        expected=(text,),
        replies=(Reply(model=text, text=text, score=1.0, notes=(text,)),),
    )
    view = make_view(names, groups=(group,), title=text)
    return dataclasses.replace(
        view,
        headline=text,
        subtitle=text,
        heatmaps=(
            dataclasses.replace(group, samples=(sample,), title=text, description=text, protocol=text),
        ),
        provenance=Origin(config=text, command=text, machine={text: text}),
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_wherever_it_stands(text, make_view, make_group, parse_page):
    page = parse_page(to_html(_view_full_of(text, make_view, make_group)))
    plain = parse_page(to_html(_view_full_of("plain", make_view, make_group)))
    elements, expected = (
        [tag for tag, _ in each.tags if tag != "wbr"] for each in (page, plain)
    )  # the text has joints where it may be broken
    assert elements == expected  # not one element more
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(" ".join(text.split())) > 10
    record = page.json["samples"]["g0"]["0,0"]["shown"][0]
    assert record["replies"][0]["text"] == record["prompt"] == record["id"] == text


def test_page_script_never_parses_text_as_html(page):
    script = page.scripts[-1]
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert sink not in script


def test_one_model_alone_needs_no_comparison(make_view, parse_page):
    page = parse_page(to_html(make_view(("solo",))))
    assert "solo" in page.text
    assert "Difference" not in page.text
    assert "Verdict" not in page.text
    assert len(page.maps) == 2


def test_three_models_give_a_line_per_comparison(make_view, parse_page):
    page = parse_page(to_html(make_view(("nsa", "moba", "dense"))))
    assert len(page.maps) == 10
    assert f"nsa {MINUS} dense" in page.text
    assert f"moba {MINUS} dense" in page.text
    assert "Compared" in page.text


def test_render_writes_one_file_with_its_figures_in_it(demo, parse_page, tmp_path):
    out = render(demo, out=tmp_path / "new" / "report.html")
    assert out == tmp_path / "new" / "report.html"
    assert sorted(path.name for path in out.parent.iterdir()) == ["report.html"]
    links = [a for a in parse_page(out.read_text(encoding="utf-8")).attributes("a") if "download" in a]
    assert [link["download"] for link in links] == [
        f"{task}.{ending}" for task in ("needle_single", "needle_multikey") for ending in ("png", "pdf")
    ]
    kinds = {"png": ("data:image/png;base64,", b"\x89PNG"), "pdf": ("data:application/pdf;base64,", b"%PDF")}
    for link in links:
        prefix, start = kinds[link["download"][-3:]]
        assert link["href"].startswith(prefix)
        assert base64.b64decode(link["href"].removeprefix(prefix)).startswith(start)


def test_two_pages_in_one_folder_leave_each_others_figures_alone(make_view, tmp_path):
    first = render(make_view(("a", "b")), out=tmp_path / "a.html")
    before = first.read_bytes()
    render(make_view(("c", "d")), out=tmp_path / "b.html")
    assert first.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_a_runs_own_page_has_every_figure_beside_it_and_links_none(demo, parse_page, tmp_path):
    out = render(demo, out=tmp_path / "report.html", figures_in=tmp_path)
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    # Two tasks: three panels and all together as PNG and SVG, and the latter as PDF.
    assert len(figures) == 2 * (4 * 2 + 1)
    assert not [
        a for a in parse_page(out.read_text(encoding="utf-8")).attributes("a") if "figures" in a["href"]
    ]


def test_the_figures_inside_are_the_same_with_and_without_files(demo, tmp_path):
    alone = render(demo, out=tmp_path / "a" / "report.html")
    beside = render(demo, out=tmp_path / "b" / "report.html", figures_in=tmp_path / "b")
    assert alone.read_bytes() == beside.read_bytes()


def test_a_page_without_figures_offers_none(page):
    assert not [a for a in page.attributes("a") if "download" in a or a["href"].startswith("data:")]


def test_ids_are_distinct_and_every_link_inside_leads_somewhere(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    inside = {a["href"][1:] for a in page.attributes("a") if a["href"].startswith("#")}
    assert inside <= set(ids)
    assert {"g0", "g1", "t0"} <= inside
    for attribute in ("for", "aria-labelledby", "aria-describedby"):
        assert {a[attribute] for _, a in page.tags if attribute in a} <= set(ids)


LONG = ("dense+streaming_llm@1024", "dense+quest@2560", "nsa-native", "moba", "hybrid", "dense")


def test_long_names_break_at_their_joints_alone(make_view, make_group, parse_page):
    html = to_html(make_view((*LONG[:1], "dense")))
    assert "dense+<wbr>streaming_<wbr>llm@<wbr>1024" in html
    style = html.split("<style>")[1].split("</style>")[0]
    # `anywhere` lets a column shrink below its longest word; only what is no name may be cut so.
    shrinking = re.findall(r"([^{}]+)\{[^}]*overflow-wrap: anywhere", style)
    assert not [rule for rule in shrinking if re.search(r"\.name|\.pair|\.verdict|th", rule)]


def test_with_many_models_each_has_a_line_and_the_comparison_stays_on_the_page(make_view, parse_page):
    demo = make_view(LONG)
    html = to_html(demo)
    page = parse_page(html)
    table = html.split('<table class="lines"')[1].split("</table>")[0]
    heads = [
        re.sub(r"<[^>]+>", " ", head).split()[0]
        for head in re.findall(r"<th[ >].*?</th>", table.split("</thead>")[0], re.S)
    ]
    assert heads == ["Model", "Score", "Difference", f"{MINUS}20", "Verdict", "p", "p", "Detectable"]
    assert table.count('<th scope="row"') == 3 * len(LONG)
    over = re.findall(r'<th scope="rowgroup" colspan="8">(.*?)</th>', table)
    assert [re.sub(r"<[^>]+>", "", head).split()[0] for head in over] == [row.task for row in demo.rows]
    assert table.count(">baseline<") == 3
    assert "to dense" in page.text


def test_the_page_sees_every_reply_extract_and_reason(demo, parse_page):
    group = demo.heatmaps[0]
    sample = dataclasses.replace(
        group.samples[0],
        replies=(
            Reply(
                model="nsa",
                text="one",
                more=("two" * 50, ""),
                score=0.5,
                reasons=("another needle's value", "", "nothing"),
                extracts=(Extract(filter="strict", texts=("1", "2", ""), score=0.0),),
            ),
        ),
    )
    demo = dataclasses.replace(demo, heatmaps=(dataclasses.replace(group, samples=(sample,)),))
    page = parse_page(to_html(demo, limits=SampleLimits(reply_chars=100)))
    (record,) = page.json["samples"]["g0"]["0,0"]["shown"]
    assert record["replies"] == [
        {
            "models": [0],
            "text": "one",
            "score": 0.5,
            "more": [("two" * 50)[:100] + " […50 more characters]", ""],
            "extracts": [{"filter": "strict", "texts": ["1", "2", ""], "score": 0.0}],
            "reasons": ["another needle's value", "", "nothing"],
        }
    ]
    for name in ("more", "extracts", "reasons"):
        assert f"reply.{name}" in page.scripts[-1]
    assert "nsa : 2 replies not fully right: another needle's value (1), nothing (1)" in page.text


def test_undecodable_names_do_not_lose_the_report(make_view, tmp_path):
    out = render(
        make_view(("solo\udcff",), groups=(), tasks=False, title="file \udcff"), out=tmp_path / "r.html"
    )
    assert "file ?" in out.read_text(encoding="utf-8")


def test_an_undefined_name_in_a_template_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        environment().from_string("{{ missing }}").render()
