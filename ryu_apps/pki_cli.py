"""`lark-controller pki`: the private CA from the command line, and what to type next.

Invariants: every command that writes has --dry-run and overwrites nothing without --force; keys are never printed; what
to do next is printed with the names and addresses at hand, ready to be pasted.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import click

from policies.language import PolicyError, load_site
from policies.model import Site
from ryu_apps.config import Config, ConfigError, load_config
from ryu_apps.pki import (
    CA_DAYS,
    DAYS,
    Entry,
    Kind,
    Pki,
    PkiError,
    Wish,
    agent_wish,
    controller_wish,
    switch_wish,
)
from ryu_apps.stop import Stop

HOME = Path("/etc/lark/pki")
THEIR_PKI = "/etc/openvswitch"
"""Where the switch's files go: Open vSwitch reads them as root."""

dir_option = click.option(
    "--dir", "home", default=HOME, show_default=True, type=click.Path(file_okay=False, path_type=Path), help="The CA's."
)
force_option = click.option("--force", is_flag=True, help="Replace what is there (it moves to superseded/).")
dry_option = click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
days_option = click.option("--days", type=click.IntRange(1, 3650), default=DAYS, show_default=True, help="Validity.")
config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="controller.yaml: addresses and names are taken from it and checked against it.",
)


@click.group()
def pki() -> None:
    """A private CA for OpenFlow over TLS and for the HTTPS API.

    In order: `init`, `controller`, then `switch` for each Open vSwitch and, if you like, `agent` for each node. Each
    command prints what to type next, and where. Keep the directory on the controller's machine, or on one that is
    switched off: whoever has ca.key can be any switch.
    """


@pki.command()
@dir_option
@click.option("--site", default="this site", help="A name for people, in the CA's subject.")
@click.option("--days", type=click.IntRange(1, 36500), default=CA_DAYS, show_default=True, help="Validity.")
@force_option
@dry_option
def init(home: Path, site: str, days: int, force: bool, dry_run: bool) -> None:
    """Make the CA: ca.key, ca.crt and an empty revocation list."""
    with _faults():
        _wrote(Pki(home).init(site, days, force=force, dry_run=dry_run), dry_run)
    _next(
        "the controller's certificate, with the addresses that agents connect to:",
        [f"lark-controller pki controller --dir {home} --address 192.0.2.1 --address lark.example.org"],
    )


@pki.command()
@dir_option
@config_option
@click.option("--address", "hosts", multiple=True, help="IP address or host name that clients use; repeat it.")
@days_option
@force_option
@dry_option
def controller(
    home: Path, config_path: Path | None, hosts: tuple[str, ...], days: int, force: bool, dry_run: bool
) -> None:
    """Make the controller's certificate, for both of its listeners."""
    with _faults():
        config = None if config_path is None else load_config(config_path)
        listening = [] if config is None else [config.openflow[0], config.api[0]]
        found = [host for host in listening if not ipaddress.ip_address(host).is_unspecified]
        wish = controller_wish([*hosts, *found])
        _wrote(Pki(home).issue(wish, days, force=force, dry_run=dry_run), dry_run)
    _after_controller(home, wish)


@pki.command()
@click.argument("bridges", nargs=-1, required=True)
@dir_option
@config_option
@days_option
@force_option
@dry_option
def switch(
    bridges: tuple[str, ...], home: Path, config_path: Path | None, days: int, force: bool, dry_run: bool
) -> None:
    """Make the certificate of one Open vSwitch. BRIDGES: its bridges under control, as in site.yaml, all of them."""
    with _faults():
        config, site = _site(config_path)
        _known("bridge", bridges, None if site is None else site.bridges)
        wish = switch_wish(bridges)
        _wrote(Pki(home).issue(wish, days, force=force, dry_run=dry_run), dry_run)
        _after_switch(home, wish, config)


@pki.command()
@click.argument("node")
@dir_option
@config_option
@days_option
@force_option
@dry_option
def agent(node: str, home: Path, config_path: Path | None, days: int, force: bool, dry_run: bool) -> None:
    """Make the certificate of a node's agent, in place of a bearer token or beside it. NODE: as in site.yaml."""
    with _faults():
        config, site = _site(config_path)
        _known("node", [node], None if site is None else site.nodes)
        wish = agent_wish(node)
        _wrote(Pki(home).issue(wish, days, force=force, dry_run=dry_run), dry_run)
        _after_agent(home, wish, config)


@pki.command()
@click.argument("names", nargs=-1)
@click.option("--within", type=click.IntRange(0), help="Every certificate that ends within so many days.")
@dir_option
@config_option
@days_option
@dry_option
def renew(
    names: tuple[str, ...], within: int | None, home: Path, config_path: Path | None, days: int, dry_run: bool
) -> None:
    """Make certificates anew, with new keys and the same names. NAMES: as `list` shows them.

    The old ones stay valid until they end (`revoke` ends them at once) and move to superseded/.
    """
    if bool(names) == (within is not None):
        raise click.UsageError("give NAMES or --within DAYS")
    with _faults():
        authority, (config, _) = Pki(home), _site(config_path)
        if within is not None:
            limit = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=within)
            names = tuple(e.name for e in authority.entries() if e.name != "ca" and e.not_after <= limit)
            if not names:
                click.echo(f"nothing ends within {within} days")
        wishes = [authority.wish_of(name) for name in names]
        for wish in wishes:
            _wrote(authority.issue(wish, days, force=True, dry_run=dry_run), dry_run)
            _after(home, wish, config)


@pki.command()
@click.argument("name")
@dir_option
@dry_option
def revoke(name: str, home: Path, dry_run: bool) -> None:
    """Withdraw a certificate (a stolen key, a node that is gone), and those that it replaced. NAME: as `list` shows it.

    It holds where `crl` in controller.yaml names revoked.pem, from the next SIGHUP on, for new connections.
    """
    with _faults():
        authority = Pki(home)
        serials = authority.revoke(name, dry_run=dry_run)
    click.echo(f"{'would revoke' if dry_run else 'revoked'} {name}: {', '.join(f'{one:x}' for one in serials) or '-'}")
    _next(
        "in controller.yaml, in `tls:` of openflow and api; then restart, which also ends what is connected now:",
        [f"crl: {authority.crl}", "systemctl restart lark-controller"],
    )


@pki.command()
@dir_option
def crl(home: Path) -> None:
    """Sign the revocation list anew."""
    with _faults():
        Pki(home).write_crl()
        click.echo(f"wrote {Pki(home).crl}")


@pki.command(name="list")
@dir_option
@click.option(
    "--within", type=click.IntRange(0), help="Only what ends within so many days; exit code 1 if there is any."
)
def list_(home: Path, within: int | None) -> None:
    """List the certificates, with their end and their names."""
    now = datetime.datetime.now(datetime.UTC)
    with _faults():
        entries = Pki(home).entries()
    if not entries:
        raise Stop(f"{home} holds no CA; make one: lark-controller pki init --dir {home}", 2)
    shown = [one for one in entries if within is None or one.not_after - now <= datetime.timedelta(days=within)]
    for one in shown:
        click.echo(f"{one.name:24} {_ending(one, now):34} {', '.join(one.alternatives)}".rstrip())
    if within is not None and shown:
        raise Stop(f"{len(shown)} of {len(entries)} end within {within} days; lark-controller pki renew NAME", 1)


def _ending(one: Entry, now: datetime.datetime) -> str:
    if one.revoked:
        return "revoked"
    days = (one.not_after - now).days
    return f"{one.not_after:%Y-%m-%d} " + ("EXPIRED" if one.not_after <= now else f"({days} days left)")


# --- what to type next ------------------------------------------------------------------------------------------------


def _after(home: Path, wish: Wish, config: Config | None) -> None:
    match wish.kind:
        case Kind.CONTROLLER:
            _after_controller(home, wish)
        case Kind.SWITCH:
            _after_switch(home, wish, config)
        case Kind.AGENT:
            _after_agent(home, wish, config)


def _after_controller(home: Path, wish: Wish) -> None:
    host = _bracketed(wish.alternatives[0])
    tls = [
        f"    certificate: {home}/controller.crt",
        f"    private-key: {home}/controller.key",
        f"    ca: {home}/ca.crt",
        f"    crl: {home}/revoked.pem",
    ]
    _next(
        "in controller.yaml (`allow-plaintext` goes away):",
        [
            "openflow:",
            f'  listen: "{host}:6653"',
            "  tls: &tls",
            *tls,
            "api:",
            f'  listen: "{host}:8443"',
            "  tls: *tls",
        ],
    )
    _next(
        "the controller's user reads its key; then let it read all this (a renewed certificate: `reload` is enough):",
        [
            f"chown lark: {home}/controller.key",
            "lark-controller check --config /etc/lark/controller.yaml",
            "systemctl restart lark-controller",
        ],
    )
    _next(
        "larkctl and curl:",
        [
            f"larkctl --url https://{host}:8443 --ca-file {home}/ca.crt --token-file /etc/lark/admin.token bridges",
            f"curl --cacert {home}/ca.crt https://{host}:8443/healthz",
        ],
    )
    _next(
        "a certificate for each Open vSwitch, with its bridges as in site.yaml:",
        [f"lark-controller pki switch --dir {home} wn1-br"],
    )


def _after_switch(home: Path, wish: Wish, config: Config | None) -> None:
    bridges = [name.rpartition(":")[2] for name in wish.alternatives]
    host, port = _controller(home, config)
    key, certificate = f"{THEIR_PKI}/{wish.name}.key", f"{THEIR_PKI}/{wish.name}.crt"
    _next(
        f"copy to the machine of {', '.join(bridges)} (the key must reach nobody else), then delete the key here:",
        [
            f"scp -p {home}/{wish.name}.key {home}/{wish.name}.crt {home}/ca.crt root@MACHINE:{THEIR_PKI}/",
            f"rm {home}/{wish.name}.key",
        ],
    )
    _next(
        "on that machine, as root (a renewed certificate: copying is enough, Open vSwitch sees it by itself):",
        [
            f"ovs-vsctl set-ssl {key} {certificate} {THEIR_PKI}/ca.crt",
            *(
                f"ovs-vsctl set-controller {bridge} ssl:{host}:{port} -- set controller {bridge} max_backoff=1000"
                for bridge in bridges
            ),
        ],
    )


def _after_agent(home: Path, wish: Wish, config: Config | None) -> None:
    host, _ = _controller(home, config)
    _next(
        f"copy to node {_last(wish)} (the key must reach nobody else), then delete the key here:",
        [
            f"scp -p {home}/{wish.name}.key {home}/{wish.name}.crt {home}/ca.crt root@MACHINE:/etc/lark/",
            f"rm {home}/{wish.name}.key",
        ],
    )
    _next(
        "in that node's agent.yaml (`token-file` may stay or go; `allow-plaintext` goes); then restart lark-agent "
        "(a renewed certificate: `systemctl reload lark-agent`):",
        [
            "controller:",
            f'  urls: ["https://{host}:{8443 if config is None else config.api[1]}"]',
            "  ca-file: ca.crt",
            f"  certificate-file: {wish.name}.crt",
            f"  private-key-file: {wish.name}.key",
        ],
    )


def _controller(home: Path, config: Config | None) -> tuple[str, int]:
    """Where the controller is, as far as known here: Open vSwitch wants an address rather than a name."""
    if config is not None and not ipaddress.ip_address(config.openflow[0]).is_unspecified:
        return _bracketed(config.openflow[0]), config.openflow[1]
    port = 6653 if config is None else config.openflow[1]
    try:
        hosts = Pki(home).wish_of("controller").alternatives
    except PkiError:
        return "CONTROLLER", port
    for host in hosts:
        with contextlib.suppress(ValueError):
            return _bracketed(str(ipaddress.ip_address(host))), port
    return hosts[0] if hosts else "CONTROLLER", port


def _last(wish: Wish) -> str:
    return wish.alternatives[0].rpartition(":")[2]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _next(what: str, lines: Iterable[str]) -> None:
    click.echo(f"\nNext, {what}")
    for line in lines:
        click.echo(f"    {line}")


def _wrote(paths: Iterable[Path], dry_run: bool) -> None:
    for path in paths:
        secret = " (mode 0600, secret)" if path.suffix == ".key" else ""
        click.echo(f"{'would write' if dry_run else 'wrote'} {path}{secret}")


# --- faults -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except (PkiError, ConfigError, PolicyError) as fault:
        raise Stop(str(fault), 2) from fault
    except OSError as fault:
        raise Stop(f"{fault.filename}: {fault.strerror}", 1) from fault


def _site(config_path: Path | None) -> tuple[Config | None, Site | None]:
    if config_path is None:
        return None, None
    config = load_config(config_path)
    return config, load_site(config.site)


def _known(word: str, names: Iterable[str], known: Mapping[str, object] | None) -> None:
    for name in names:
        if known is not None and name not in known:
            raise PkiError(f"site.yaml has no {word} {name}; it has: {', '.join(sorted(known)) or 'none'}")
