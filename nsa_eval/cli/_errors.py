"""From exceptions to messages and exit codes."""

from __future__ import annotations

import errno
import functools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import datetime
from typing import ParamSpec, TypeVar

import typer

from nsa_eval.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")

EXIT_INTERNAL, EXIT_USER, EXIT_INTERRUPTED = 1, 2, 130


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Show what a command raises as one message and exit with the code that belongs to it."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, SystemExit):
            raise
        except KeyboardInterrupt:
            show_error(
                "stopped. Every finished response is kept: run the same command again to go on.", word=""
            )
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:  # `nsa-eval ls tasks | head`: the reader has what it wanted
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except Exception as error:
            if is_user_error(error):
                show_error(str(error))
                raise typer.Exit(EXIT_USER) from None
            show_error(_internal(error), word="internal error: ")
            raise typer.Exit(EXIT_INTERNAL) from None

    return wrapper


def is_user_error(error: Exception) -> bool:
    """Whether the user can mend it: our own errors of that kind, and a full disk wherever it was met."""
    if isinstance(error, UserError):
        return True
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}:
        return True
    # Looked up where they may have come from, so that an error costs no import.
    for module, name in (("nsa_models", "ModelLoadError"), ("nsa_tasks", "TaskError")):
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and isinstance(error, kind):
            return True
    return False


def show_error(text: str, *, word: str = "error: ") -> None:
    """Print to standard error, without markup and without breaking long paths."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, highlight=False).print(Text.assemble((word, "bold red"), text), soft_wrap=True)


def _internal(error: Exception) -> str:
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    summary = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    try:
        handle, path = tempfile.mkstemp(prefix=f"nsa-eval-{stamp}-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"command: {sys.argv}\n\n")
            traceback.print_exception(error, file=file)
    except OSError:
        return summary + "\n" + "".join(traceback.format_exception(error))
    return f"{summary}\nThis is a fault of nsa-eval. The traceback is in {path}; finished responses are kept."
