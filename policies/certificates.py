"""What agent and controller share about certificates: the names in them, and what a failed TLS handshake means.

A certificate says who somebody is by a URI in its subjectAltName: `urn:lark:bridge:NAME` (the switch of a bridge) or
`urn:lark:node:NAME` (the agent of a node). The two kinds never stand for each other, and neither is a server's.
A certificate of another CA has no such URI: `certificate` in site.yaml then says which name in it (a host name, a
common name, another URI) stands for whom.

Invariants: pure; a URI is matched by URIs only, so that no host name or common name can pass for one.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

BRIDGE_URN = "urn:lark:bridge:"
NODE_URN = "urn:lark:node:"


def bridge_certificate_name(bridge: str, declared: str | None = None) -> str:
    """The name that the certificate of a bridge's switch must hold."""
    return _folded(declared) if declared is not None else BRIDGE_URN + bridge


def node_certificate_name(node: str, declared: str | None = None) -> str:
    """The name that the certificate of a node's agent must hold."""
    return _folded(declared) if declared is not None else NODE_URN + node


def names(uris: Iterable[str], hosts: Iterable[str]) -> frozenset[str]:
    """Every name of a certificate, as the functions above spell them."""
    return frozenset(uris) | {_folded(host) for host in hosts if not _is_uri(host)}


def _is_uri(name: str) -> bool:
    return name.lower().startswith("urn:") or "://" in name


def _folded(name: str) -> str:
    """Host names know no case; URIs do."""
    return name if _is_uri(name) else name.lower()


class TlsFault(enum.Enum):
    """Why a handshake failed. `THEY_…`: the other side said so, of us."""

    NO_TLS = "no-tls"
    NO_CERTIFICATE = "no-certificate"
    UNKNOWN_CA = "unknown-ca"
    EXPIRED = "expired"
    NOT_YET_VALID = "not-yet-valid"
    WRONG_NAME = "wrong-name"
    WRONG_PURPOSE = "wrong-purpose"
    REVOKED = "revoked"
    CRL = "crl"
    PROTOCOL = "protocol"
    THEY_DISTRUST_OUR_CA = "they-distrust-our-ca"
    THEY_SAY_EXPIRED = "they-say-expired"
    THEY_WANT_A_CERTIFICATE = "they-want-a-certificate"
    THEY_REFUSE_OUR_CERTIFICATE = "they-refuse-our-certificate"


# What the TLS library says, in its versions 1.1.1 to 3.5; the first line with a match decides.
_SAYINGS: tuple[tuple[str, TlsFault], ...] = (
    ("alert unknown ca", TlsFault.THEY_DISTRUST_OUR_CA),
    ("alert certificate expired", TlsFault.THEY_SAY_EXPIRED),
    ("alert certificate required", TlsFault.THEY_WANT_A_CERTIFICATE),
    ("alert no certificate", TlsFault.THEY_WANT_A_CERTIFICATE),
    ("alert bad certificate", TlsFault.THEY_REFUSE_OUR_CERTIFICATE),
    ("alert certificate revoked", TlsFault.THEY_REFUSE_OUR_CERTIFICATE),
    ("alert certificate unknown", TlsFault.THEY_REFUSE_OUR_CERTIFICATE),
    ("alert unsupported certificate", TlsFault.THEY_REFUSE_OUR_CERTIFICATE),
    ("alert access denied", TlsFault.THEY_REFUSE_OUR_CERTIFICATE),
    ("alert protocol version", TlsFault.PROTOCOL),
    ("unsupported protocol", TlsFault.PROTOCOL),
    ("version too low", TlsFault.PROTOCOL),
    ("no shared cipher", TlsFault.PROTOCOL),
    ("peer did not return a certificate", TlsFault.NO_CERTIFICATE),
    ("hostname mismatch", TlsFault.WRONG_NAME),
    ("ip address mismatch", TlsFault.WRONG_NAME),
    ("certificate has expired", TlsFault.EXPIRED),
    ("not yet valid", TlsFault.NOT_YET_VALID),
    ("certificate revoked", TlsFault.REVOKED),
    ("crl", TlsFault.CRL),
    ("certificate purpose", TlsFault.WRONG_PURPOSE),
    ("certificate verify failed", TlsFault.UNKNOWN_CA),
    ("wrong version number", TlsFault.NO_TLS),
    ("http request", TlsFault.NO_TLS),
    ("https proxy request", TlsFault.NO_TLS),
    ("unknown protocol", TlsFault.NO_TLS),
    ("record layer failure", TlsFault.NO_TLS),
    ("packet length too long", TlsFault.NO_TLS),
)


def tls_fault(text: str) -> TlsFault | None:
    """What an error text of the TLS library means; None if it is none of these."""
    said = text.lower().replace("_", " ")
    return next((fault for saying, fault in _SAYINGS if saying in said), None)
