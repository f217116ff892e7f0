"""The one exception that is meant for the user's eyes."""

from __future__ import annotations


class Problem(Exception):
    """Something the user can put right: what is wrong and where, and the way out.

    Entry points print it as `error: message` and `help: help`, without a traceback.
    """

    def __init__(self, message: str, help: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.help = help

    def __str__(self) -> str:
        return self.message if self.help is None else f"{self.message}\nhelp: {self.help}"
