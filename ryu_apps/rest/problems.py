"""From a refusal to an RFC 9457 problem document: status and title of each problem type."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ryu_apps.refusals import Refused, Slug

PROBLEM_TYPE = "application/problem+json"
URN = "urn:lark:problem:"
KINDS: Mapping[Slug, tuple[int, str]] = {
    Slug.MALFORMED: (400, "The request is not well-formed"),
    Slug.BAD_ADDRESS: (400, "The address does not fit the site"),
    Slug.UNKNOWN_BRIDGE: (400, "The bridge is not this node's"),
    Slug.NO_SUCH_PORT: (400, "The port is not on the bridge"),
    Slug.UNAUTHORISED: (401, "A valid token or certificate is needed"),
    Slug.FORBIDDEN: (403, "This token may not do that"),
    Slug.NOT_FOUND: (404, "There is nothing here"),
    Slug.NO_SUCH_ATTEMPT: (404, "There is no such attempt"),
    Slug.NO_SUCH_NODE: (404, "There is no such node"),
    Slug.NO_SUCH_BRIDGE: (404, "There is no such border"),
    Slug.METHOD: (405, "This method is not for this resource"),
    Slug.CONFLICT: (409, "This conflicts with what is there"),
    Slug.PHASE: (409, "Phases only advance"),
    Slug.TOO_LARGE: (413, "The request is too large"),
    Slug.UNSUPPORTED: (415, "Only JSON is understood"),
    Slug.HELD: (422, "The policy refuses the job's description"),
    Slug.TOO_MANY: (429, "Too many requests"),
    Slug.INTERNAL: (500, "The controller has a defect"),
    Slug.NOT_REALISED: (503, "Not confirmed in time"),
    Slug.STARTING: (503, "The controller is starting"),
}


def status_of(refused: Refused) -> int:
    return KINDS[refused.slug][0]


def document(refused: Refused) -> bytes:
    """The problem document of a refusal."""
    status, title = KINDS[refused.slug]
    body = {"type": URN + refused.slug.value, "title": title, "status": status, "detail": refused.detail}
    return json.dumps({**refused.extra, **body}).encode()
