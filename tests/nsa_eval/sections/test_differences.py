"""What differs between the models of a run."""

import json

import pytest
import yaml

from nsa_eval.material import Material
from nsa_eval.sections import differences, provenance
from nsa_reports import to_html

BASE = {"path": "zoo:a", "dtype": "auto", "backend": "auto", "device": "auto", "max_length": None,
        "chat_template": False, "revision": None}  # fmt: skip


@pytest.fixture
def material(tmp_path, write_model, scored):
    """Models by their entries in run.yaml, and by what their results recorded."""

    def build(entries, recorded=None, **top):
        for name in entries:
            settings = {"device": "cpu", **(recorded or {}).get(name, {})}
            lengths = {"max_length": 2048, **top.get(name, {})}
            write_model(tmp_path, name, {"t": scored([1.0, 0.0])}, **lengths)
            [file] = (tmp_path / name).glob("results_*.json")
            content = json.loads(file.read_text())
            content["config"].update(settings)
            file.write_text(json.dumps(content))
        models = [{"name": name, **BASE, **entry} for name, entry in entries.items()]
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({"name": "r", "models": models}))
        return Material(tmp_path)

    return build


def shown(material):
    found = differences.build(material)
    return {setting.name: setting.values for setting in found.settings} if found else None


def test_models_that_differ_in_name_and_checkpoint_alone_have_no_such_section(material):
    found = material({"a": {}, "b": {"path": "zoo:b", "revision": "main"}})
    assert differences.build(found) is None


def test_a_row_per_setting_and_a_column_per_model(material):
    found = material({"a": {}, "b": {"dtype": "float16", "chat_template": True}, "c": {"max_length": 512}},
                     c={"max_length": 512})  # fmt: skip
    assert shown(found) == {
        "dtype": ("auto", "float16", "auto"),
        "chat template": ("", "yes", ""),
        "max length": ("2048", "2048", "512"),
    }


def test_what_the_results_recorded_counts_before_what_was_asked_for(material):
    entries = {"a": {"dtype": "auto"}, "b": {"dtype": "bfloat16"}}
    alike = {name: {"model_dtype": "torch.bfloat16", "backend": "triton"} for name in entries}
    assert shown(material(entries, alike)) is None
    assert shown(material(entries, {**alike, "b": {"model_dtype": "torch.float32", "backend": "torch"}})) == {
        "dtype": ("bfloat16", "float32"),
        "backend": ("triton", "torch"),
    }


def test_variants_of_a_checkpoint_show_their_fields_and_their_method(material):
    found = material(
        {
            "nsa": {},
            "nsa+n=8": {"set": {"nsa_select_count": 8}},
            "dense+quest@2560": {"method": {"name": "quest", "budget": 2560, "page": 16}},
        }
    )
    assert shown(found) == {
        "nsa_select_count": ("", "8", ""),
        "method": ("", "", "quest"),
        "method budget": ("", "", "2560"),
        "method page": ("", "", "16"),
    }
    cards = {card.name: card.extra for card in provenance.build(found).models}
    assert cards["nsa+n=8"]["nsa_select_count"] == "8"
    assert cards["dense+quest@2560"]["method budget"] == "2560"
    assert "method" not in cards["nsa"]


def test_four_checkpoints_that_differ_in_a_field_of_their_config_alone_show_it(material):
    entries = {f"m{n}": {"path": f"zoo:m{n}"} for n in (4, 8, 16, 32)}
    fields = {"model_type": "nsa_decoder", "hidden_size": 64}
    recorded = {
        f"m{n}": {"model_fields": {**fields, "nsa_select_count": n, "rope_parameters.rope_theta": 1e4}}
        for n in (4, 8, 16, 32)
    }
    assert shown(material(entries, recorded)) == {"nsa_select_count": ("4", "8", "16", "32")}


def test_a_dense_twin_shows_none_of_the_fields_that_only_nsa_reads(material):
    nsa = {"model_type": "nsa_decoder", "attention": "nsa", "nsa_select_count": 16, "nsa_window": 512}
    recorded = {
        "full": {"model_fields": {**nsa, "attention": "full"}},
        "n=4": {"model_fields": {**nsa, "nsa_select_count": 4}},
        "n=16": {"model_fields": nsa},
    }
    assert shown(material({name: {} for name in recorded}, recorded)) == {
        "attention": ("full", "nsa", "nsa"),
        "nsa_select_count": ("", "4", "16"),
    }


def test_of_models_of_two_types_their_types_are_told(material):
    recorded = {
        "a": {"model_fields": {"model_type": "llama", "hidden_size": 64, "rms_norm_eps": 1e-6}},
        "b": {"model_fields": {"model_type": "gpt2", "n_embd": 32}},
    }
    assert shown(material({"a": {}, "b": {}}, recorded)) == {"model type": ("llama", "gpt2")}


def test_the_page_shows_them_before_the_result_with_a_dash_for_none(material):
    from nsa_eval.sections import build_page

    html = to_html(build_page(material({"a": {}, "b": {"set": {"nsa_window": 64}}})))
    assert html.index('id="differences"') < html.index('id="result"')
    assert '<th scope="row">nsa_window</th><td>\u2013</td><td>64</td>' in html


def test_many_models_have_a_row_each(material):
    from nsa_eval.sections import build_page

    budgets = {f"m+quest@{n}": {"method": {"name": "quest", "budget": n}} for n in (1, 2, 3, 4, 5, 6)}
    found = material({"m": {}, **budgets})
    assert differences.build(found).of(2) == (("method", "quest"), ("budget", "2"))
    html = to_html(build_page(found))
    section = html[html.index('id="differences"') : html.index('id="result"')]
    assert "<td>method quest, budget 2</td>" in section
    assert section.count("<tr>") == 7
    assert "<td>\u2013</td>" in section
