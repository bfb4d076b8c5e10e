"""What speaks against giving jobs networks on this node, beside the switch and the pool: said by `ping` and by `begin`.

Invariants: nothing is known to be well before it was looked at: while HTCondor's list of job attributes could not be
read, or lacks one that the policy reads, no job begins. An attribute that is not sent is UNDEFINED to the policy, and
a restriction that rests on it (a seal) would silently not apply.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MAX_NAMES = 600
"""Characters of attribute names in one message: a reply on the socket has 1024."""


@dataclass(slots=True)
class Standing:
    wanted: tuple[str, ...] = ()
    """Job attributes that the policy reads, as the controller said last."""
    sent: frozenset[str] | None = None
    """Names (lower case) in STARTD_JOB_ATTRS; None: not known."""
    unreadable: str = ""
    """Why `sent` is not known."""
    registration: str = ""
    """Why the last registration or heartbeat failed; empty: it did not."""
    policy: str = ""
    """Digest of the policy in force, as the controller said last; empty: it does not say (an older one)."""
    heard_until: float = 0.0
    """Until then (monotonic clock) the controller is there: no sign of life is overdue by a second interval."""
    refused: bool = False
    """It failed because the controller refuses this node, so it would refuse its jobs too."""

    def still(self, policy: str, now: float) -> bool:
        """As far as anybody can know here: is what the controller decided by this policy what it would decide now?"""
        return bool(policy) and policy == self.policy and now < self.heard_until

    def attributes_are(self, names: Iterable[str]) -> None:
        self.sent, self.unreadable = frozenset(name.lower() for name in names), ""

    def attributes_unknown(self, why: str) -> None:
        self.sent, self.unreadable = None, why

    def missing(self) -> list[str]:
        """What the policy reads and no job of this node would ever show."""
        sent = self.sent or frozenset()
        return sorted(name for name in self.wanted if name.lower() not in sent)

    def blind(self) -> str:
        """Why the policy would be blind to what jobs say; empty: it is not."""
        if self.sent is None:
            return f"HTCondor's configuration cannot be read: {self.unreadable or 'not read yet'}"
        names = ", ".join(self.missing())
        if not names:
            return ""
        if len(names) > MAX_NAMES:
            names = names[:MAX_NAMES].rpartition(", ")[0] + ", …"
        return (
            f"the policy reads job attributes that STARTD_JOB_ATTRS of this node lacks: {names}; "
            "add them there, then condor_reconfig, then reload lark-agent (SIGHUP)"
        )

    def trouble(self, pool: str) -> str:
        """Why no job should come here, or empty. `pool`: why no network is ready, or empty."""
        if blind := self.blind():
            return blind
        if self.refused:
            return f"the controller refuses this node: {self.registration}"
        if pool and self.registration:
            return f"{pool}; last error of the registration: {self.registration}"
        return pool
