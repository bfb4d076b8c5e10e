"""`python -m mininet_tests.fakeswitch`: a fleet of fake switches until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import resource
import signal
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

from mininet_tests.fakeswitch.fleet import Fleet
from mininet_tests.fakeswitch.switch import FakeSwitch
from mininet_tests.fakeswitch.tables import SETTINGS, FlowMod
from ovs_agent import plan

LANE_COOKIE = 0x4C01_0000_0000_0000
NO_MATCH = bytes((0, 1, 0, 4, 0, 0, 0, 0))
GOTO_1 = bytes((0, 1, 0, 8, 1, 0, 0, 0))


def prepare(switch: FakeSwitch) -> None:
    """Leave the switch as `lark-agent prepare-bridge` leaves a bridge: described, and with a host lane in table 0."""
    switch.description = plan.PREPARED
    lane = FlowMod(LANE_COOKIE, 0, 0, 0, 1, 0xFFFFFFFF, 0xFFFFFFFF, SETTINGS.pack(0, 0, 0, 0), NO_MATCH, GOTO_1)
    switch.tables.apply(lane)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mininet_tests.fakeswitch",
        description="Fake OpenFlow 1.3 and 1.4 switches: real messages, no packets (docs/fakeswitch.md).",
        epilog="In names of ports, {n} is the switch's number (from 0), {dpid} its datapath id, {port} the port's.",
    )
    parser.add_argument("--controller", required=True, metavar="tcp:ADDRESS:PORT", help="or ssl:ADDRESS:PORT")
    parser.add_argument("--count", type=int, default=1, help="how many switches (default 1)")
    parser.add_argument("--first-dpid", type=lambda text: int(text, 0), default=1, help="the others follow (default 1)")
    parser.add_argument("--port", action="append", default=[], metavar="NAME=NUMBER", help="a port of each; repeat it")
    parser.add_argument("--ports", metavar="FIRST-LAST", help="ports of each, named by --port-name")
    parser.add_argument("--port-name", default="p{port}", metavar="NAME", help="default p{port}")
    parser.add_argument("--lark", action="store_true", help="as `lark-agent prepare-bridge` leaves a bridge")
    parser.add_argument("--capacity", type=int, help="flows before a switch's tables are full")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds by which each answer comes late")
    parser.add_argument("--source", action="append", default=[], help="address to connect from; several: in turn")
    parser.add_argument("--control", type=Path, help="unix socket on which questions are answered")
    for name, what in (("certificate", "of the switches"), ("private-key", "its key"), ("ca", "of the controller")):
        parser.add_argument(f"--{name}", type=Path, help=f"with ssl: {what}, PEM")
    args = parser.parse_args(argv)
    kind, _, rest = args.controller.partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("tcp", "ssl") or not host or not port.isdecimal():
        parser.error(f"--controller {args.controller}: write tcp:ADDRESS:PORT or ssl:ADDRESS:PORT")
    if kind == "ssl" and not (args.certificate and args.private_key and args.ca):
        parser.error("ssl: needs --certificate, --private-key and --ca")
    args.secure, args.address = kind == "ssl", (host.strip("[]"), int(port))
    if args.ports and not all(part.isdecimal() for part in args.ports.split("-", 1)):
        parser.error(f"--ports {args.ports}: write FIRST-LAST")
    if bad := [one for one in args.port if not one.rpartition("=")[2].isdecimal() or not one.rpartition("=")[0]]:
        parser.error(f"--port {bad[0]}: write NAME=NUMBER")
    return args


def _switch(args: argparse.Namespace, n: int) -> FakeSwitch:
    dpid = args.first_dpid + n
    switch = FakeSwitch(dpid)
    wanted = [(int(number), name) for name, _, number in (one.rpartition("=") for one in args.port)]
    if args.ports:
        first, _, last = args.ports.partition("-")
        wanted += [(number, args.port_name) for number in range(int(first), int(last or first) + 1)]
    switch.ports = {number: name.format(n=n, dpid=dpid, port=number) for number, name in wanted}
    switch.tables.capacity = args.capacity
    if args.lark:
        prepare(switch)
    return switch


async def _run(args: argparse.Namespace) -> None:
    tls = None
    if args.secure:
        tls = ssl.create_default_context(cafile=args.ca)
        tls.check_hostname = False
        tls.load_cert_chain(args.certificate, args.private_key)
    fleet = Fleet([_switch(args, n) for n in range(args.count)], args.address, tls=tls, sources=args.source)
    for place in fleet.places:
        place.delay = args.delay
    if args.control is not None:
        await fleet.control(args.control)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    fleet.start()
    print(f"ready: {args.count} switches", flush=True)
    await ended.wait()
    await fleet.stop()
    print(f"ended: {sum(place.switch.flow_mods for place in fleet.places)} flow-mods", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    args = _options(argv)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < args.count + 64:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(args.count + 64, hard), hard))
    asyncio.run(_run(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
