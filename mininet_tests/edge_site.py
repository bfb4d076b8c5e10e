"""One machine with a worker bridge, a border and the controller: enough for what a job sends to cross the border."""

from __future__ import annotations

from mininet_tests.site.lark import API, ENVIRONMENT, OPENFLOW, python_command
from mininet_tests.site.namespaces import Machine, this_python

_CALL = f"""
import http.client, sys
method, path, token, body = sys.argv[1:]
one = http.client.HTTPConnection(*{API!r}.split(":"), timeout=30)
headers = {{"Authorization": "Bearer " + token, "Content-Type": "application/json"}}
one.request(method, path, body or None, headers)
answer = one.getresponse()
print(answer.status, answer.read().decode())
"""


def site_text(rate: str) -> str:
    """`site.yaml`; the line to the WAN has so much (`80 Mbit/s`)."""
    return f"""\
site: edge
network: {{ipv4: 10.20.0.0/16}}
infrastructure: [192.0.2.0/24]
nodes: {{wn1: {{bridge: br1, ipv4: 10.20.1.0/24}}}}
bridges:
  br1: {{datapath-id: "00000000000000a1", address: 192.0.2.1, roles: [worker], ports: {{uplink: [up0]}}}}
  edge-br:
    datapath-id: "00000000000000c1"
    address: 192.0.2.1
    roles: [border]
    ports: {{uplink: [lan0], wan: [{{name: wan0, rate: {rate}}}]}}
"""


def prepare_bridges(edge: Machine) -> None:
    """Both bridges, and their table 0, which a switch that restarts has lost."""
    for name, role, datapath, ports in (
        ("br1", "worker", "a1", ["up0"]),
        ("edge-br", "border", "c1", ["lan0", "wan0"]),
    ):
        argv = ["prepare-bridge", "--bridge", name, "--role", role, "--datapath-id", datapath]
        argv += ["--datapath-type", "netdev", "--controller", f"tcp:{OPENFLOW}"]
        argv += [word for port in ports for word in ("--uplink", port)]
        edge.run(python_command("ovs_agent.cli", *argv), env=ENVIRONMENT, timeout=60).need()


def ask_api(edge: Machine, token: str, method: str, path: str, body: str = "") -> None:
    """A request to the controller, which must say that all is well."""
    said = edge.run([this_python(), "-c", _CALL, method, path, token, body]).need().out
    assert said.startswith(("200", "201", "204")), said
