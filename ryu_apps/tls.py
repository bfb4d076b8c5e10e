"""Certificates of the controller's listeners: files → server contexts, peers → names, failures → what to do.

Invariants: a listener with TLS takes TLS 1.2 or later and clients of its CA only; a private key that others may read,
a certificate that is not valid now, or a pair that does not belong together is refused with the remedy, before anything
listens. `server_tls` reads; nothing here connects. A context is never changed: new files make a new one, so that open
connections keep what they were made with.
"""

from __future__ import annotations

import datetime
import ssl
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from policies.certificates import TlsFault, names, tls_fault

PEER: Final = "lark.peer"
"""Key of a request's WSGI environment: the `Peer` behind a client certificate, or None."""
SOON: Final = datetime.timedelta(days=30)
"""A certificate that ends earlier than this is warned of."""


class TlsError(Exception):
    """Files that cannot serve. The text names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    certificate: Path
    private_key: Path
    ca: Path
    crl: Path | None = None


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What a listener needs, as read from its files."""

    context: ssl.SSLContext
    files: TlsFiles
    not_after: datetime.datetime

    def warnings(self, now: datetime.datetime) -> list[str]:
        if self.not_after - now > SOON:
            return []
        return [
            f"{self.files.certificate} ends on {self.not_after:%Y-%m-%d %H:%M} UTC; renew it: "
            f"lark-controller pki renew {self.files.certificate.stem}, then reload (SIGHUP)"
        ]


class TlsDoor:
    """The TLS of one listener, replaced as a whole by a reload; connections that are open are not touched."""

    def __init__(self, tls: ServerTls) -> None:
        self.tls = tls
        self.grumbles = Grumbles()

    @property
    def context(self) -> ssl.SSLContext:
        return self.tls.context


@dataclass(frozen=True, slots=True)
class Peer:
    """Whoever showed a certificate of the CA."""

    names: frozenset[str]
    not_after: datetime.datetime | None = None

    def __str__(self) -> str:
        return ", ".join(sorted(self.names)) or "nobody"


def server_tls(files: TlsFiles, *, everyone: bool, now: datetime.datetime | None = None) -> ServerTls:
    """`everyone`: a client without a certificate is refused (else it may come, and is nobody yet). Raises TlsError."""
    now = now or datetime.datetime.now(datetime.UTC)
    certificate = _certificate(files.certificate)
    if now >= certificate.not_valid_after_utc:
        raise TlsError(
            f"{files.certificate}: expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; renew it: "
            f"lark-controller pki renew {files.certificate.stem}"
        )
    if now < certificate.not_valid_before_utc:
        raise TlsError(
            f"{files.certificate}: not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; "
            "is this machine's clock right?"
        )
    if not _serves(certificate):
        raise TlsError(
            f"{files.certificate}: is not a server's certificate (extendedKeyUsage); make one: "
            "lark-controller pki controller"
        )
    _closed_to_others(files.private_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    # A session taken up again would not look at the client's certificate anew.
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_REQUIRED if everyone else ssl.CERT_OPTIONAL
    try:
        # Without a password given, OpenSSL asks for one on the terminal, and a daemon hangs.
        context.load_cert_chain(files.certificate, files.private_key, password="")
    except ssl.SSLError as error:
        raise TlsError(
            f"{files.private_key}: cannot be used with {files.certificate.name} ({error.reason or error}); it must be "
            "the PEM key that this certificate was made for, without a password"
        ) from error
    try:
        context.load_verify_locations(cafile=files.ca)
    except OSError as error:
        raise TlsError(f"{files.ca}: {_why(error)}; it must hold the CA's certificate in PEM") from error
    if files.crl is not None:
        try:
            context.load_verify_locations(cafile=files.crl)
        except OSError as error:
            raise TlsError(f"{files.crl}: {_why(error)}; it must hold the CA's revocation list in PEM") from error
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return ServerTls(context, files, certificate.not_valid_after_utc)


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"is not what it should be ({error.reason or error})"
    return f"cannot be read: {error.strerror}"


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise TlsError(f"{path}: cannot be read: {error.strerror}; make it: lark-controller pki controller") from error
    except ValueError as error:
        raise TlsError(f"{path}: is not a certificate in PEM") from error


def _serves(certificate: x509.Certificate) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.SERVER_AUTH in usage


def _closed_to_others(path: Path) -> None:
    try:
        mode = path.stat().st_mode
        path.open("rb").close()
    except OSError as error:
        raise TlsError(
            f"{path}: cannot be read: {error.strerror}; it must be there and belong to the controller's user"
        ) from error
    if mode & 0o077:
        raise TlsError(f"{path}: is open to others (mode {mode & 0o777:03o}); run chmod 600 on it")


def peer_of(found: Mapping[str, Any] | None) -> Peer | None:
    """The peer behind `getpeercert()`; None without a certificate."""
    if not found:
        return None
    alternatives: tuple[tuple[str, str], ...] = found.get("subjectAltName", ())
    uris = [value for kind, value in alternatives if kind == "URI"]
    hosts = [value for kind, value in alternatives if kind == "DNS"]
    hosts += [value for part in found.get("subject", ()) for key, value in part if key == "commonName"]
    ends = found.get("notAfter")
    not_after = None if ends is None else datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(ends), datetime.UTC)
    return Peer(names(uris, hosts), not_after)


_REISSUE: Final = "make it one with `lark-controller pki {kind}`{install}"
_SWITCH: Final = ("switch", " and give it to Open vSwitch with `ovs-vsctl set-ssl`")
_AGENT: Final = ("agent", " and name it in agent.yaml, or let it come with a token only")


def explained(text: str, *, switches: bool) -> str:
    """What went wrong with a client's handshake, and what to do, in a sentence. `switches`: at which listener."""
    kind, install = _SWITCH if switches else _AGENT
    reissue = _REISSUE.format(kind=kind, install=install)
    ours = "on the switch, the third file of `ovs-vsctl set-ssl`" if switches else "`ca-file`, or --ca-file"
    no_tls = (
        "this port speaks TLS only; use `ovs-vsctl set-controller BRIDGE ssl:ADDRESS:PORT`"
        if switches
        else "this port speaks TLS only; use https: in the URL"
    )
    match tls_fault(text):
        case TlsFault.NO_TLS:
            return f"it speaks no TLS, and {no_tls}"
        case TlsFault.NO_CERTIFICATE:
            return f"it showed no certificate; {reissue}"
        case TlsFault.UNKNOWN_CA:
            return f"its certificate is not of our CA; {reissue}"
        case TlsFault.EXPIRED:
            return f"its certificate has expired; renew it with `lark-controller pki renew {kind}-NAME`, and install it"
        case TlsFault.NOT_YET_VALID:
            return "its certificate is not valid yet; compare the clocks of both machines"
        case TlsFault.REVOKED:
            return f"its certificate was revoked; {reissue}"
        case TlsFault.CRL:
            return "the revocation list (`crl`) does not cover its certificate or has ended; write it anew: " + (
                "`lark-controller pki crl`"
            )
        case TlsFault.WRONG_PURPOSE:
            return f"its certificate is not a client's (extendedKeyUsage); {reissue}"
        case TlsFault.PROTOCOL:
            return "it has no TLS 1.2 or later, or no cipher in common with us; bring its software up to date"
        case TlsFault.THEY_DISTRUST_OUR_CA:
            return f"it does not trust our certificate's CA; give it our `ca` ({ours})"
        case TlsFault.THEY_SAY_EXPIRED:
            return "it says that our certificate has expired; renew ours, or mend its clock"
        case TlsFault.THEY_REFUSE_OUR_CERTIFICATE:
            return f"it refuses our certificate ({text}); does it connect to the name in it, and trust our CA ({ours})?"
        case _:
            return f"the TLS handshake failed: {text}"


@dataclass(slots=True)
class _Said:
    at: float
    count: int = 0


@dataclass(slots=True)
class Grumbles:
    """Decides which refusals are worth a line: for each peer and reason one at once, then one a minute with a count."""

    every: float = 60.0
    most: int = 1024
    _said: OrderedDict[tuple[str, str], _Said] = field(default_factory=OrderedDict)

    def line(self, peer: str, why: str, now: float) -> str | None:
        """The line to log, or None."""
        one = self._said.get((peer, why))
        if one is not None and now - one.at < self.every:
            one.count += 1
            return None
        before = one.count if one is not None else 0
        self._said[peer, why] = _Said(now)
        self._said.move_to_end((peer, why))
        if len(self._said) > self.most:
            self._said.popitem(last=False)
        return f"from {peer}: refused: {why}" + (f" ({before} more since the last line)" if before else "")
