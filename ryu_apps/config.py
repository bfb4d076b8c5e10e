"""`controller.yaml`: read once, validated as a whole, every error with file and line.

Invariants: unknown and repeated keys are errors; paths come out absolute (relative ones are relative to the file they
stand in); nothing is opened or started here. `docs/operations.md` lists the keys.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from policies.wire import NAME_PATTERN
from ryu_apps.store.jsonrpc import Tls, parse_remote
from ryu_apps.store.opening import StoreSettings
from ryu_apps.tls import TlsFiles

MAX_FILE_BYTES = 1024 * 1024


class ConfigError(Exception):
    """A configuration file was not accepted. The text has one `file:line: message` line for each fault."""


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of `192.0.2.1:8080` or `[2001:db8::1]:8080`. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is not ADDRESS:PORT; write for example 192.0.2.1:8080 or [2001:db8::1]:8080")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # A name could lead anywhere tomorrow; what is listened on decides who may reach us.
        raise ValueError(f"{host!r} is not an IP address; listen on an address, not on a name") from None
    return host, int(port)


def _listen(text: str) -> str:
    parse_listen(text)
    return text


Listen = Annotated[str, AfterValidator(_listen)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TlsSection(_Section):
    """Files in PEM; `lark-controller pki` makes them. Who connects must descend from `ca`."""

    certificate: Text
    private_key: Text = Field(alias="private-key")
    ca: Text
    crl: Text | None = None

    def files(self, home: Path) -> TlsFiles:
        crl = None if self.crl is None else home / self.crl
        return TlsFiles(home / self.certificate, home / self.private_key, home / self.ca, crl)


class OpenflowSection(_Section):
    listen: Listen
    tls: TlsSection | None = None


class ApiSection(_Section):
    listen: Listen
    tls: TlsSection | None = None
    allow_plaintext: bool = Field(default=False, alias="allow-plaintext")

    @property
    def loopback(self) -> bool:
        return ipaddress.ip_address(parse_listen(self.listen)[0]).is_loopback


def _server(text: str) -> str:
    parse_remote(text)
    return text


Server = Annotated[str, AfterValidator(_server)]


class StoreTlsSection(_Section):
    """Files in PEM, of the store's own CA."""

    certificate: Text
    private_key: Text = Field(alias="private-key")
    ca: Text

    def files(self, home: Path) -> Tls:
        return Tls(home / self.private_key, home / self.certificate, home / self.ca)


class StoreSection(_Section):
    mode: Literal["embedded", "cluster"] = "embedded"
    servers: Annotated[list[Server], Field(min_length=1, max_length=15)] | None = None
    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    tls: StoreTlsSection | None = None
    allow_plaintext: bool = Field(default=False, alias="allow-plaintext")

    @model_validator(mode="after")
    def _consistent(self) -> StoreSection:
        if self.mode == "embedded":
            if self.servers or self.name or self.tls:
                raise ValueError("`servers`, `name` and `tls` go with `mode: cluster`")
            return self
        if not self.servers:
            raise ValueError("`mode: cluster` needs `servers`, each as ssl:ADDRESS:PORT")
        remotes = [parse_remote(text) for text in self.servers]
        if len(set(self.servers)) < len(self.servers):
            raise ValueError("`servers` names a server twice")
        if any(remote.kind == "ssl" for remote in remotes) and self.tls is None:
            raise ValueError("ssl: servers need `tls`, with `certificate`, `private-key` and `ca`")
        open_ones = [remote.text for remote in remotes if remote.kind == "tcp" and not remote.loopback]
        if open_ones and not self.allow_plaintext:
            raise ValueError(
                f"whoever reaches {open_ones[0]} can write the store, and so rule the network; use ssl:, or say "
                "`allow-plaintext: true` if only a management network that no job and no user reaches can see it"
            )
        return self


class ControllerFile(_Section):
    """The keys of `controller.yaml`."""

    site: Text
    policy: Text
    state_dir: Text = Field(alias="state-dir")
    openflow: OpenflowSection
    api: ApiSection
    tokens: Text
    deadline: Annotated[float, Field(strict=False, ge=0.1, le=300)] = 10.0
    lease: Annotated[int, Field(ge=5, le=86400)] = 60
    count_every: Annotated[float, Field(strict=False, ge=0, le=3600, alias="count-every")] = 15.0
    engine: Literal["os-ken", "ryu"] = "os-ken"
    store: StoreSection = StoreSection()


class Config:
    """A validated `controller.yaml` with absolute paths."""

    def __init__(self, path: Path, file: ControllerFile) -> None:
        home = path.resolve().parent
        self.path = path
        self.site = home / file.site
        self.policy = home / file.policy
        self.state_dir = home / file.state_dir
        self.tokens = home / file.tokens
        self.openflow = parse_listen(file.openflow.listen)
        self.api = parse_listen(file.api.listen)
        self.deadline = file.deadline
        self.lease = file.lease
        self.count_every = file.count_every
        self.engine: str = file.engine
        self.openflow_tls = file.openflow.tls.files(home) if file.openflow.tls is not None else None
        self.api_tls = file.api.tls.files(home) if file.api.tls is not None else None
        self.plaintext_warning = not file.api.loopback and self.api_tls is None
        self.store = _store_settings(home, file)


def _store_settings(home: Path, file: ControllerFile) -> StoreSettings:
    section = file.store
    return StoreSettings(
        state_dir=home / file.state_dir,
        servers=tuple(section.servers or ()),
        name=section.name or socket.gethostname(),
        api=file.api.listen,
        tls=None if section.tls is None else section.tls.files(home),
    )


def load_config(path: Path) -> Config:
    """Raises ConfigError."""
    data, lines = read_yaml(path)
    file = validate(path, data, lines, ControllerFile)
    if file.api.tls is not None and file.api.allow_plaintext:
        raise ConfigError(
            f"{path.name}:{line_of(lines, ('api', 'allow-plaintext'))}: `api` has tls and allow-plaintext; drop the "
            "latter: with tls nothing is served in the clear"
        )
    if not file.api.loopback and file.api.tls is None and not file.api.allow_plaintext:
        raise ConfigError(
            f"{path.name}:{line_of(lines, ('api', 'listen'))}: the API would carry tokens in the clear on "
            f"{file.api.listen}; give `api` its `tls` (lark-controller pki makes the files), listen on a loopback "
            "address, or say `allow-plaintext: true` if only a management network that no job reaches can see it"
        )
    return Config(path, file)


Lines = Mapping[tuple[str | int, ...], int]
Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path) -> tuple[Any, Lines]:
    """Plain data of a YAML file and the line of each key. Raises ConfigError."""
    try:
        raw = path.read_bytes()
    except OSError as problem:
        raise ConfigError(f"{path}: cannot be read: {problem.strerror}; check path and permissions") from problem
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path.name}:1: larger than {MAX_FILE_BYTES} bytes; is this the right file?")
    yaml = YAML(typ="rt")
    yaml.allow_duplicate_keys = False
    try:
        data = yaml.load(raw.decode("utf-8"))
    except UnicodeDecodeError as problem:
        raise ConfigError(f"{path.name}:1: not UTF-8 text; save the file as UTF-8") from problem
    except MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        words = " ".join(str(problem.problem or problem.context or "not YAML").split())
        raise ConfigError(f"{path.name}:{mark.line + 1 if mark else 1}: {words}") from problem
    except (YAMLError, RecursionError, ValueError) as problem:
        raise ConfigError(f"{path.name}:1: not YAML: {problem}") from problem
    lines: dict[tuple[str | int, ...], int] = {}

    def index(where: tuple[str | int, ...], value: Any) -> None:
        if len(where) > 16:
            raise ConfigError(f"{path.name}:{lines.get(where[:-1], 1)}: nested too deeply; flatten it")
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in items:
            marks: Any = value
            place = marks.lc.key(key) if isinstance(value, dict) else marks.lc.item(key)
            lines[(*where, key)] = place[0] + 1
            index((*where, key), item)

    index((), data)
    return ({} if data is None else data), lines


def line_of(lines: Lines, where: tuple[str | int, ...]) -> int:
    """The line of a key, or of the nearest one around it."""
    while where:
        if where in lines:
            return lines[where]
        where = where[:-1]
    return 1


def validate(path: Path, data: Any, lines: Lines, model: type[Model]) -> Model:
    """Raises ConfigError that names each fault with its line."""
    try:
        return model.model_validate(_plain(data))
    except ValidationError as problem:
        faults = []
        for error in problem.errors(include_url=False):
            where = tuple(error["loc"])
            name = ".".join(str(part) for part in where) or "the file"
            if error["type"] == "extra_forbidden":
                said = f"`{name}` is not a key of this file; is it misspelt?"
            elif error["type"] == "missing":
                said = f"`{name}` must be given"
            else:
                said = f"`{name}`: {error['msg'].removeprefix('Value error, ')}"
            faults.append((line_of(lines, where), said))
        raise ConfigError("\n".join(f"{path.name}:{line}: {said}" for line, said in sorted(faults))) from problem


def _plain(value: Any) -> Any:
    """The loader's own containers and scalars as Python's: strict validation looks at the exact type."""
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return value if isinstance(value, bool) else kind(value)
    return value
