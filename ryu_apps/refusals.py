"""Why the controller says no: one error type with a slug that the northbound API turns into a problem document.

Invariant: a `Refused` means that nothing was changed, or that what was changed has been taken back.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping


class Slug(enum.StrEnum):
    """Problem types of docs/interfaces.md section 5."""

    MALFORMED = "malformed"
    BAD_ADDRESS = "bad-address"
    UNKNOWN_BRIDGE = "unknown-bridge"
    NO_SUCH_PORT = "no-such-port"
    UNAUTHORISED = "unauthorised"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not-found"
    NO_SUCH_ATTEMPT = "no-such-attempt"
    NO_SUCH_NODE = "no-such-node"
    NO_SUCH_BRIDGE = "no-such-bridge"
    METHOD = "method-not-allowed"
    CONFLICT = "conflict"
    PHASE = "phase"
    TOO_LARGE = "too-large"
    UNSUPPORTED = "unsupported-media-type"
    HELD = "held"
    TOO_MANY = "too-many"
    INTERNAL = "internal"
    NOT_REALISED = "not-realised"
    STARTING = "starting"


class Refused(Exception):
    """A request that was not done. `extra`: further members of the problem document; `retry_after`: seconds after which
    it may be asked again, where that is worth saying."""

    def __init__(
        self, slug: Slug, detail: str, extra: Mapping[str, object] | None = None, *, retry_after: int = 1
    ) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
        self.slug = slug
        self.detail = detail
        self.extra = dict(extra or {})
