"""Chat templates that print the day's date: told by their text, and held to one day."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, tzinfo

_CALLS = re.compile(r"\b(strftime_now|datetime)\b")
# Documents are made on threads, and the clock that is held is one for all of them.
_HELD = threading.RLock()


def calls_clock(template: str | None) -> bool:
    """Whether a chat template asks for the time: its prompts are others every day."""
    return bool(template and _CALLS.search(template))


@contextmanager
def clock_at(day: str | None) -> Iterator[None]:
    """Hold the clock of chat templates at the start of a day, while a template is applied.

    transformers gives its templates a function that reads the clock, and turns one given as an argument into
    text: so it is the clock that it reads which stands still.

    Args:
        day: As in 2026-01-31; None leaves the clock running.
    """
    if day is None:
        yield
        return
    from transformers.utils import chat_template_utils

    moment = datetime.combine(date.fromisoformat(day), time())

    class Still(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return moment if tz is None else moment.replace(tzinfo=tz)

    with _HELD:
        running = chat_template_utils.datetime
        chat_template_utils.datetime = Still
        try:
            yield
        finally:
            chat_template_utils.datetime = running
