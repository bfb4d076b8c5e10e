"""`agent.yaml` and `border.yaml`: what an administrator tells the agent. Read once at start; an error names file, line
and remedy.

Invariants: unknown keys and repeated keys are errors; relative paths are relative to the file they stand in; a bearer
token never travels in the clear to another machine unless `allow-plaintext: true` says so.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from ovs_agent.config_errors import in_words
from ovs_agent.errors import AgentError
from policies.wire import NAME_PATTERN

M = TypeVar("M", bound=BaseModel)
MAX_UID = 2**32 - 2


class ConfigError(AgentError):
    """`agent.yaml` is wrong."""


def _node(text: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text):
        raise ValueError("a node name is letters, digits, '.', '_' and '-', at most 64, for example wn1")
    if len(text) > 48:
        raise ValueError("a node name of more than 48 characters does not fit into a namespace's name")
    return text


def _bridge(text: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text):
        raise ValueError(
            f"{text!r} is no bridge's name: letters, digits, '.', '_' and '-', at most 64, as in site.yaml; "
            "write for example border-br"
        )
    return text


def _uids(text: object) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", str(text))
    if not found:
        raise ValueError(f"{text!r} is not a uid or a range of uids; write for example 20000-29999")
    low, high = int(found[1]), int(found[2] or found[1])
    if low == 0:
        raise ValueError("uid 0 cannot be guarded: the daemons themselves run as root")
    if not low <= high <= MAX_UID:
        raise ValueError(f"{text!r} is not an ascending range of uids")
    return low, high


def _port(text: object) -> tuple[str, int]:
    found = re.fullmatch(r"(tcp|udp)/([0-9]{1,5})", str(text))
    if not found or not 1 <= int(found[2]) <= 65535:
        raise ValueError(f"{text!r} is not a port; write for example tcp/9618")
    return found[1], int(found[2])


def _daemon(text: object) -> tuple[str, int]:
    found = re.fullmatch(r"(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})", str(text))
    try:
        if found and 1 <= int(found[3]) <= 65535:
            return str(ipaddress.ip_address(found[1] or found[2])), int(found[3])
    except ValueError:
        pass
    raise ValueError(f"{text!r} is not an address and port; write for example 192.0.2.9:9618 or [2001:db8::9]:9618")


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{text!r} is not a controller's URL; write for example https://controller.example.org:8080")
    if parts.username or parts.password:
        raise ValueError("no user or password in a URL: the agent authenticates with token-file")
    return text.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this very machine, by address (names can be redirected)."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


UidRange = Annotated[tuple[int, int], BeforeValidator(_uids)]
LoopbackPort = Annotated[tuple[str, int], BeforeValidator(_port)]
PoolDaemon = Annotated[tuple[str, int], BeforeValidator(_daemon)]
Device = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,15}$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=lambda n: n.replace("_", "-"))


class ControllerSection(Section):
    urls: Annotated[list[Annotated[str, AfterValidator(_url)]], Field(min_length=1, max_length=16)]
    token_file: Path | None = None
    certificate_file: Path | None = None
    """Shown to the controller: says which node this is, in place of a token or beside it."""
    private_key_file: Path | None = None
    allow_plaintext: bool = False
    ca_file: Path | None = None
    """Certificates that the controller's own must descend from; the system's by default."""
    wait: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Seconds a job's start waits for an unreachable controller before the job is held with subcode 102."""

    @model_validator(mode="after")
    def _identity(self) -> ControllerSection:
        if (self.certificate_file is None) != (self.private_key_file is None):
            raise ValueError("certificate-file and private-key-file go together; give both or neither")
        if self.certificate_file is None and self.token_file is None:
            raise ValueError(
                "give token-file, or certificate-file and private-key-file: something must say who this is"
            )
        plain = [url for url in self.urls if url.startswith("http:")]
        if self.token_file is None and plain:
            raise ValueError(
                f"{plain[0]} is not https, and only https carries certificate-file; use https or token-file"
            )
        return self

    @model_validator(mode="after")
    def _plaintext(self) -> ControllerSection:
        if not self.allow_plaintext:
            for url in self.urls:
                if url.startswith("http:") and not is_loopback(url):
                    raise ValueError(f"{url} would send the token in the clear; use https or say allow-plaintext: true")
        return self


class BridgeSection(Section):
    name: Device
    uplink: Device | None = None
    ovsdb: Annotated[str, Field(pattern=r"^(unix:/|tcp:)\S+$")] = "unix:/run/openvswitch/db.sock"
    rundir: Path = Path("/run/openvswitch")
    datapath_type: Literal["system", "netdev"] | None = None
    """Only `prepare-bridge` uses it; the running agent asks OVSDB."""


class CondorSection(Section):
    config: Path | None = Path("/etc/condor/condor_config")
    sbin: Path = Path("/usr/sbin")
    query_timeout: Annotated[float, Field(gt=0, le=300)] = 15.0
    """Seconds for one question to the local startd."""


class PoolSection(Section):
    warm: Annotated[int, Field(ge=1, le=1024)] = 8
    """Job networks kept ready."""
    connections: Annotated[int, Field(ge=0, le=10_000_000)] = 10_000
    """Connections that one job may have at a time, those not yet timed out included; 0: no limit."""
    keep_unused: bool = True
    """A job network that its job never used goes to the next job of the same user, and is not made anew."""


class GuardSection(Section):
    uids: list[UidRange] = []
    loopback: list[LoopbackPort] = []
    pool: list[PoolDaemon] = []
    """Access points' shared ports: the starter sends a job's output there with the owner's uid."""


class FallbackSection(Section):
    siblings_hidden: bool = False
    """Declares that no process of a job's uid outside of its job can see the job: slot users, or PID namespaces."""


class ScitagsSection(Section):
    """Fireflies: what collectors are told of the connections of jobs that the policy gives a scitag."""

    collector: Annotated[list[PoolDaemon], Field(max_length=8)] = []
    """Addresses and UDP ports; none: nothing is looked at and nothing is sent."""
    look: Annotated[float, Field(ge=0.5, le=60)] = 5.0
    """Seconds between two looks; a connection that begins and ends between two is not spoken of."""
    ongoing: Annotated[float, Field(ge=2, le=3600)] = 60.0
    """Seconds between two fireflies about a connection that goes on, and between two questions to the controller
    whether the marks of running jobs have changed."""


class AgentConfig(Section):
    node: Annotated[str, AfterValidator(_node)]
    controller: ControllerSection
    bridge: BridgeSection
    condor: CondorSection = CondorSection()
    socket: Path = Path("/run/lark/agent.sock")
    state_dir: Path = Path("/var/lib/lark/agent")
    libexec: Path = Path("/usr/libexec/lark")
    pool: PoolSection = PoolSection()
    guard: GuardSection = GuardSection()
    fallback: FallbackSection = FallbackSection()
    scitags: ScitagsSection = ScitagsSection()
    file: Annotated[Path, Field(exclude=True)]
    """Where this was read from (not a key of the file)."""


class BorderConfig(Section):
    """`border.yaml`, of the daemon that keeps a border's queues."""

    bridge: Annotated[str, AfterValidator(_bridge)]
    """As in site.yaml, and as Open vSwitch has it."""
    controller: ControllerSection
    state_dir: Path = Path("/var/lib/lark/border")
    ovsdb: Annotated[str, Field(pattern=r"^(unix:/|tcp:)\S+$")] = "unix:/run/openvswitch/db.sock"
    rundir: Path = Path("/run/openvswitch")
    file: Annotated[Path, Field(exclude=True)]


_PATHS = {
    ("controller", "token-file"),
    ("controller", "ca-file"),
    ("controller", "certificate-file"),
    ("controller", "private-key-file"),
    ("bridge", "rundir"),
    ("condor", "config"),
} | {
    ("condor", "sbin"),
    ("socket",),
    ("state-dir",),
    ("libexec",),
    ("rundir",),
}


def _line_of(document: Any, path: tuple[Any, ...]) -> int:
    """Line (1-based) of the deepest part of `path` that the document has."""
    line = 1
    here = document
    for step in path:
        try:
            if isinstance(here, Mapping):
                line = here.lc.key(step)[0] + 1  # type: ignore[attr-defined]
            else:
                line = here.lc.item(step)[0] + 1
            here = here[step]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value


def load(path: Path) -> AgentConfig:
    """Read and validate `agent.yaml`. Raises ConfigError with `file:line: what; how to mend`."""
    return _load(path, AgentConfig, "node")


def load_border(path: Path) -> BorderConfig:
    """The same of `border.yaml`."""
    return _load(path, BorderConfig, "bridge")


def _load(path: Path, model: type[M], first: str) -> M:
    path = path.absolute()
    try:
        document = YAML(typ="rt").load(path.read_text())
    except FileNotFoundError:
        raise ConfigError("no such file; write one (docs/operations.md has an example) or name it", str(path)) from None
    except OSError as e:
        raise ConfigError(f"cannot be read: {e.strerror}", str(path)) from None
    except MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        said = f"not valid YAML: {e.problem}; mend this line, or the one before it"
        raise ConfigError(said, f"{path}:{mark.line + 1 if mark else 1}") from None
    except (YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"not valid YAML: {e}", f"{path}:1") from None
    if not isinstance(document, Mapping):
        raise ConfigError(
            f"a configuration is a mapping that begins with `{first}:` (docs/operations.md has an example)", f"{path}:1"
        )
    raw = _plain(document)
    if "file" in raw:
        raise ConfigError("unknown key 'file'; remove it", f"{path}:{_line_of(document, ('file',))}")
    for steps in _PATHS:
        here = raw
        for step in steps[:-1]:
            here = here.get(step) if isinstance(here, dict) else None
        if isinstance(here, dict) and isinstance(here.get(steps[-1]), str):
            here[steps[-1]] = str(path.parent / here[steps[-1]])
    try:
        return model.model_validate({**raw, "file": path})
    except ValidationError as e:
        texts = []
        for problem in e.errors():
            texts.append(f"{path}:{_line_of(document, tuple(problem['loc']))}: {in_words(problem, model)}")
        raise ConfigError("\n".join(texts)) from None


def read_token(path: Path) -> str:
    """The bearer token. Refuses a file that others may read: the token is worth the node's identity."""
    try:
        mode = path.stat().st_mode
        text = path.read_text().strip()
    except OSError as e:
        raise ConfigError(f"token file cannot be read: {e.strerror}", str(path)) from None
    if mode & 0o077:
        raise ConfigError(f"token file is open to others (mode {mode & 0o777:03o}); run chmod 600 on it", str(path))
    if not re.fullmatch(r"[\x21-\x7e]{16,512}", text):
        raise ConfigError("a token is one line of 16 to 512 printable characters without spaces", str(path))
    return text
