"""`lark-controller pki`: what is written, with which mode and for whom, what is never overwritten, what is printed."""

from __future__ import annotations

import datetime
import ssl
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from ryu_apps.pki import Pki, PkiError, agent_wish, controller_wish, switch_wish
from ryu_apps.pki_cli import pki as command
from ryu_apps.stop import Stop
from tests.unit.controller.rig import POLICY, SITE


@pytest.fixture
def home(tmp_path: Path) -> Path:
    Pki(tmp_path / "pki").init("test")
    return tmp_path / "pki"


def run(*argv: str) -> Result:
    return CliRunner().invoke(command, list(argv))


def good(*argv: str) -> str:
    done = run(*argv)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def refused(*argv: str) -> str:
    done = run(*argv)
    assert isinstance(done.exception, Stop), (done.output, done.exception)
    return str(done.exception)


def usage(path: Path) -> list[x509.ObjectIdentifier]:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def contents(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in home.rglob("*") if p.is_file()}


def test_keys_are_for_their_owner_only(home: Path) -> None:
    Pki(home).issue(switch_wish(["br0"]))
    assert stat.S_IMODE(home.stat().st_mode) == 0o711  # the controller's user reads its own files
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir() if path.name != ".lock"}
    assert modes == {
        "ca.key": 0o600, "ca.crt": 0o644, "revoked.pem": 0o644, "switch-br0.key": 0o600, "switch-br0.crt": 0o644,
    }  # fmt: skip


def test_only_the_controller_is_a_server(home: Path) -> None:
    """A node's key must not pass for the controller's, to another switch or agent."""
    authority = Pki(home)
    for wish in (controller_wish(["192.0.2.1", "lark.example.org"]), switch_wish(["br0"]), agent_wish("wn1")):
        authority.issue(wish)
    assert usage(home / "controller.crt") == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert usage(home / "switch-br0.crt") == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert usage(home / "agent-wn1.crt") == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert {entry.name: entry.alternatives for entry in authority.entries()} == {
        "ca": (),
        "agent-wn1": ("urn:lark:node:wn1",),
        "controller": ("192.0.2.1", "lark.example.org"),
        "switch-br0": ("urn:lark:bridge:br0",),
    }


def test_the_library_takes_the_chain_strictly(home: Path) -> None:
    """X509_STRICT asks for every extension that RFC 5280 wants."""
    authority = Pki(home)
    authority.issue(controller_wish(["h.example.org"]))
    authority.issue(agent_wish("wn1"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(home / "controller.crt", home / "controller.key")
    server.load_verify_locations(home / "ca.crt")
    server.load_verify_locations(home / "revoked.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_CRL_CHECK_LEAF
    client = ssl.create_default_context(cafile=home / "ca.crt")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_cert_chain(home / "agent-wn1.crt", home / "agent-wn1.key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname="h.example.org")
    done: set[ssl.SSLObject] = set()
    for _ in range(6):
        for end in (theirs, ours):
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                pass
    assert done == {ours, theirs}
    found = ours.getpeercert()
    assert found is not None
    assert found["subjectAltName"] == (("URI", "urn:lark:node:wn1"),)


@pytest.mark.parametrize(
    "argv", [("init",), ("controller", "--address", "192.0.2.1"), ("switch", "br0"), ("agent", "wn1")]
)
def test_nothing_is_overwritten_unless_told_and_then_it_is_kept(home: Path, argv: tuple[str, ...]) -> None:
    where = ("--dir", str(home))
    if argv != ("init",):
        good(*argv, *where)
    before = contents(home)
    assert "is there already; --force replaces it" in refused(*argv, *where)
    assert contents(home) == before
    assert "would write" in good(*argv, *where, "--force", "--dry-run")
    assert contents(home) == before
    good(*argv, *where, "--force")
    after = contents(home)
    kept = {data for name, data in after.items() if name.startswith("superseded/")}
    changed = {data for name, data in before.items() if after[name] != data and name != "revoked.pem"}
    assert len(changed) == 2  # key and certificate
    assert changed == kept


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    said = good("init", "--dir", str(tmp_path / "new"), "--dry-run")
    assert f"would write {tmp_path}/new/ca.key" in said
    assert not (tmp_path / "new").exists()


def test_what_to_type_next_is_complete(home: Path, tmp_path: Path) -> None:
    where = ("--dir", str(home))
    said = good("controller", *where, "--address", "lark.example.org", "--address", "192.0.2.1")
    assert f"certificate: {home}/controller.crt" in said
    assert f"larkctl --url https://lark.example.org:8443 --ca-file {home}/ca.crt --token-file /" in said
    said = good("switch", *where, "wn1-br", "gate-br")
    lines = [line.strip() for line in said.splitlines()]
    at = "/etc/openvswitch"
    assert f"ovs-vsctl set-ssl {at}/switch-wn1-br.key {at}/switch-wn1-br.crt {at}/ca.crt" in lines
    for bridge in ("wn1-br", "gate-br"):
        line = f"ovs-vsctl set-controller {bridge} ssl:192.0.2.1:6653 -- set controller {bridge} max_backoff=1000"
        assert line in lines
    assert "PRIVATE" not in said
    said = good("agent", *where, "wn1")
    assert "certificate-file: agent-wn1.crt" in said
    # With the controller's own file at hand: its addresses, its site's names.
    (tmp_path / "site.yaml").write_text(SITE)
    (tmp_path / "policy.yaml").write_text(POLICY)
    config = tmp_path / "controller.yaml"
    config.write_text(
        "site: site.yaml\npolicy: policy.yaml\nstate-dir: state\ntokens: tokens.yaml\n"
        'openflow: {listen: "[2001:db8::1]:6654"}\n'
        'api: {listen: "192.0.2.7:9443", tls: {certificate: c, private-key: k, ca: a}}\n'
    )
    good("controller", *where, "--config", str(config), "--force")
    assert Pki(home).wish_of("controller").alternatives == ("2001:db8::1", "192.0.2.7")
    assert "ssl:[2001:db8::1]:6654" in good("switch", *where, "--config", str(config), "br1")
    assert "site.yaml has no bridge br9; it has: br1" in refused("switch", *where, "--config", str(config), "br9")
    assert "site.yaml has no node wn9; it has: wn1" in refused("agent", *where, "--config", str(config), "wn9")


def test_renewal_keeps_the_names_and_needs_no_key(home: Path) -> None:
    where = ("--dir", str(home))
    good("switch", *where, "br0", "br1", "--days", "20")
    good("agent", *where, "wn1")
    (home / "switch-br0.key").unlink()  # as told: it was copied and removed
    before = {entry.name: entry for entry in Pki(home).entries()}
    assert "EXPIRED" not in good("list", *where)
    assert "(19 days left)" in good("list", *where)
    assert "1 of 3 end within 30 days" in refused("list", *where, "--within", "30")
    assert "would write" in good("renew", *where, "--within", "30", "--dry-run")
    assert {entry.name: entry for entry in Pki(home).entries()} == before
    good("renew", *where, "--within", "30")
    after = {entry.name: entry for entry in Pki(home).entries()}
    assert after["agent-wn1"] == before["agent-wn1"]
    assert after["switch-br0"].alternatives == ("urn:lark:bridge:br0", "urn:lark:bridge:br1")
    assert after["switch-br0"].not_after > before["switch-br0"].not_after
    assert "nothing ends within 30 days" in good("renew", *where, "--within", "30")


def test_revocation_reaches_what_was_superseded(home: Path) -> None:
    authority = Pki(home)
    first, second = (Pki(home).issue(agent_wish("wn1"), force=True) and authority.entries() for _ in range(2))
    authority.issue(agent_wish("wn2"))
    serials = {entry.serial for found in (first, second) for entry in found if entry.name == "agent-wn1"}
    assert len(serials) == 2
    assert set(authority.revoke("agent-wn1", dry_run=True)) == serials
    assert len(x509.load_pem_x509_crl((home / "revoked.pem").read_bytes())) == 0
    assert "restart lark-controller" in good("revoke", "agent-wn1", "--dir", str(home))
    crl = x509.load_pem_x509_crl((home / "revoked.pem").read_bytes())
    assert {one.serial_number for one in crl} == serials
    ca = x509.load_pem_x509_certificate((home / "ca.crt").read_bytes())
    assert crl.next_update_utc == ca.not_valid_after_utc
    authority.issue(agent_wish("wn1"))  # the name is free again, and not revoked
    authority.revoke("agent-wn2")
    crl = x509.load_pem_x509_crl((home / "revoked.pem").read_bytes())
    assert serials < {one.serial_number for one in crl}
    assert not [entry for entry in authority.entries() if entry.revoked]


def test_no_certificate_outlives_its_ca(tmp_path: Path) -> None:
    authority = Pki(tmp_path / "pki")
    authority.init("test", days=30)
    authority.issue(agent_wish("wn1"), days=365)
    ends = {entry.not_after for entry in authority.entries()}
    assert len(ends) == 1


def test_faults_are_sentences(home: Path, tmp_path: Path) -> None:
    where = ("--dir", str(home))
    assert "holds no CA; make one: lark-controller pki init" in refused("agent", "wn1", "--dir", str(tmp_path / "none"))
    assert "holds no CA" in refused("list", "--dir", str(tmp_path / "none"))
    assert "has no certificate agent-wn9; it has: none" in refused("renew", "agent-wn9", *where)
    assert "has no certificate ../ca" in refused("revoke", "../ca", *where)
    assert "cannot be a node's name" in refused("agent", "../wn1", *where)
    assert "stands for every address" in refused("controller", "--address", "0.0.0.0", *where)
    assert "neither an IP address nor a host name" in refused("controller", "--address", "a b", *where)
    assert "give at least one --address" in refused("controller", *where)
    assert run("renew", *where).exit_code == 2
    other = tmp_path / "other"
    Pki(other).init("other")
    (home / "ca.key").write_bytes((other / "ca.key").read_bytes())
    assert "is not the key of" in refused("agent", "wn1", *where)


def test_a_ca_that_has_ended_issues_nothing(home: Path) -> None:
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=4000)
    with pytest.raises(PkiError, match="the CA itself expired"):
        Pki(home, now=later).issue(agent_wish("wn1"))
