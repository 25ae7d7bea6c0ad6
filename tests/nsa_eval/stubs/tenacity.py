"""Enough of tenacity for lm-eval's API models where it isn't installed: one attempt."""


class RetryError(Exception):
    pass


def retry(**options):
    return lambda function: function


def stop_after_attempt(attempts):
    return None


def wait_exponential(**options):
    return None
