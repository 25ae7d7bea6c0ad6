"""Entry point, and the order in which a command line's lists are read.

Exit codes: 0 done, 1 an error of the program itself, 2 an error of the user (config, path, option,
checkpoint), 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# lm-eval writes these as lists separated by blanks, we read them separated by commas: `--tasks a b` is
# `--tasks a,b`.
_LISTS = {"--tasks", "-t", "--model_args", "-a", "--gen_kwargs"}
_OPTIONAL_VALUE = {"--apply_chat_template": "true"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit.

    Args:
        arguments: The command line without the program's name. Default: this process's.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # said, as a fork would turn it off, and complain
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Decoding is many tiny operations. By default OpenMP's threads spin while they wait for each other: where
    # another process has one of the cores, a run of a minute then takes more than ten.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not os.environ.get("LMEVAL_LOG_LEVEL"):
        # lm-eval draws a bar for each task, across ours. Set to nothing by the user, they stay.
        os.environ.setdefault("TQDM_DISABLE", "1")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["eval"]:
        from nsa_eval.cli._errors import EXIT_USER, show_error
        from nsa_eval.cli._lm_eval_flags import without_lm_eval_flags
        from nsa_eval.errors import UserError

        try:
            given = without_lm_eval_flags(given)
        except UserError as error:
            show_error(str(error))
            sys.exit(EXIT_USER)
    from nsa_eval.cli._commands import app

    app(args=as_lm_eval(given), prog_name="nsa-eval")


def as_lm_eval(arguments: Sequence[str]) -> list[str]:
    """Read `eval`'s flags as lm-eval does: lists with blanks, a chat template with or without a name.

    Of every command, `--looks` goes with or without a number.
    """
    of_eval = arguments[:1] == ["eval"]
    read: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if of_eval and word in _LISTS and rest and not rest[0].startswith("-"):
            values = []
            while rest and not rest[0].startswith("-"):
                values.append(rest.pop(0).strip(","))
            read += [word, ",".join(values)]
        elif of_eval and word in _OPTIONAL_VALUE:
            given = rest.pop(0) if rest and not rest[0].startswith("-") else _OPTIONAL_VALUE[word]
            read += [word, given]
        elif word == "--looks" and not (rest and _is_number(rest[0])):
            from nsa_eval.cli._options import DEFAULT_LOOKS

            read += [word, str(DEFAULT_LOOKS)]
        else:
            read.append(word)
    return read


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
