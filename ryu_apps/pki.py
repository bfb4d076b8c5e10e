"""A private CA in a directory: who is the controller, which switch is which bridge's, which agent is which node's.

    ca.crt, ca.key    NAME.crt, NAME.key    revoked.pem    superseded/

NAME is `controller`, `switch-BRIDGE` or `agent-NODE`. Invariants: private keys are written with mode 0600, never
printed; nothing is overwritten unless `force` is said, and then what was there moves to `superseded/`; a dry run writes
nothing; switches and agents get client certificates, so that no node's key can pass for the controller's. Elliptic
curve P-256 throughout: Open vSwitch, OpenSSL 1.1.1 and later know it.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import fcntl
import ipaddress
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from policies.certificates import BRIDGE_URN, NODE_URN
from policies.wire import NAME_PATTERN

CA_DAYS = 3650
DAYS = 365
_BACKDATED = datetime.timedelta(minutes=5)
"""Clocks of a cluster differ a little."""


class PkiError(Exception):
    """What was asked for cannot be done. The text says what to do instead."""


class Kind(enum.StrEnum):
    CONTROLLER = "controller"
    SWITCH = "switch"
    AGENT = "agent"


@dataclass(frozen=True, slots=True)
class Wish:
    """A certificate to be made."""

    kind: Kind
    name: str
    """Of the files, without ending."""
    alternatives: tuple[str, ...]
    """URIs for switches and agents; host names and IP addresses for the controller."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A certificate of the directory."""

    name: str
    alternatives: tuple[str, ...]
    not_after: datetime.datetime
    serial: int
    revoked: bool = False


def controller_wish(hosts: Sequence[str]) -> Wish:
    """Raises PkiError."""
    if not hosts:
        raise PkiError("give at least one --address that agents and larkctl connect to, or --config controller.yaml")
    for host in hosts:
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(host).is_unspecified:
                raise PkiError(f"{host} stands for every address; name those that agents and larkctl connect to")
            continue
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host):
            raise PkiError(f"{host!r} is neither an IP address nor a host name")
    return Wish(Kind.CONTROLLER, "controller", tuple(dict.fromkeys(hosts)))


def switch_wish(bridges: Sequence[str]) -> Wish:
    """One switch (one Open vSwitch), with every bridge of it that is under control. Raises PkiError."""
    _names("bridge", bridges)
    return Wish(Kind.SWITCH, f"switch-{bridges[0]}", tuple(BRIDGE_URN + bridge for bridge in dict.fromkeys(bridges)))


def agent_wish(node: str) -> Wish:
    """Raises PkiError."""
    _names("node", [node])
    return Wish(Kind.AGENT, f"agent-{node}", (NODE_URN + node,))


def _names(word: str, names: Sequence[str]) -> None:
    for name in names:
        if not re.fullmatch(NAME_PATTERN, name):
            raise PkiError(f"{name!r} cannot be a {word}'s name")


class Pki:
    """The directory of a CA."""

    def __init__(self, home: Path, *, now: datetime.datetime | None = None) -> None:
        self.home = home
        self._now = (now or datetime.datetime.now(datetime.UTC)).replace(microsecond=0)

    @property
    def ca(self) -> Path:
        return self.home / "ca.crt"

    @property
    def crl(self) -> Path:
        return self.home / "revoked.pem"

    def init(self, site: str, days: int = CA_DAYS, *, force: bool = False, dry_run: bool = False) -> list[Path]:
        """Make the CA. Returns what was (or would be) written. Raises PkiError, OSError."""
        self._refuse_overwriting("ca", force, "every certificate of it would be worthless")
        if dry_run:
            return [self.home / "ca.key", self.ca, self.crl]
        if not self.home.exists():
            self.home.mkdir(parents=True)
            self.home.chmod(0o711)  # the controller's user reads its own files, and sees no others
        with self._locked():
            self._refuse_overwriting("ca", force, "every certificate of it would be worthless")
            key = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Lark CA of {site}"[:64])])
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
            certificate = (
                self._builder(name, name, key.public_key(), days)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(usage, critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
                .sign(key, hashes.SHA256())
            )
            self._supersede("ca")
            _write(self.home / "ca.key", _key_pem(key), 0o600)
            _write(self.ca, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
            self._write_crl(certificate, key, [])
        return [self.home / "ca.key", self.ca, self.crl]

    def issue(self, wish: Wish, days: int = DAYS, *, force: bool = False, dry_run: bool = False) -> list[Path]:
        """Make a key and a certificate. Returns what was (or would be) written. Raises PkiError, OSError."""
        paths = [self.home / f"{wish.name}.key", self.home / f"{wish.name}.crt"]
        ca, ca_key = self._authority()
        self._refuse_overwriting(wish.name, force, "or renew it: lark-controller pki renew " + wish.name)
        if dry_run:
            return paths
        with self._locked():
            self._refuse_overwriting(wish.name, force, "or renew it: lark-controller pki renew " + wish.name)
            key = ec.generate_private_key(ec.SECP256R1())
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"lark {wish.name}"[:64])])
            purpose = (
                ExtendedKeyUsageOID.SERVER_AUTH if wish.kind is Kind.CONTROLLER else ExtendedKeyUsageOID.CLIENT_AUTH
            )
            usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
            authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
            certificate = (
                self._builder(subject, ca.subject, key.public_key(), days, ca.not_valid_after_utc)
                .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
                .add_extension(usage, critical=True)
                .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
                .add_extension(
                    x509.SubjectAlternativeName([_general(one) for one in wish.alternatives]), critical=False
                )
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
                .add_extension(authority, critical=False)
                .sign(ca_key, hashes.SHA256())
            )
            # Who was to read the old key, the controller's user say, is to read the new one.
            owner = paths[0].stat() if paths[0].exists() else None
            self._supersede(wish.name)
            _write(paths[0], _key_pem(key), 0o600, owner)
            _write(paths[1], certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return paths

    def wish_of(self, name: str) -> Wish:
        """What a certificate of the directory was made for. Raises PkiError."""
        kind = Kind.CONTROLLER if name == "controller" else Kind(name.partition("-")[0]) if _is_leaf(name) else None
        path = self.home / f"{name}.crt"
        if kind is None or not path.exists():
            known = ", ".join(entry.name for entry in self.entries() if entry.name != "ca") or "none"
            raise PkiError(f"{self.home} has no certificate {name}; it has: {known}")
        return Wish(kind, name, _alternatives(_load(path)))

    def entries(self) -> list[Entry]:
        """The certificates that are in use, the CA's first. Raises PkiError."""
        gone = self._revoked_serials()
        names = sorted(path.stem for path in self.home.glob("*.crt") if _is_leaf(path.stem))
        found = []
        for name in ["ca", *names]:
            path = self.home / f"{name}.crt"
            if path.exists():
                one = _load(path)
                serial = one.serial_number
                found.append(Entry(name, _alternatives(one), one.not_valid_after_utc, serial, serial in gone))
        return found

    def revoke(self, name: str, *, dry_run: bool = False) -> list[int]:
        """Withdraw a certificate, and those it replaced that have not ended. Returns serials. Raises PkiError, OSError.

        The file moves to `superseded/`, so that a new one can be issued under the name.
        """
        self.wish_of(name)
        ca, ca_key = self._authority()
        gone = self._revoked_serials()
        paths = [self.home / f"{name}.crt", *(self.home / "superseded").glob(f"{name}.*.crt")]
        found = [_load(path) for path in paths]
        serials = sorted(
            {one.serial_number for one in found if one.not_valid_after_utc > self._now and one.issuer == ca.subject}
            - set(gone)
        )
        if dry_run:
            return serials
        with self._locked():
            self._write_crl(ca, ca_key, [*gone, *serials])
            self._supersede(name)
        return serials

    def write_crl(self) -> None:
        """Sign the list of revoked certificates anew. Raises PkiError, OSError."""
        ca, ca_key = self._authority()
        with self._locked():
            self._write_crl(ca, ca_key, self._revoked_serials())

    # --- inside

    def _authority(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        path = self.home / "ca.key"
        if not self.ca.exists() or not path.exists():
            raise PkiError(f"{self.home} holds no CA; make one: lark-controller pki init --dir {self.home}")
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
        except OSError as error:
            raise PkiError(f"{path}: cannot be read: {error.strerror}; run this as the CA's owner") from error
        except (ValueError, TypeError) as error:
            raise PkiError(f"{path}: is not a key in PEM without a password") from error
        ca = _load(self.ca)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != ca.public_key():
            raise PkiError(f"{path}: is not the key of {self.ca}; was a run interrupted? see {self.home}/superseded")
        if ca.not_valid_after_utc <= self._now:
            raise PkiError(f"{self.ca}: the CA itself expired on {ca.not_valid_after_utc:%Y-%m-%d}; make a new one")
        return ca, key

    def _builder(
        self,
        subject: x509.Name,
        issuer: x509.Name,
        key: ec.EllipticCurvePublicKey,
        days: int,
        latest: datetime.datetime | None = None,
    ) -> x509.CertificateBuilder:
        ends = self._now + datetime.timedelta(days=days)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - _BACKDATED)
            .not_valid_after(ends if latest is None else min(ends, latest))
        )

    def _refuse_overwriting(self, name: str, force: bool, but: str) -> None:
        for ending in ("crt", "key"):
            path = self.home / f"{name}.{ending}"
            if path.exists() and not force:
                raise PkiError(f"{path} is there already; --force replaces it ({but})")

    def _supersede(self, name: str) -> None:
        """Put what is there out of the way, under its serial number."""
        certificate = self.home / f"{name}.crt"
        mark = f"{_load(certificate).serial_number:x}" if certificate.exists() else f"{self._now:%Y%m%dT%H%M%S}"
        for ending in ("key", "crt"):
            path = self.home / f"{name}.{ending}"
            if path.exists():
                (self.home / "superseded").mkdir(mode=0o700, exist_ok=True)
                path.replace(self.home / "superseded" / f"{name}.{mark}.{ending}")

    def _revoked_serials(self) -> list[int]:
        if not self.crl.exists():
            return []
        try:
            return [one.serial_number for one in x509.load_pem_x509_crl(self.crl.read_bytes())]
        except (OSError, ValueError) as error:
            raise PkiError(f"{self.crl}: cannot be read as a revocation list ({error})") from error

    def _write_crl(self, ca: x509.Certificate, key: ec.EllipticCurvePrivateKey, serials: Sequence[int]) -> None:
        # It ends with the CA: a list that ends earlier would one day lock every switch out.
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(ca.subject)
            .last_update(self._now - _BACKDATED)
            .next_update(ca.not_valid_after_utc)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .add_extension(x509.CRLNumber(int(self._now.timestamp())), critical=False)
        )
        for serial in serials:
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(self._now).build()
            builder = builder.add_revoked_certificate(one)
        signed = builder.sign(key, hashes.SHA256())
        _write(self.crl, signed.public_bytes(serialization.Encoding.PEM), 0o644)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self.home / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _is_leaf(name: str) -> bool:
    return name == "controller" or name.startswith(("switch-", "agent-"))


def _general(name: str) -> x509.GeneralName:
    if name.startswith("urn:"):
        return x509.UniformResourceIdentifier(name)
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _alternatives(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(one.value) for one in found)


def _load(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise PkiError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise PkiError(f"{path}: is not a certificate in PEM") from error


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int, owner: os.stat_result | None = None) -> None:
    """Whole or not at all, and never readable by others on the way."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as out:
        os.fchmod(out.fileno(), mode)
        if owner is not None and os.geteuid() == 0:
            os.fchown(out.fileno(), owner.st_uid, owner.st_gid)
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    new.replace(path)
