"""The one error type of the agent. Every message says what is wrong and, where there is a way, how to mend it."""

from __future__ import annotations


class AgentError(Exception):
    """Something the administrator has to know. `where` is a file, an object or a command; may be empty."""

    def __init__(self, text: str, where: str = "") -> None:
        super().__init__(f"{where}: {text}" if where else text)
        self.text = text
        self.where = where
