"""TLS towards the controller: what `agent.yaml` names → a context, and a failed handshake → what to do about it.

Invariants: the controller's certificate is always checked, name and all; a private key that others may read is refused;
a renewed certificate is taken up by `renew` without ending open connections.
"""

from __future__ import annotations

import ssl

from ovs_agent.config import ConfigError, ControllerSection
from policies.certificates import TlsFault, tls_fault


class ControllerTls:
    """The context for connections to the controller."""

    def __init__(self, section: ControllerSection) -> None:
        """Raises ConfigError."""
        self._pair = (section.certificate_file, section.private_key_file)
        try:
            self.context = ssl.create_default_context(cafile=section.ca_file)
        except OSError as e:
            raise ConfigError(
                f"ca-file {_why(e)}; it must hold the certificate of the controller's CA in PEM", str(section.ca_file)
            ) from None
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.renew()

    def renew(self) -> None:
        """Read certificate and key again, for new connections. Raises ConfigError; what was read before then stays."""
        certificate, key = self._pair
        if certificate is None or key is None:
            return
        try:
            mode = key.stat().st_mode
        except OSError as e:
            raise ConfigError(f"private-key-file {_why(e)}", str(key)) from None
        if mode & 0o077:
            raise ConfigError(f"private key is open to others (mode {mode & 0o777:03o}); run chmod 600 on it", str(key))
        for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), self.context):  # the first one only tries
            try:
                # Without a password given, OpenSSL would ask for one on the terminal.
                context.load_cert_chain(certificate, key, password="")
            except OSError as e:
                raise ConfigError(
                    f"{_why(e)}; certificate-file and private-key-file must be one pair in PEM, the key without a "
                    "password: lark-controller pki agent NODE makes one",
                    str(certificate),
                ) from None


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"cannot be used ({error.reason or error})"
    return f"cannot be read: {error.strerror}"


_WORDS = {
    TlsFault.NO_TLS: "it speaks no TLS on this port; is it http:, or another port?",
    TlsFault.WRONG_NAME: "its certificate is not for this name; use a name that is in it in controller.urls, or make "
    "it one with this name: lark-controller pki controller --address NAME --force",
    TlsFault.EXPIRED: "its certificate has expired; on its machine: lark-controller pki renew controller, then reload "
    "(or is this node's clock wrong?)",
    TlsFault.NOT_YET_VALID: "its certificate is not valid yet; compare the clocks",
    TlsFault.UNKNOWN_CA: "its certificate is not of a CA in ca-file; give this node the controller's ca.crt as "
    "controller.ca-file. If it has that one, somebody else answers at this address",
    TlsFault.WRONG_PURPOSE: "its certificate is not a server's: it is not the controller who answers there",
    TlsFault.PROTOCOL: "it has no TLS version or cipher in common with this node",
    TlsFault.THEY_DISTRUST_OUR_CA: "it does not know the CA of this node's certificate; make a new one there: "
    "lark-controller pki agent NODE",
    TlsFault.THEY_SAY_EXPIRED: "this node's certificate has expired; on the controller's machine: lark-controller pki "
    "renew agent-NODE, copy it here, reload lark-agent",
    TlsFault.THEY_WANT_A_CERTIFICATE: "it wants a client certificate; give certificate-file and private-key-file",
    TlsFault.THEY_REFUSE_OUR_CERTIFICATE: "it refuses this node's certificate (revoked, or not a client's); its log "
    "says why; make a new one there: lark-controller pki agent NODE",
}


def tls_words(error: BaseException) -> str | None:
    """What a failed call means if TLS is why it failed, with the remedy."""
    at: BaseException | None = error
    for _ in range(8):
        if at is None:
            return None
        if (isinstance(at, ssl.SSLError) or "[SSL" in str(at)) and (fault := tls_fault(str(at))) in _WORDS:
            return _WORDS[fault]
        at = at.__cause__ or at.__context__
    return None
