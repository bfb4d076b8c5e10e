"""How a command ends with a sentence instead of a traceback. It imports nothing at first, so that any may use it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class Stop(Exception):
    """Ends the program with a message and an exit code: 1 something failed, 2 a file or an option is wrong."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def faults_in_files() -> Iterator[None]:
    """What is wrong in a configuration file ends the command."""
    from ryu_apps.config import ConfigError

    try:
        yield
    except ConfigError as problem:
        raise Stop(str(problem), 2) from problem
