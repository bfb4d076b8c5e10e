"""How the story is told: claims, each with its evidence.

Invariant: a claim is only true when its evidence was seen; a chapter in which nothing was claimed, or in which nothing
was shown to work (a positive control), has not been told. The demo prints what the tests assert: both use `Telling`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Claim:
    text: str
    true: bool
    evidence: tuple[str, ...]
    control: bool
    """A positive control: it shows that the thing which is denied elsewhere does work when allowed."""


@dataclass(slots=True)
class Telling:
    """Claims of one chapter, in order. `hear` is called with each as it is made."""

    hear: Callable[[Claim], None] = lambda claim: None
    claims: list[Claim] = field(default_factory=list)

    def shows(self, text: str, true: bool, evidence: Sequence[str] | str, *, control: bool = False) -> bool:
        """Claim `text`; `evidence` is what was seen (command lines begin with `$ `)."""
        lines = tuple(evidence.splitlines() if isinstance(evidence, str) else evidence)
        claim = Claim(text, bool(true), lines, control)
        self.claims.append(claim)
        self.hear(claim)
        return claim.true

    def works(self, text: str, true: bool, evidence: Sequence[str] | str) -> bool:
        """A positive control."""
        return self.shows(text, true, evidence, control=True)

    def problems(self) -> list[str]:
        """Why this chapter is not proven; empty when it is."""
        found = []
        for claim in self.claims:
            if not claim.true:
                found.append("not shown: " + claim.text + "".join(f"\n    {line}" for line in claim.evidence))
        if not any(claim.control for claim in self.claims):
            found.append("no positive control was shown")
        if all(claim.control for claim in self.claims):
            found.append("nothing but positive controls was shown")
        return found
