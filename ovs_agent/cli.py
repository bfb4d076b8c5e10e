"""`lark-agent`: the command line of the node agent. Needs root for everything but `--help`."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from ovs_agent import bridge, bridge_keeper, cleanup, config, ledger, nft
from ovs_agent.bridge import BridgeWish
from ovs_agent.config import AgentConfig, BorderConfig
from ovs_agent.drain import Drain, Order
from ovs_agent.errors import AgentError
from ovs_agent.ovsdb import Ovsdb

T = TypeVar("T")
_DEVICE = re.compile(r"[A-Za-z0-9._-]{1,15}")
CONFIG = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    default=Path("/etc/lark/agent.yaml"),
    show_default=True,
    help="The agent's configuration.",
)


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except AgentError as e:
        raise click.ClickException(str(e)) from None


def _load(path: Path) -> AgentConfig:
    try:
        return config.load(path)
    except AgentError as e:
        raise click.ClickException(str(e)) from None


def _need_root() -> None:
    if os.geteuid() != 0:
        raise click.ClickException("lark-agent manages the network of this machine: run it as root")


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from ovs_agent.version import version

        click.echo(f"lark-agent {version()}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def main() -> None:
    """Gives every HTCondor job on this node a network of its own, under the controller's policy."""


@main.command()
@CONFIG
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
def run(config_file: Path, log_level: str) -> None:
    """Run the agent in the foreground until SIGTERM. Running jobs keep their networks for the lease (60 s) then.

    SIGHUP reads HTCondor's configuration (STARTD_JOB_ATTRS) and the client certificate again.
    """
    from ovs_agent.main import Agent, configure_logging  # slow imports: not for --help

    _need_root()
    loaded = _load(config_file)
    configure_logging(log_level)

    def ready(text: str) -> None:
        click.echo(text)
        sys.stdout.flush()

    async def work() -> None:
        await Agent(loaded).run(ready)

    _run(work())


def _is_controller(text: str) -> bool:
    """Open vSwitch takes anything here, and then has no controller: only what it can connect to replaces one."""
    found = re.fullmatch(r"(?:tcp|ssl):(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})", text)
    if found is None or not 1 <= int(found[3]) <= 65535:
        return False
    try:
        return bool(ipaddress.IPv6Address(found[1]) if found[1] else ipaddress.IPv4Address(found[2]))
    except ValueError:
        return False


@main.command("prepare-bridge")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Take bridge, uplink, ovsdb from here.")
@click.option("--role", type=click.Choice(["worker", "gate", "border"]), default="worker", show_default=True)
@click.option("--bridge", "name", help="Name of the bridge.")
@click.option(
    "--uplink", "uplinks", multiple=True, help="Device to plug in; repeat it. On a worker the first is the uplink."
)
@click.option("--datapath-id", help="16 hexadecimal digits, as in site.yaml.")
@click.option(
    "--datapath-type",
    type=click.Choice(["system", "netdev"]),
    help="Kernel or userspace.  [default: as it is; system for a new bridge]",
)
@click.option("--controller", "controllers", multiple=True, help="For example tcp:192.0.2.1:6653; repeat it.")
@click.option("--mac", help="MAC of the bridge itself.  [default: that of the first uplink]")
@click.option("--ovsdb", help="Address of the switch's database.  [default: unix:/run/openvswitch/db.sock]")
@click.option("--rundir", type=click.Path(path_type=Path), help="Run directory of the switch.")
@click.option("--check", is_flag=True, help="Change nothing; say what is not as it should be. Exit status 1 then.")
def prepare_bridge(
    config_file: Path | None,
    role: str,
    name: str | None,
    uplinks: tuple[str, ...],
    datapath_id: str | None,
    datapath_type: str | None,
    controllers: tuple[str, ...],
    mac: str | None,
    ovsdb: str | None,
    rundir: Path | None,
    check: bool,
) -> None:
    """Create a bridge that is closed from its first moment, or mend one. Idempotent.

    fail_mode=secure, no in-band control, datapath id and MAC are set in the creating transaction; then table 0 is
    written: on a worker the host lane, elsewhere one flow that hands everything to the controller's tables.

    Later changes by others are put right by the agent on a worker, and by `keep-bridge` on a gate or a border.
    """
    _need_root()
    loaded = _load(config_file) if config_file else None
    name = name or (loaded.bridge.name if loaded else None)
    if not name:
        raise click.UsageError("name the bridge with --bridge, or give --config")
    if not _DEVICE.fullmatch(name):
        raise click.UsageError(
            f"--bridge {name}: a bridge has a device of its name: 15 letters, digits, `.`, `_` and `-` at most"
        )
    if not uplinks and loaded and loaded.bridge.uplink:
        uplinks = (loaded.bridge.uplink,)
    if role == "worker" and not uplinks:
        raise click.UsageError(
            "a worker's bridge needs its uplink: --uplink DEVICE (or bridge.uplink in the configuration)"
        )
    if datapath_id is not None:
        try:
            datapath_id = f"{int(datapath_id, 16):016x}"
        except ValueError:
            raise click.UsageError(f"--datapath-id {datapath_id} is not hexadecimal") from None
        if len(datapath_id) > 16 or int(datapath_id, 16) == 0:
            raise click.UsageError("--datapath-id is 16 hexadecimal digits, not all zero")
    for controller in controllers:
        if not _is_controller(controller):
            raise click.UsageError(
                f"--controller {controller}: must be (tcp|ssl):ADDRESS:PORT with an IP address (IPv6 in brackets), "
                "for example tcp:192.0.2.1:6653"
            )
    remote = ovsdb or (loaded.bridge.ovsdb if loaded else "unix:/run/openvswitch/db.sock")
    place = rundir or (loaded.bridge.rundir if loaded else Path("/run/openvswitch"))
    kind = datapath_type or (loaded.bridge.datapath_type if loaded else None) or ""
    wish = BridgeWish(
        name, role, kind, datapath_id, tuple(dict.fromkeys(uplinks)), tuple(controllers), mac.lower() if mac else None
    )

    async def work() -> bool:
        db = Ovsdb(remote, place)
        done = await bridge.prepare(db, place, wish, dry=check)
        for line in done or ["as it should be" if check else "nothing to do"]:
            click.echo(f"{name}: would have {line}" if check and done else f"{name}: {line}")
        for line in await bridge.lacking(db, wish):
            click.echo(f"{name}: {line}", err=True)
        return bool(done)

    if _run(work()) and check:
        raise SystemExit(1)


@main.command("keep-bridge")
@click.option("--bridge", "name", required=True, help="Name of the bridge; prepare-bridge has made it.")
@click.option("--ovsdb", default="unix:/run/openvswitch/db.sock", show_default=True, help="The switch's database.")
@click.option(
    "--rundir",
    type=click.Path(path_type=Path),
    default=Path("/run/openvswitch"),
    show_default=True,
    help="Run directory of the switch.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
def keep_bridge(name: str, ovsdb: str, rundir: Path, log_level: str) -> None:
    """Keep a gate's or a border's bridge as prepare-bridge made it, until SIGTERM. (On a worker the agent does that.)

    fail_mode, in-band control and table 0 are put right within seconds when somebody else changes them, with a line
    in the log; table 0 is written again when ovs-vswitchd comes back; the switch looks for its controller every second.
    """
    from ovs_agent.main import configure_logging  # slow imports: not for --help

    _need_root()
    configure_logging(log_level)

    async def ready() -> None:
        click.echo(f"lark-agent keeps bridge {name}")
        sys.stdout.flush()

    async def work() -> None:
        await bridge_keeper.keep(Ovsdb(ovsdb, rundir), rundir, name, ready)

    _run(work())


@main.command()
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(config_file: Path, as_json: bool) -> None:
    """Is the agent able to serve, and which attempts does it have? Exit status 1 if it cannot serve."""
    _need_root()
    loaded = _load(config_file)

    async def work() -> None:
        answer = _ping(loaded.socket)
        records = ledger.Ledger(loaded.state_dir).load() if (loaded.state_dir / "attempts").is_dir() else []
        stock, trouble = await cleanup.take_stock(loaded, Ovsdb(loaded.bridge.ovsdb, loaded.bridge.rundir))
        counters = await nft.counters()
        order = Drain(loaded.state_dir).order()
        if as_json:
            found = {
                "ping": answer,
                "draining": order.model_dump() if order else None,
                "attempts": [ledger.dump(r) for r in records],
                "ports": stock.ports,
                "devices": stock.devices,
                "namespaces": stock.namespaces,
                "counters": counters,
                "trouble": trouble,
            }
            click.echo(json.dumps(found, indent=2))
        else:
            click.echo(f"node {loaded.node}, bridge {loaded.bridge.name}: {answer}")
            if trouble:
                click.echo(f"  {trouble}")
            click.echo(f"  {len(stock.namespaces)} namespaces, {len(stock.ports)} ports on the bridge")
            for name, packets in sorted(counters.items()):
                click.echo(f"  nft {name}: {packets} packets")
            for r in records:
                job = r.spec.job if r.spec and r.spec.job else "?"
                address = r.spec.ipv4 if r.spec else "-"
                click.echo(f"  {r.id}  job {job}  {r.state}  {r.port}  {address}{'  sealed' if r.sealed else ''}")
        if answer != "ok":
            raise SystemExit(1)

    _run(work())


@main.command()
@CONFIG
@click.option(
    "--reason", default="", help="For whoever sees it in `status`, and for owners of jobs that come too late."
)
@click.option("--wait", is_flag=True, help="Return when no attempt is left; show those that are.")
@click.option("--undo", is_flag=True, help="Take jobs again.")
def drain(config_file: Path, reason: str, wait: bool, undo: bool) -> None:
    """Take no new jobs on this node; those that run go on to their end. Survives restarts; --undo ends it.

    The node no longer advertises HasLarkNetwork. A job that was matched before is held with subcode 104, and goes
    elsewhere when the access point releases it.
    """
    _need_root()
    loaded = _load(config_file)
    if undo and (wait or reason):
        raise click.UsageError("--undo goes with neither --wait nor --reason")
    try:
        order = Drain(loaded.state_dir)
        if undo:
            click.echo(f"{loaded.node} takes jobs again" if order.take_back() else f"{loaded.node} was not drained")
            return
        given = order.order()
        if given is None or reason:
            order.give(Order(since=time.strftime("%Y-%m-%d %H:%M:%S %z"), reason=reason))
        click.echo(f"{loaded.node} takes no new jobs")
        if wait:
            _wait_until_empty(loaded)
    except AgentError as e:
        raise click.ClickException(str(e)) from None


DRAIN_PAUSE = 0.5
"""Seconds between two looks at the ledger."""


def _wait_until_empty(loaded: AgentConfig) -> None:
    """Until the ledger is empty: nothing of any job is left on the node, at the controller or in quarantine."""
    said: list[str] = []
    kept = ledger.Ledger(loaded.state_dir)
    empty = 0
    while empty < 2:  # twice: one may have begun just before the order was given
        records = kept.load()
        empty = 0 if records else empty + 1
        now = [f"  job {r.spec.job if r.spec and r.spec.job else '?'}  {r.state}  {r.id}" for r in records]
        if records and now != said:
            click.echo(f"attempts left: {len(records)}" + ("" if _runs(loaded) else " (the agent does not run)"))
            for line in now:
                click.echo(line)
        said = now
        if Drain(loaded.state_dir).order() is None:
            raise AgentError("the drain was undone meanwhile")
        time.sleep(DRAIN_PAUSE)
    click.echo(f"{loaded.node} is empty")


def _runs(loaded: AgentConfig) -> bool:
    return _ping(loaded.socket).partition(" ")[0] in ("ok", "hold")


@main.command("doctor")
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--only", multiple=True, metavar="SECTION", help="Only this section; repeat it.")
def doctor_command(config_file: Path, as_json: bool, only: tuple[str, ...]) -> None:
    """What is wrong with this node, why it matters, and what mends it. Changes nothing.

    Exit status 0: nothing; 1: warnings; 2: faults (jobs cannot run here, or something is open, lost or leaked).
    """
    from ovs_agent import doctor, findings  # slow imports: not for --help

    _need_root()
    if unknown := sorted(set(only) - set(doctor.SECTIONS)):
        raise click.UsageError(f"no section {', '.join(unknown)}; there are {', '.join(doctor.SECTIONS)}")
    try:
        loaded = config.load(config_file)
    except AgentError as e:
        click.echo(json.dumps({"node": None, "status": 2, "error": str(e)}) if as_json else f"fault: config: {e}")
        raise SystemExit(2) from None
    found = asyncio.run(doctor.examine(loaded, only))
    if as_json:
        click.echo(json.dumps(doctor.document(loaded, found), indent=2))
    else:
        for line in findings.lines(found) or [f"node {loaded.node}: nothing is wrong"]:
            click.echo(line)
    raise SystemExit(findings.exit_status(found))


def _ping(path: Path) -> str:
    from ovs_agent.doctor_controller import ping  # slow imports: not for --help

    return ping(path)


@main.command("cleanup")
@CONFIG
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
def clean_up(config_file: Path, dry_run: bool) -> None:
    """Remove every namespace, port, device and nft table this agent made, and its ledger. Kills what runs inside.

    Refused while the agent runs. The bridge and its table 0 stay: the host's own traffic goes through them.
    """
    _need_root()
    loaded = _load(config_file)

    async def work() -> None:
        if _runs(loaded):
            raise AgentError("the agent is running; stop it first", str(loaded.socket))
        db = Ovsdb(loaded.bridge.ovsdb, loaded.bridge.rundir)
        stock, trouble = await cleanup.take_stock(loaded, db)
        records = sorted((loaded.state_dir / "attempts").glob("*.json"))
        for line in [*stock.lines(), *(f"ledger record {path.name}" for path in records)] or ["nothing to remove"]:
            click.echo(f"{'would remove' if dry_run and stock else 'removing'} {line}" if stock or records else line)
        if not dry_run:
            await cleanup.remove(loaded, db, stock, set(), set(), with_nft=True)
            for path in records:
                path.unlink(missing_ok=True)
                path.with_suffix(".first").unlink(missing_ok=True)
            if not trouble:
                left, trouble = await cleanup.take_stock(loaded, db)
                if left:
                    raise AgentError("still there: " + ", ".join(left.lines()))
        if trouble:
            raise AgentError(f"the switch could not be looked at, its ports may be left: {trouble}")

    _run(work())


BORDER = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    default=Path("/etc/lark/border.yaml"),
    show_default=True,
    help="The border's configuration.",
)


def _load_border(path: Path) -> BorderConfig:
    try:
        return config.load_border(path)
    except AgentError as e:
        raise click.ClickException(str(e)) from None


@main.command("border")
@BORDER
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
def run_border(config_file: Path, log_level: str) -> None:
    """Keep the queues of a border's ports as the controller wishes them, in the foreground until SIGTERM.

    The queues stay when it ends, and are as they were last wished while no controller answers.
    """
    from ovs_agent.border import Border  # slow imports: not for --help
    from ovs_agent.main import configure_logging

    _need_root()
    loaded = _load_border(config_file)
    configure_logging(log_level)

    def ready(text: str) -> None:
        click.echo(text)
        sys.stdout.flush()

    async def work() -> None:
        await Border(loaded).run(ready)

    _run(work())


@main.command("border-cleanup")
@BORDER
def clean_border(config_file: Path) -> None:
    """Remove the queues that `lark-agent border` made, and give the ports back as they were. Refused while it runs."""
    from ovs_agent.border import Border  # slow imports: not for --help

    _need_root()
    loaded = _load_border(config_file)

    async def work() -> None:
        for line in await Border(loaded).clean_up() or ["nothing to remove"]:
            click.echo(line)

    _run(work())


if __name__ == "__main__":
    main()
