"""Keys for what is computed once from a site or a policy and kept: values that cannot be hashed, by identity.

Invariant: whoever changes such a value in place, and does not make another one, breaks what was kept of it.
"""

from __future__ import annotations


class Same:
    """A value that is equal to itself only. It keeps the value alive, so that its identity is nobody else's."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
