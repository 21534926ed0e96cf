"""Errors of the command line."""


class StartError(Exception):
    """Something can't be started on this machine as things are. The message says what, and what to do."""
