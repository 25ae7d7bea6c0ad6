# ruff: noqa: E501  (whole messages on one line, as a user reads them)
"""Configs: every mistake is one line that names file, line and key."""

import textwrap

import pytest

from nsa_eval.config import RunConfig, dump_yaml, load_config, parse_length, section_keys, to_plain
from nsa_eval.config.schema import EngineSpec, ModelSpec, TaskSpec
from nsa_eval.errors import ConfigError, UserError


@pytest.fixture
def checkpoint(tmp_path):
    """A folder that looks like a checkpoint; nothing here loads it."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def write(tmp_path, monkeypatch, checkpoint):
    """Write x.yaml below the current folder; MODEL stands for a model's line."""
    monkeypatch.chdir(tmp_path)

    def write(text):
        text = textwrap.dedent(text).replace("MODEL", f"{{name: tiny, path: {checkpoint}}}")
        (tmp_path / "x.yaml").write_text(text)
        return "x.yaml"

    return write


def problems(source, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return list(caught.value.problems)


GOOD = """\
models:
  - MODEL
tasks:
  - {task: needle_single, lengths: [512, 1k], depths: 3, samples: 2}
"""


def test_a_good_config_gets_its_defaults(write):
    config = load_config(write(GOOD))
    assert config.name == "x"
    assert config.models[0].dtype == "auto"
    assert config.tasks[0].params == {"lengths": [512, 1024], "depths": 3, "samples": 2}
    assert config.engine == EngineSpec()
    assert config.seed == (0, 1234, 1234, 1234)


def test_an_unknown_key_is_named_with_line_and_the_near_one(write):
    [line] = problems(write(GOOD.replace("lengths", "lenghts")))
    assert line == "x.yaml:4: tasks[0].lenghts: unknown key; did you mean 'lengths'?"


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("engine: {batchsize: 4}", "x.yaml:5: engine.batchsize: unknown key; did you mean 'batch_size'?"),
        ("engine: {batch_size: big}", "x.yaml:5: engine.batch_size: expected auto or a number of rows (1, 2, ...), got 'big'"),
        ("engine: {batch_size: 0}", "x.yaml:5: engine.batch_size: expected auto or a number of rows (1, 2, ...), got 0"),
        ("engine: {share_prefixes: yes}", "x.yaml:5: engine.share_prefixes: expected true or false, got 'yes'"),
        ("engine: {prefill_chunk: '8'}", "x.yaml:5: engine.prefill_chunk: expected auto or a number of tokens (1, 2, ...), got '8'"),
        ("engine: {prefill_chunk: 0}", "x.yaml:5: engine.prefill_chunk: expected auto or a number of tokens (1, 2, ...), got 0"),
        ("engine: {cuda_graphs: on}", "x.yaml:5: engine.cuda_graphs: expected 'auto' or 'off', got 'on'"),
        ("engine: {truncation: lef}", "x.yaml:5: engine.truncation: expected 'error', 'left' or 'middle', got 'lef'; did you mean 'left'?"),
        ("engine: 3", "x.yaml:5: engine: expected a mapping of keys to values, got 3"),
        ("engine:", "x.yaml:5: engine: expected a mapping of keys to values, got nothing"),
        ("modles: []", "x.yaml:5: modles: unknown key; did you mean 'models'?"),
        ("limit: -1", "x.yaml:5: limit: expected a number of samples (1, 2, ...) or a fraction of them between 0 and 1, got -1"),
        ("compare: {baseline: tinny}", "x.yaml:5: compare.baseline: no model is named 'tinny'; did you mean 'tiny'?"),
        ("compare: {confidence: 95}", "x.yaml:5: compare.confidence: expected a value below 1, got 95"),
        ("name: a/b", "x.yaml:5: name: expected a name of letters, digits, '.', '_' and '-' (it becomes part of file names), got 'a/b'"),
        ("include_path: [nowhere]", "x.yaml:5: include_path[0]: no such folder: nowhere"),
        ("report: {title: 3}", "x.yaml:5: report.title: expected text, got 3"),
        ("name: one\nname: two", "x.yaml:6: name: given twice (first on line 5): keep one"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line(write, extra, expected):
    assert problems(write(GOOD + extra)) == [expected]


def test_a_misspelt_key_hides_no_mistake_in_a_name(write):
    text = GOOD.replace("depths", "dephts").replace("needle_single", "needle_singel")
    extra = "engine: {batchsize: 4, prefill_chunk: 0}\ncompare: {basline: tinny}\ninclude_pth: [nowhere]\n"
    assert problems(write(text + extra)) == [
        "x.yaml:5: engine.prefill_chunk: expected auto or a number of tokens (1, 2, ...), got 0",
        "x.yaml:5: engine.batchsize: unknown key; did you mean 'batch_size'?",
        "x.yaml:6: compare.basline: unknown key; did you mean 'baseline'?",
        "x.yaml:7: include_pth: unknown key; did you mean 'include_path'?",
        "x.yaml:4: tasks[0].task: no task is named 'needle_singel'; did you mean 'needle_single'? (nsa-eval ls tasks lists them)",
        "x.yaml:7: include_path[0]: no such folder: nowhere",
        "x.yaml:6: compare.baseline: no model is named 'tinny'; did you mean 'tiny'?",
    ]


def test_what_follows_from_a_mistake_alone_is_not_told(write):
    assert problems(write(GOOD + "modls: []\ncompare: {confidence: 95, basline: tiny}\n")) == [
        "x.yaml:6: compare.confidence: expected a value below 1, got 95",
        "x.yaml:6: compare.basline: unknown key; did you mean 'baseline'?",
        "x.yaml:5: modls: unknown key; did you mean 'models'?",
    ]
    assert problems(write(GOOD.replace("models:", "modls:"))) == [
        "x.yaml:1: models: this key is required",
        "x.yaml:1: modls: unknown key; did you mean 'models'?",
    ]


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ("{path: /no/such/folder}", "x.yaml:2: models[0].path: no such folder: /no/such/folder"),
        ("{path: ./here}", "x.yaml:2: models[0].path: no such folder: ./here"),
        ("{path: x.yaml}", "x.yaml:2: models[0].path: x.yaml is a file: name the folder that holds config.json and the safetensors files"),
        ("{path: .}", "x.yaml:2: models[0].path: . has no config.json: name the folder that save_pretrained wrote"),
        ("{name: a}", "x.yaml:2: models[0].path: this key is required"),
        ("{path: 3}", "x.yaml:2: models[0].path: expected text, got 3"),
        ("just-text", "x.yaml:2: models[0]: expected a mapping of keys to values, got 'just-text'; write {path: just-text}"),
        ("path:zoo:m", "x.yaml:2: models[0]: expected a mapping of keys to values, got 'path:zoo:m'; put a space behind path:"),
        ("{path: org/m, variants: [{method: quest}]}", "x.yaml:2: models[0].variants[0].method: expected a mapping of keys to values, got 'quest'; write {name: quest}"),
    ],
)  # fmt: skip
def test_models_are_checked(write, models, expected):
    assert problems(write(GOOD.replace("MODEL", models))) == [expected]


def test_a_text_in_place_of_a_list_is_shown_as_one(write):
    text = GOOD.replace("{task: needle_single, lengths: [512, 1k], depths: 3, samples: 2}", "")
    lines = problems(write(text.replace("tasks:\n  - ", "tasks: needle_single")))
    assert lines == ["x.yaml:3: tasks: expected a list, got 'needle_single'; write [{task: needle_single}]"]


def test_a_misspelt_generation_setting_is_told_before_anything_is_loaded(write):
    task = "{task: needle_single, gen_kwargs: {temprature: 1, max_gen_toks: 8}}"
    text = GOOD.replace("{task: needle_single, lengths: [512, 1k], depths: 3, samples: 2}", task)
    told = "no generation setting of the engine; did you mean 'temperature'?"
    assert problems(write(text)) == [f"x.yaml:4: tasks[0].gen_kwargs.temprature: {told}"]
    elsewhere = text.replace("MODEL", "{path: gpt, lm: local-completions}")
    assert load_config(write(elsewhere)).tasks[0].gen_kwargs == {"temprature": 1, "max_gen_toks": 8}


def test_the_settings_that_are_let_through_are_those_that_the_engine_has(write):
    from nsa_eval.config._generation import ENGINES_OWN
    from nsa_eval.engine import _sampling

    assert set(ENGINES_OWN) == {"min_new_tokens", *_sampling._NEUTRAL}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("{nsa_windw: 256}", "its config has no field 'nsa_windw' to set; did you mean 'nsa_window'?"),
        ("{nsa_select_count: [4, 0]}", "nsa_select_count = 0: the model can't be made so: select_count must be a positive"),
    ],
)  # fmt: skip
def test_fields_that_a_checkpoint_at_hand_cannot_have_are_told_at_once(write, fields, said):
    model = f"{{path: 'zoo:twin-nsa-64k', variants: [{{}}, {{set: {fields}}}]}}"
    [line] = problems(write(GOOD.replace("MODEL", model)))
    assert line.startswith("x.yaml:2: models[0].variants[1].set: ")
    assert said in line


def test_an_unknown_zoo_name_lists_what_there_is(write, monkeypatch):
    monkeypatch.setattr("nsa_eval.config._check.zoo_names", lambda: ["zoo:twin-nsa-64k"])
    [line] = problems(write(GOOD.replace("MODEL", "{path: 'zoo:twin-nsa-65k'}")))
    assert (
        line
        == "x.yaml:2: models[0].path: no bundled checkpoint 'zoo:twin-nsa-65k'; did you mean 'zoo:twin-nsa-64k'?"
    )


def test_a_hub_id_is_taken_as_it_is(write):
    assert (
        load_config(write(GOOD.replace("MODEL", "{path: meta-llama/Llama-3.2-1B}"))).models[0].name
        == "Llama-3.2-1B"
    )


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (
            "needle_singel",
            "no task is named 'needle_singel'; did you mean 'needle_single'? (nsa-eval ls tasks lists them)",
        ),
        ("arc_eazy", "no task is named 'arc_eazy'; did you mean 'arc_easy'? (nsa-eval ls tasks lists them)"),
    ],
)
def test_an_unknown_task_is_named(write, task, expected):
    assert problems(write(GOOD.replace("needle_single", task)))[0] == f"x.yaml:4: tasks[0].task: {expected}"


def test_lm_evals_own_tasks_take_no_parameters_of_ours(write):
    found = problems(write(GOOD.replace("needle_single", "arc_easy")))
    assert len(found) == 3
    assert all("arc_easy is one of lm-eval's tasks" in line for line in found)


def test_lm_evals_own_tasks_groups_and_tags_are_known(write):
    text = GOOD.replace("{task: needle_single, lengths: [512, 1k], depths: 3, samples: 2}", "{task: NAME}")
    for name in ("arc_easy", "mmlu", "gsm8k", "hellaswag"):
        assert load_config(write(text.replace("NAME", name))).tasks[0].task == name


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("[512, 1k]", "[512, big]", "lengths"),
        ("[512, 1k]", "[]", "lengths"),
        ("depths: 3", "depths: 0", "depths"),
        ("depths: 3", "depths: [0, 101]", "depths"),
        ("samples: 2", "samples: 0", "samples"),
        ("samples: 2", "samples: 2, haystack: wood", "haystack"),
    ],
)
def test_a_bad_task_parameter_stands_at_its_key(write, old, new, key):
    [line] = problems(write(GOOD.replace(old, new)))
    assert line.startswith(f"x.yaml:4: tasks[0].{key}: ")


def test_several_mistakes_are_listed_at_once(write):
    found = problems(write(GOOD + "engine: {batch_size: 0, trunkation: left}\nlimit: x\n"))
    assert [line.split(": ")[1] for line in found] == ["engine.batch_size", "engine.trunkation", "limit"]


@pytest.mark.parametrize("section", ["models", "tasks"])
def test_an_empty_list_is_an_error(write, section):
    text = {
        "models": "models: []\ntasks:\n  - {task: needle_single}\n",
        "tasks": "models:\n  - MODEL\ntasks: []\n",
    }
    [line] = problems(write(text[section]))
    assert line.endswith(f"{section}: the list is empty: name at least one {section[:-1]}")


def test_missing_sections_are_named(write):
    assert problems(write("name: x")) == [
        "x.yaml:1: models: this key is required",
        "x.yaml:1: tasks: this key is required",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "the file is empty"), ("- a\n- b\n", "expected keys"), ("a: [", "x.yaml:1: not valid YAML")],
)
def test_a_file_that_is_no_config(write, text, message):
    [line] = problems(write(text))
    assert message in line


def test_a_missing_file_and_a_misspelt_bundled_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^nowhere/x.yaml: no such config file"):
        load_config("nowhere/x.yaml")
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        load_config("quikstart")


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a UTF-8 text file"):
        load_config(tmp_path / "x.yaml")


def test_one_task_twice_needs_an_alias(write):
    twice = GOOD + "  - {task: needle_single, lengths: [2k], depths: 3, samples: 2}\n"
    [line] = problems(write(twice))
    assert line == "x.yaml:5: tasks[1]: 'needle_single' is tasks[0] already: give one of them another alias"
    assert load_config(write(twice.replace("[2k]", "[2k], alias: long"))).tasks[1].label == "long"


def test_two_models_of_one_name_are_refused(write, checkpoint):
    [line] = problems(
        write(GOOD.replace("  - MODEL\n", f"  - MODEL\n  - {{name: TINY, path: {checkpoint}}}\n"))
    )
    assert "'TINY' is models[0] already" in line


class TestOverrides:
    def test_values_are_read_as_yaml(self, write):
        config = load_config(
            write(GOOD),
            ["limit=3", "engine.batch_size=auto", "tasks.0.lengths=[4k]", "models.tiny.dtype=bfloat16", "tasks.needle_single.samples=9"],
        )  # fmt: skip
        assert config.limit == 3
        assert config.tasks[0].params["lengths"] == [4096]
        assert config.tasks[0].params["samples"] == 9
        assert config.models[0].dtype == "bfloat16"

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("limit", "--set limit: expected KEY=VALUE, such as --set engine.batch_size=4"),
            ("tasks.3.samples=1", "--set tasks.3.samples=1: tasks has entry 0 alone; there is no 3"),
            ("models.tny.dtype=auto", "--set models.tny.dtype=auto: models has no entry 'tny'; did you mean 'tiny'?"),
            ("name.x=1", "--set name.x=1: name is 'good', so it has no 'x' to set"),
            ("tasks.0.lenghts=1k", "--set tasks.0.lenghts=1k: tasks[0].lenghts: unknown key; did you mean 'lengths'?"),
            ("engine.batch_size=x", "--set engine.batch_size=x: engine.batch_size: expected auto or a number of rows (1, 2, ...), got 'x'"),
            ("limit=[1", "--set limit=[1: the value is not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ],
    )  # fmt: skip
    def test_errors_name_the_override(self, write, override, expected):
        assert problems(write("name: good\n" + GOOD), [override]) == [expected]

    def test_the_last_one_wins(self, write):
        assert load_config(write(GOOD), ["limit=1", "limit=2"]).limit == 2


class TestTypes:
    @pytest.mark.parametrize(
        ("given", "tokens"), [(512, 512), ("512", 512), ("1k", 1024), ("64K", 65536), ("1m", 1 << 20)]
    )
    def test_lengths(self, given, tokens):
        assert parse_length(given) == tokens

    @pytest.mark.parametrize("given", [0, -1, "0k", "k", "1.5k", 2.0, True, None, "1 000"])
    def test_no_lengths(self, given):
        with pytest.raises(ValueError, match="expected a length in tokens"):
            parse_length(given)

    @pytest.mark.parametrize(
        ("given", "seeds"),
        [(7, (7,) * 4), ([0, None, 8, 52], (0, None, 8, 52)), (None, (0, 1234, 1234, 1234))],
    )
    def test_seeds_are_lm_evals(self, checkpoint, given, seeds):
        data = {"models": [{"path": str(checkpoint)}], "tasks": [{"task": "needle_single"}], "seed": given}
        assert load_config(data).seed == seeds

    def test_max_length_reads_k(self):
        assert ModelSpec.model_validate({"path": "x", "max_length": "64k"}).max_length == 65536


def test_a_dumped_config_reads_back_the_same(write, tmp_path):
    text = (
        GOOD + 'engine: {truncation: middle}\nlimit: 0.5\nseed: [0, null, 1, 2]\nreport: {title: "no: 010"}\n'
    )
    config = load_config(write(text))
    (tmp_path / "again.yaml").write_text(dump_yaml(config, header="A header.\nTwo lines."))
    again = load_config("again.yaml")
    assert again == config
    assert isinstance(again, RunConfig)


def test_a_config_made_in_python_is_named_config(checkpoint):
    [line] = problems(
        {"models": [{"path": str(checkpoint), "dtyp": "auto"}], "tasks": [{"task": "needle_single"}]}
    )
    assert line == "config: models[0].dtyp: unknown key; did you mean 'dtype'?"


def test_every_key_is_documented():
    for section in (RunConfig, ModelSpec, TaskSpec, EngineSpec):
        for key, text in section_keys(section).items():
            assert len(text) > 15, f"{section.__name__}.{key}"


def test_to_plain_leaves_out_what_a_task_does_not_set(write):
    assert to_plain(load_config(write(GOOD)))["tasks"] == [
        {"task": "needle_single", "lengths": [512, 1024], "depths": 3, "samples": 2}
    ]


def test_the_configs_backends_are_those_of_the_kernels():
    """The schema lists them once more, since reading a config doesn't import torch."""
    from typing import get_args

    from nsa_eval.config import ModelSpec
    from nsa_kernels import BACKENDS

    assert set(get_args(ModelSpec.model_fields["backend"].annotation)) == {"auto", *BACKENDS}
