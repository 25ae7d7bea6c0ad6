"""`--gen_kwargs` and `--model_args` mean what they mean to lm-eval."""

import argparse

import pytest
from lm_eval._cli.utils import MergeDictAction

from nsa_eval.cli._given import models_given, pairs_given
from nsa_eval.errors import UserError

TEXTS = [
    r"until=['\n\n'],max_gen_toks=24",
    "until=[.]",
    "until=#",
    "until=None",
    "until=Q:",
    "until=*",
    "max_gen_toks=024",
    '{"temperature": 0.7}',
    '{"until": ["a,b", "="], "max_gen_toks": 3}',
    "temperature=0.7,do_sample=true,top_k=5",
    "do_sample=False",
    "pretrained=./ckpt,dtype=float16,trust_remote_code=True",
    "until=['a,b', 'c=d']",
    "temperature=1e-1",
    "key='quoted'",
    "a=",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_flag_is_read_as_lm_evals_command_line_reads_it(text):
    parser = argparse.ArgumentParser()
    parser.add_argument("--gen_kwargs", nargs="+", action=MergeDictAction)
    assert pairs_given(text, "--gen_kwargs") == parser.parse_args(["--gen_kwargs", text]).gen_kwargs


def test_the_stop_string_is_two_newlines():
    assert pairs_given(TEXTS[0], "--gen_kwargs") == {"until": ["\n\n"], "max_gen_toks": 24}


@pytest.mark.parametrize("text", ["", "  ", None])
def test_nothing_is_nothing(text):
    assert pairs_given(text, "--gen_kwargs") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("greedy", "expected KEY=VALUE pairs separated by commas, or a JSON object"),
        ("[1, 2]", "expected KEY=VALUE pairs separated by commas, or a JSON object"),
        ('{"temperature": }', "expected KEY=VALUE pairs separated by commas, or a JSON object"),
        ("temperature=0.5,temperature=0.7", "temperature is given twice: keep one"),
    ],
)
def test_what_cannot_be_read_is_one_message(text, said):
    with pytest.raises(UserError) as caught:
        pairs_given(text, "--gen_kwargs")
    assert str(caught.value).startswith("--gen_kwargs")
    assert said in str(caught.value)


def test_a_revision_of_digits_stays_text():
    pairs = pairs_given("pretrained=a/b,revision=1234567", "--model_args")
    assert models_given(["hf"], pairs) == [{"path": "a/b", "revision": "1234567"}]
