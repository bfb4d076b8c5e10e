"""How a command ends with a sentence instead of a traceback. It imports nothing, so that any may use it."""

from __future__ import annotations


class Stop(Exception):
    """Ends the program with a message and an exit code: 1 something failed, 2 a file or an option is wrong."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
