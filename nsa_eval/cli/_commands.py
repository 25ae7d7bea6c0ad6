"""The application with its commands: they register themselves, in the order in which --help lists them."""

from nsa_eval.cli import _running  # noqa: I001
from nsa_eval.cli import _family
from nsa_eval.cli import _reading
from nsa_eval.cli import _data
from nsa_eval.cli import _bench
from nsa_eval.cli import _converting
from nsa_eval.cli._app import app

__all__ = ["_bench", "_converting", "_data", "_family", "_reading", "_running", "app"]
