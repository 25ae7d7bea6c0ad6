"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """A wrong config, path, option or input: shown as one message, without a traceback, exit code 2."""
