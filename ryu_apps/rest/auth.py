"""Bearer tokens and client certificates: who calls, and what that role may do.

The tokens file keeps only SHA-256 hashes; a token has 256 random bits, so a plain hash is as good as a slow one.
Invariants: an unknown, malformed or missing token is nobody; tokens themselves are never compared, only their hashes; a
token of role `agent` belongs to exactly one node, one of role `border` to exactly one bridge. A certificate of the CA
makes its holder the agent of the node, or of the border, that it names, and nothing else; who shows a certificate and a
token must be the same by both.
"""

from __future__ import annotations

import enum
import fcntl
import hashlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from ruamel.yaml import YAML

from policies.wire import Name
from ryu_apps.config import ConfigError, line_of, read_yaml, validate
from ryu_apps.refusals import Refused, Slug
from ryu_apps.tls import Peer

TOKEN_PREFIX = "lark_"
"""So that a token found in a log or a repository is recognised as one."""


class TokenRole(enum.StrEnum):
    AGENT = "agent"
    BORDER = "border"
    VIEWER = "viewer"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls. `node` is set for agents only, `bridge` for borders only."""

    role: TokenRole
    node: str | None = None
    bridge: str | None = None

    def __str__(self) -> str:
        name = self.node or self.bridge
        return self.role.value if name is None else f"{self.role.value}:{name}"


class _TokenEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    role: Annotated[TokenRole, Field(strict=False)]
    node: Name | None = None
    bridge: Name | None = None


class _TokensFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    tokens: list[_TokenEntry]


class Tokens:
    """The principals by token hash."""

    def __init__(self, principals: dict[str, Principal]) -> None:
        self._principals = principals

    def __len__(self) -> int:
        return len(self._principals)

    @property
    def nodes(self) -> frozenset[str]:
        return frozenset(p.node for p in self._principals.values() if p.node is not None)

    @property
    def bridges(self) -> frozenset[str]:
        return frozenset(p.bridge for p in self._principals.values() if p.bridge is not None)

    def who(self, authorization: str | None) -> Principal | None:
        """The caller behind an `Authorization` header, or None."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > 512:
            return None
        # A plain look-up, one for any number of nodes: how long it takes tells of the hash, and who could choose what a
        # SHA-256 begins with would not need that.
        return self._principals.get(hash_token(token.strip()))


def caller(
    tokens: Tokens,
    agents: Mapping[str, str],
    authorization: str | None,
    peer: Peer | None,
    borders: Mapping[str, str] = MappingProxyType({}),
) -> Principal:
    """Who calls, by token, by certificate, or by both alike. `agents`: nodes by the name in a certificate; `borders`:
    bridges of role border likewise.

    Raises Refused.
    """
    by_token = tokens.who(authorization)
    if authorization is not None and by_token is None:
        raise Refused(
            Slug.UNAUTHORISED,
            "this token is not known; make one with `lark-controller token`, and let the controller read it (SIGHUP)",
        )
    by_certificate = None
    if peer is not None:
        found = {Principal(TokenRole.AGENT, agents[name]) for name in peer.names if name in agents}
        found |= {Principal(TokenRole.BORDER, bridge=borders[name]) for name in peer.names if name in borders}
        if len(found) > 1:
            several = ", ".join(sorted(p.node or str(p) for p in found))
            raise Refused(
                Slug.UNAUTHORISED,
                f"the client certificate stands for several nodes ({several}); give each agent its own",
            )
        if found:
            (by_certificate,) = found
        elif by_token is None:
            raise Refused(
                Slug.UNAUTHORISED,
                f"the client certificate is for {peer}, which is no agent of site.yaml; make one with "
                "`lark-controller pki agent NODE`, or send a bearer token",
            )
    if by_token is not None and by_certificate is not None and by_token != by_certificate:
        raise Refused(
            Slug.UNAUTHORISED,
            f"the token says {by_token} and the client certificate {by_certificate}; send one, or two that agree",
        )
    one = by_token or by_certificate
    if one is None:
        raise Refused(
            Slug.UNAUTHORISED,
            "send `Authorization: Bearer TOKEN` with a token that `lark-controller token` made, or (over TLS) a client "
            "certificate that `lark-controller pki agent` made",
        )
    return one


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def load_tokens(path: Path) -> Tokens:
    """Raises ConfigError."""
    if not path.exists():
        raise ConfigError(
            f"{path}: there is no tokens file; make one with: lark-controller token --tokens {path} --role admin"
        )
    data, lines = read_yaml(path)
    file = validate(path, data, lines, _TokensFile)
    principals: dict[str, Principal] = {}
    for position, entry in enumerate(file.tokens):
        where = f"{path.name}:{line_of(lines, ('tokens', position))}"
        if (entry.role is TokenRole.AGENT) != (entry.node is not None):
            raise ConfigError(f"{where}: a token of role agent needs a node, and no other role has one")
        if (entry.role is TokenRole.BORDER) != (entry.bridge is not None):
            raise ConfigError(f"{where}: a token of role border needs a bridge, and no other role has one")
        if entry.sha256 in principals:
            raise ConfigError(f"{where}: this token stands here twice; remove one")
        principals[entry.sha256] = Principal(entry.role, entry.node, entry.bridge)
    return Tokens(principals)


def _open_lock(path: Path, owner: os.stat_result | None) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        lock = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)
    if owner is not None:
        os.fchown(lock, owner.st_uid, owner.st_gid)
    return lock


def new_token(path: Path, role: TokenRole, node: str | None, bridge: str | None = None) -> str:
    """Make a token, add its hash to the tokens file (made if it is not there), return the token. Raises ConfigError."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The lock is beside the file because the file itself is replaced.
    # Root leaves file and lock to the controller's user, who could not read the one nor take the other otherwise.
    owner = (path if path.exists() else path.parent).stat() if os.geteuid() == 0 else None
    lock = _open_lock(path.with_name(f".{path.name}.lock"), owner)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        data: dict[str, list[dict[str, str]]] = {"tokens": []}
        if path.exists():
            load_tokens(path)  # never add to a file that would be refused
            data = read_yaml(path)[0]
        entry = {"sha256": hash_token(token), "role": role.value}
        whose = {"node": node, "bridge": bridge}
        data["tokens"].append(entry | {key: name for key, name in whose.items() if name is not None})
        new = path.with_name(f".{path.name}.new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
            YAML(typ="rt").dump(data, out)
            if owner is not None:
                os.fchown(out.fileno(), owner.st_uid, owner.st_gid)
            out.flush()
            os.fsync(out.fileno())
        new.replace(path)
    finally:
        os.close(lock)
    return token
