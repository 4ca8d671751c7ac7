"""Errors that a user can cause."""


class UserError(ValueError):
    """Something the user gave is at fault. The message is one line: it names the thing and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """
