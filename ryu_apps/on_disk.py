"""Do the files of the policy say what is in force? An administrator who has written another policy must see that it is
not in force yet, or was refused.

Invariant: it never raises: what cannot be read is said.
"""

from __future__ import annotations

from pathlib import Path

from policies.language import changed_on_disk
from policies.model import Policy


class OnDisk:
    """Of one controller; who reads the files says what came of it."""

    def __init__(self) -> None:
        self.policy: Path | None = None
        """Where the policy in force was read; None: in no file."""
        self.refused = ""
        """Why the last reload changed nothing; empty: it did, or there was none."""

    def said(self, policy: Policy) -> str:
        if self.refused:
            return f"the last SIGHUP was refused: {self.refused}"
        changed = "" if self.policy is None else changed_on_disk(self.policy, policy)
        return f"{changed}; send SIGHUP to lark-controller to put them in force" if changed else ""
