"""The error that is the user's to mend: a message, no traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something outside the program is not as needed; the message says what was found, what is needed, what to do.

    Entry points print it as one sentence and exit with status 1. From Python it is a ``ValueError``.
    """


class NothingFoundError(UserError):
    """A folder holds nothing of what a configuration names."""
