"""What this package raises when the user can mend it: one message each, no traceback needed."""


class TaskError(ValueError):
    """A task that cannot be made from what it was given."""


class TaskParameterError(TaskError):
    """A parameter that a task cannot use: one message with task, parameter, value and what is allowed."""


class TaskDataError(TaskError):
    """Data or a prompt file that cannot be had or used: what was looked for, where, and how to get it."""
