"""What agent.yaml says of TLS: pairs that are not one, keys that others read, failures in words."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from ovs_agent.config import ConfigError, ControllerSection, load
from ovs_agent.controller_tls import ControllerTls, tls_words
from ryu_apps.pki import Pki, agent_wish

AGENT = """\
node: wn1
controller: {%s}
bridge: {name: br-lark}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    pki = Pki(tmp_path)
    pki.init("test")
    pki.issue(agent_wish("wn1"))
    return tmp_path


def section(home: Path, **change: Path | None) -> ControllerSection:
    keys = {"ca-file": home / "ca.crt", "certificate-file": home / "agent-wn1.crt"}
    keys["private-key-file"] = home / "agent-wn1.key"
    return ControllerSection.model_validate({"urls": ["https://c:8443"], **keys, **change})


def test_a_renewed_certificate_is_taken_and_a_broken_one_is_not(home: Path) -> None:
    tls = ControllerTls(section(home))
    assert tls.context.verify_mode is ssl.CERT_REQUIRED
    assert tls.context.check_hostname
    Pki(home).issue(agent_wish("wn1"), force=True)
    tls.renew()
    (home / "agent-wn1.key").write_text("x")
    with pytest.raises(ConfigError, match="must be one pair in PEM"):
        tls.renew()


def test_files_that_cannot_serve(home: Path) -> None:
    with pytest.raises(ConfigError, match="ca-file cannot be read: No such file"):
        ControllerTls(section(home, **{"ca-file": home / "none"}))
    with pytest.raises(ConfigError, match="must be one pair"):
        ControllerTls(section(home, **{"certificate-file": home / "ca.crt"}))
    (home / "agent-wn1.key").chmod(0o644)
    with pytest.raises(ConfigError, match="private key is open to others"):
        ControllerTls(section(home))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('urls: ["https://c:8443"], certificate-file: c', "go together; give both or neither"),
        ('urls: ["https://c:8443"]', "something must say who this is"),
        (
            'urls: ["http://127.0.0.1:8080"], certificate-file: c, private-key-file: k',
            "is not https, and only https carries certificate-file",
        ),
    ],
)
def test_an_agent_without_identity_does_not_load(tmp_path: Path, keys: str, said: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(AGENT % 'urls: ["https://c:8443"], certificate-file: c.crt, private-key-file: c.key')
    found = load(path).controller
    assert (found.certificate_file, found.private_key_file) == (tmp_path / "c.crt", tmp_path / "c.key")
    path.write_text(AGENT % keys)
    with pytest.raises(ConfigError, match=said):
        load(path)


def test_words_are_found_behind_what_was_raised() -> None:
    try:
        try:
            raise ssl.SSLError("[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca (_ssl.c:2580)")
        except ssl.SSLError as inner:
            raise OSError("") from inner
    except OSError as error:
        assert "it does not know the CA of this node's certificate" in str(tls_words(error))
    assert tls_words(OSError("no route to host")) is None
