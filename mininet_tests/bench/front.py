"""What a request costs the controller before and after its meaning: HTTP, who asks, JSON.

    client, one kept connection ──▶ the real API and server, a real controller on fakes of store and switches

Asked are heartbeats of a node without attempts, the least that an agent ever asks for, in the clear and over TLS; and,
as the floor, the same heartbeat as a call within the process. Processor time is the server process's own.

Run: `python -m mininet_tests.bench.front [--requests 5000]`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mininet_tests.bench.churn import machine
from ryu_apps.pki import Pki, controller_wish
from ryu_apps.rest.auth import TOKEN_PREFIX, hash_token

TOKEN = f"{TOKEN_PREFIX}front"
BOOT = "3f2a9c1e-0000-4000-8000-000000000001"
BEAT = {"boot_id": BOOT, "digest": "0" * 32}
SITE = (
    "site: front\nnetwork: {ipv4: 10.20.0.0/16, gateway-ipv4: 10.20.0.1, mtu: 1500}\ninfrastructure: [192.0.2.0/24]\n"
    "nodes:\n  wn1: {bridge: br1, ipv4: 10.20.1.0/24}\nbridges:\n"
    '  br1: {datapath-id: "00000000000000a1", roles: [worker], ports: {uplink: [up0]}}\n'
)
POLICY = "mode: enforce\ndefaults: {egress: allow, ingress: deny, between-jobs: deny}\n"


def serve(place: str, secure: bool) -> None:
    """The server process: says its port, and what a heartbeat costs within it; ends on SIGTERM."""
    import logging

    from policies.language import load_policy, load_site
    from policies.wire import Heartbeat, NodeSpec
    from ryu_apps import engine
    from ryu_apps.controller import Controller
    from ryu_apps.fabric import FakeFabric
    from ryu_apps.rest.api import Api
    from ryu_apps.rest.auth import load_tokens
    from ryu_apps.store.memory import MemoryStore
    from ryu_apps.tls import TlsDoor, TlsFiles, server_tls

    home = Path(place)
    logging.basicConfig(filename=home / "log", level="INFO", format="%(asctime)s %(levelname)s %(name)s %(message)s")
    controller = Controller(load_site(home / "site.yaml"), load_policy(home / "policy.yaml"), MemoryStore())
    controller.start(FakeFabric({0xA1: "br1"}))
    node = NodeSpec(boot_id=BOOT, bridge="br1", host_addresses=["192.168.7.1"], agent_version="0")
    controller.register_node("wn1", node)
    beat = Heartbeat.model_validate(BEAT)
    began = time.process_time()
    for _ in range(2000):
        controller.heartbeat("wn1", beat)
    floor = (time.process_time() - began) / 2000
    pki = home / "pki"
    files = TlsFiles(pki / "controller.crt", pki / "controller.key", pki / "ca.crt")
    door = TlsDoor(server_tls(files, everyone=False)) if secure else None
    api = Api(controller, load_tokens(home / "tokens.yaml"))
    server = engine.serve_wsgi(api, "127.0.0.1", 0, tls=door, direct=api.direct)
    engine.spawn(lambda: print(server.address[1], floor, flush=True))
    engine.wait_for_signal()


def measure(home: Path, requests: int, *, secure: bool) -> tuple[float, float, float]:
    """Microseconds of the server's processor for a request, of the call within, and until the answer (median)."""
    # The engine comes first: it makes the process green.
    code = f"from ryu_apps import engine; from mininet_tests.bench.front import serve; serve({str(home)!r}, {secure})"
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port, floor = server.stdout.readline().split()
            connection: Any = socket.create_connection(("127.0.0.1", int(port)))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if secure:
                context = ssl.create_default_context(cafile=str(home / "pki" / "ca.crt"))
                connection = context.wrap_socket(connection, server_hostname="127.0.0.1")
            with connection:
                _ask(connection, requests // 10)
                before = _cpu(server.pid)
                took = _ask(connection, requests)
                spent = _cpu(server.pid) - before
        finally:
            server.send_signal(signal.SIGTERM)
    return 1e6 * spent / requests, 1e6 * float(floor), 1e6 * took


def _cpu(pid: int) -> float:
    words = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(words[0]) / 1e9


def _ask(connection: socket.socket, requests: int) -> float:
    body = json.dumps(BEAT).encode()
    said = (
        f"POST /v1/nodes/wn1/heartbeat HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nLark-Protocol: 1\r\n"
        f"Accept: application/json\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    took = []
    for _ in range(requests):
        began = time.perf_counter()
        connection.sendall(said)
        answer = connection.recv(65536)
        took.append(time.perf_counter() - began)
        assert answer.startswith(b"HTTP/1.1 200 "), answer
    return statistics.median(took)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a request costs the controller beside its meaning.")
    parser.add_argument("--requests", type=int, default=5000)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        (home / "site.yaml").write_text(SITE)
        (home / "policy.yaml").write_text(POLICY)
        (home / "tokens.yaml").write_text(f"tokens:\n- {{sha256: {hash_token(TOKEN)}, role: agent, node: wn1}}\n")
        pki = Pki(home / "pki")
        pki.init("front")
        pki.issue(controller_wish(["127.0.0.1"]))
        print(f"{machine()}; load {os.getloadavg()[0]:.1f}; {args.requests} heartbeats over one connection")
        for secure in (False, True):
            spent, floor, took = measure(home, args.requests, secure=secure)
            print(
                f"  {'TLS' if secure else 'clear'}: {spent:.0f} us of processor time a request, of it {floor:.0f} for "
                f"the call within; answered after {took:.0f} us"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
