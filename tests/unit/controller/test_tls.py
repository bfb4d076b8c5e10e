"""What a listener's certificates must be, what a peer's say, what failures mean, and the TLS connection itself."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from policies.certificates import bridge_certificate_name, names, node_certificate_name, tls_fault
from ryu_apps.config import ConfigError, load_config
from ryu_apps.files import read_files
from ryu_apps.pki import Pki, agent_wish, controller_wish, switch_wish
from ryu_apps.refusals import Refused
from ryu_apps.rest.auth import Principal, TokenRole, caller, load_tokens, new_token
from ryu_apps.secure_socket import HandshakeError, SecureSocket
from ryu_apps.tls import Grumbles, Peer, TlsError, TlsFiles, explained, peer_of, server_tls
from tests.unit.controller.rig import POLICY, SITE

TLS = "tls: {certificate: pki/controller.crt, private-key: pki/controller.key, ca: pki/ca.crt}"
CONFIG = f"""\
site: site.yaml
policy: policy.yaml
state-dir: state
openflow: {{listen: "192.0.2.1:6653", {TLS}}}
api: {{listen: "192.0.2.1:8443", {TLS}}}
tokens: tokens.yaml
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    pki = Pki(tmp_path / "pki")
    pki.init("test")
    pki.issue(controller_wish(["127.0.0.1"]))
    (tmp_path / "site.yaml").write_text(SITE)
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "controller.yaml").write_text(CONFIG)
    new_token(tmp_path / "tokens.yaml", TokenRole.AGENT, "wn1")
    return tmp_path


def files(home: Path) -> TlsFiles:
    pki = home / "pki"
    return TlsFiles(pki / "controller.crt", pki / "controller.key", pki / "ca.crt", pki / "revoked.pem")


# --- files


def test_a_good_set_of_files_is_taken_and_asks_clients_for_certificates(home: Path) -> None:
    found = read_files(home / "controller.yaml")
    assert found.openflow_tls is not None
    assert found.api_tls is not None
    assert found.openflow_tls.context.verify_mode is ssl.CERT_REQUIRED
    assert found.api_tls.context.verify_mode is ssl.CERT_OPTIONAL
    assert found.openflow_tls.context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert not found.config.plaintext_warning
    assert [line for line in found.warnings if "address" in line or "ends on" in line] == []


def break_key_mode(pki: Path) -> None:
    (pki / "controller.key").chmod(0o640)


def break_pair(pki: Path) -> None:
    Pki(pki).issue(agent_wish("wn1"))
    (pki / "controller.key").write_bytes((pki / "agent-wn1.key").read_bytes())


def break_purpose(pki: Path) -> None:
    Pki(pki).issue(agent_wish("wn1"))
    for ending in ("crt", "key"):
        (pki / f"controller.{ending}").write_bytes((pki / f"agent-wn1.{ending}").read_bytes())


def break_expiry(pki: Path) -> None:
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=400)
    Pki(pki, now=past).issue(controller_wish(["127.0.0.1"]), force=True)


def break_clock(pki: Path) -> None:
    future = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=4)
    Pki(pki, now=future).issue(controller_wish(["127.0.0.1"]), force=True)


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (lambda pki: (pki / "controller.crt").unlink(), "controller.crt: cannot be read: No such file"),
        (lambda pki: (pki / "controller.crt").write_text("x"), "controller.crt: is not a certificate in PEM"),
        (lambda pki: (pki / "controller.key").unlink(), "controller.key: cannot be read: No such file"),
        (lambda pki: (pki / "controller.key").write_text("x"), "controller.key: cannot be used with controller.crt"),
        (lambda pki: (pki / "ca.crt").unlink(), "ca.crt: cannot be read"),
        (lambda pki: (pki / "ca.crt").write_text("x"), "ca.crt: is not what it should be"),
        (lambda pki: (pki / "revoked.pem").unlink(), "revoked.pem: cannot be read"),
        (break_key_mode, r"controller.key: is open to others \(mode 640\); run chmod 600 on it"),
        (break_pair, "cannot be used with controller.crt .*KEY_VALUES_MISMATCH"),
        (break_purpose, "is not a server's certificate"),
        (break_expiry, "expired on .*; renew it: lark-controller pki renew controller"),
        (break_clock, "is this machine's clock right"),
    ],
)
def test_files_that_cannot_serve_are_refused_with_the_remedy(
    home: Path, breaks: Callable[[Path], None], said: str
) -> None:
    server_tls(files(home), everyone=True)  # the control
    breaks(home / "pki")
    with pytest.raises(TlsError, match=said):
        server_tls(files(home), everyone=True)
    if "revoked" not in said:
        with pytest.raises(ConfigError, match=said):
            read_files(home / "controller.yaml")


def test_a_certificate_that_ends_soon_is_warned_of(home: Path) -> None:
    Pki(home / "pki").issue(controller_wish(["127.0.0.1"]), days=20, force=True)
    found = [line for line in read_files(home / "controller.yaml").warnings if "ends on" in line]
    assert len(found) == 1  # one for both listeners
    assert "lark-controller pki renew controller" in found[0]


def test_tls_and_plaintext_exclude_each_other(home: Path) -> None:
    (home / "controller.yaml").write_text(CONFIG.replace('8443", tls', '8443", allow-plaintext: true, tls'))
    with pytest.raises(ConfigError, match=r"controller.yaml:5: `api` has tls and allow-plaintext; drop the latter"):
        load_config(home / "controller.yaml")
    (home / "controller.yaml").write_text(CONFIG.replace("private-key: pki/controller.key, ", ""))
    with pytest.raises(ConfigError, match=r"controller.yaml:\d: `openflow.tls.private-key` must be given"):
        load_config(home / "controller.yaml")


# --- names


def test_only_uris_stand_for_lark_names() -> None:
    assert bridge_certificate_name("gate-br") in names(["urn:lark:bridge:gate-br"], [])
    assert bridge_certificate_name("gate-br") not in names([], ["urn:lark:bridge:gate-br", "gate-br"])
    assert node_certificate_name("wn1") not in names(["urn:lark:bridge:wn1"], ["wn1"])
    assert bridge_certificate_name("gate-br", "GATE.example.org") in names([], ["gate.Example.org"])
    assert bridge_certificate_name("gate-br", "GATE.example.org") not in names(["urn:lark:bridge:gate-br"], [])
    assert bridge_certificate_name("b", "spiffe://x/b") not in names([], ["spiffe://x/b"])
    assert bridge_certificate_name("b", "sc id:2e8d-1") in names([], ["sc id:2e8d-1"])  # as ovs-pki makes them


def test_a_peer_has_all_its_names() -> None:
    assert peer_of(None) is None
    assert peer_of({}) is None
    found = peer_of(
        {
            "subject": ((("commonName", "WN1.example.org"),), (("organizationName", "x"),)),
            "subjectAltName": (("DNS", "a.example.org"), ("URI", "urn:lark:node:wn1"), ("IP Address", "192.0.2.1")),
            "notAfter": "Nov 22 00:00:00 2027 GMT",
        }
    )
    assert found is not None
    assert found.names == {"wn1.example.org", "a.example.org", "urn:lark:node:wn1"}
    assert found.not_after == datetime.datetime(2027, 11, 22, tzinfo=datetime.UTC)


def test_who_calls(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    agent, viewer = new_token(path, TokenRole.AGENT, "wn1"), new_token(path, TokenRole.VIEWER, None)
    tokens, agents = load_tokens(path), {"urn:lark:node:wn1": "wn1", "wn2.example.org": "wn2"}

    def who(token: str | None, *held: str) -> Principal:
        peer = Peer(frozenset(held)) if held else None
        return caller(tokens, agents, None if token is None else f"Bearer {token}", peer)

    wn1 = Principal(TokenRole.AGENT, "wn1")
    assert who(agent) == who(None, "urn:lark:node:wn1") == who(agent, "urn:lark:node:wn1", "x") == wn1
    assert who(None, "wn2.example.org") == Principal(TokenRole.AGENT, "wn2")
    assert who(viewer, "urn:lark:bridge:b") == Principal(TokenRole.VIEWER)  # a certificate that says nothing of agents
    for token, held, said in (
        (None, (), "send `Authorization: Bearer TOKEN`"),
        ("lark_wrong", ("urn:lark:node:wn1",), "this token is not known"),
        (viewer, ("urn:lark:node:wn1",), "the token says viewer and the client certificate agent:wn1"),
        (None, ("urn:lark:bridge:wn1",), "is no agent of site.yaml"),
        (None, ("urn:lark:node:wn1", "wn2.example.org"), "stands for several nodes"),
    ):
        with pytest.raises(Refused, match=said):
            who(token, *held)


# --- words


@pytest.mark.parametrize(
    ("text", "switch", "agent"),
    [
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", "set-controller BRIDGE ssl:", "use https:"),
        ("[SSL: HTTP_REQUEST] http request", "speaks no TLS", "use https:"),
        ("[SSL: PEER_DID_NOT_RETURN_A_CERTIFICATE] peer did not return a certificate", "pki switch", "pki agent"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate", "pki switch", "agent"),
        ("certificate verify failed: certificate has expired", "renew switch-NAME", "renew agent-NAME"),
        ("certificate verify failed: certificate revoked", "was revoked", "was revoked"),
        ("certificate verify failed: unable to get certificate CRL", "pki crl", "pki crl"),
        ("certificate verify failed: unsupported certificate purpose", "not a client's", "not a client's"),
        ("[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca", "third file of `ovs-vsctl set-ssl`", "ca-file"),
        ("[SSL: UNSUPPORTED_PROTOCOL] unsupported protocol", "TLS 1.2 or later", "TLS 1.2 or later"),
        ("something new", "the TLS handshake failed: something new", "something new"),
    ],
)
def test_a_failed_handshake_is_told_with_what_to_do(text: str, switch: str, agent: str) -> None:
    assert switch in explained(text, switches=True)
    assert agent in explained(text, switches=False)


def test_an_unknown_failure_is_none() -> None:
    assert tls_fault("connection reset by peer") is None


def test_the_same_refusal_is_one_line_a_minute() -> None:
    grumbles = Grumbles(most=2)
    assert grumbles.line("192.0.2.1", "why", 0.0) == "from 192.0.2.1: refused: why"
    assert grumbles.line("192.0.2.1", "why", 30.0) is None
    assert grumbles.line("192.0.2.1", "other", 30.0) is not None
    assert grumbles.line("192.0.2.1", "why", 61.0) == "from 192.0.2.1: refused: why (1 more since the last line)"
    for n in range(100):
        grumbles.line(f"192.0.2.{n}", "why", 62.0)
    assert len(grumbles._said) == 2


# --- the connection


Client = Callable[[ssl.SSLSocket], Any]


@contextlib.contextmanager
def connected(home: Path, client: Client, *, everyone: bool = True) -> Iterator[SecureSocket]:
    """A server's end over a real socket pair, after the handshake; the client runs in a thread."""
    pki = Pki(home / "pki")
    if not (home / "pki/switch-br0.crt").exists():
        pki.issue(switch_wish(["br0"]))
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.settimeout(10)
    context = ssl.create_default_context(cafile=pki.ca)
    context.load_cert_chain(home / "pki/switch-br0.crt", home / "pki/switch-br0.key")

    def run() -> None:
        with theirs, context.wrap_socket(theirs, server_hostname="127.0.0.1") as secure:
            client(secure)

    thread = threading.Thread(target=run)
    thread.start()
    connection = SecureSocket(ours, server_tls(files(home), everyone=everyone).context)
    try:
        connection.handshake()
        yield connection
    finally:
        connection.close()
        thread.join(10)
    assert not thread.is_alive()


def test_bytes_pass_whole_both_ways_and_the_end_is_an_end(home: Path) -> None:
    data = os.urandom(300_000)
    heard: list[bytes] = []

    def client(secure: ssl.SSLSocket) -> None:
        secure.sendall(data)
        while part := secure.recv(4096):
            heard.append(part)
        heard.append(b"end")

    with connected(home, client) as connection:
        assert connection.peer is not None
        assert "urn:lark:bridge:br0" in connection.peer.names
        got = b""
        while len(got) < len(data):
            got += connection.recv(8192)
        assert got == data
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(8) == b""  # the client has left, orderly
    assert b"".join(heard) == data + b"end"


def test_a_broken_record_is_an_error_that_no_loop_takes_for_a_time_limit(home: Path) -> None:
    gate = threading.Event()

    def client(secure: ssl.SSLSocket) -> None:
        os.write(secure.fileno(), b"\x17\x03\x03\x00\x20" + b"x" * 32)
        gate.wait(10)

    with connected(home, client) as connection:
        try:
            with pytest.raises(ConnectionError, match="broken TLS") as caught:
                connection.recv(8)
            assert not isinstance(caught.value, (ssl.SSLError, TimeoutError))
            assert connection.recv(8) == b""
        finally:
            gate.set()


def test_nothing_is_read_as_plain_after_a_shutdown(home: Path) -> None:
    """The standard library's TLS socket gives ciphertext then."""
    told, gate = threading.Event(), threading.Event()

    def client(secure: ssl.SSLSocket) -> None:
        told.wait(10)
        secure.sendall(b"\x05\x00\x00\x08\x00\x00\x00\x00")
        gate.wait(10)

    with connected(home, client) as connection:
        connection.shutdown(socket.SHUT_WR)
        told.set()
        assert connection.recv(8) == b"\x05\x00\x00\x08\x00\x00\x00\x00"
        gate.set()


def test_a_time_limit_of_a_read_is_one(home: Path) -> None:
    gate = threading.Event()
    with connected(home, lambda secure: gate.wait(10)) as connection:
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(8)
        gate.set()


def test_files_of_a_connection_are_what_http_reads_and_writes(home: Path) -> None:
    heard: list[bytes] = []

    def client(secure: ssl.SSLSocket) -> None:
        secure.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        while not b"".join(heard).endswith(b"\r\n\r\n"):
            heard.append(secure.recv(100))

    with connected(home, client) as connection:
        source, sink = connection.makefile("rb"), connection.makefile("wb", 0)
        assert source.peek(1)[:3] == b"GET"
        assert [source.readline() for _ in range(3)][-1] == b"\r\n"
        sink.writelines([b"HTTP/1.1 ", b"200 OK\r\n\r\n"])
    assert b"".join(heard) == b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize("first", [b"\x05\x00\x00\x10\x00\x00\x00\x01" + b"\x00" * 8, b"GET / HTTP/1.1\r\n\r\n", b""])
def test_plaintext_and_silence_are_handshake_errors_at_once(home: Path, first: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        theirs.sendall(first)
        if not first:
            theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(HandshakeError) as caught:
            SecureSocket(ours, server_tls(files(home), everyone=True).context).handshake()
    assert ("it ended early" if not first else "speaks no TLS") in explained(str(caught.value), switches=True)
