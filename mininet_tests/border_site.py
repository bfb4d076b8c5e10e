"""A border as a site runs it: real controller, real Open vSwitch, `lark-agent border`, and senders on either side.

The controller lives on the border's own machine. `compiled=True`: the bridge's flows are the controller's; else they
are hand-made, by address, and only the queues are as on a site.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mininet_tests.border_rig import BRIDGE, BorderRig, Lane
from mininet_tests.site.lark import BorderAgent, Controller, Larkctl
from mininet_tests.site.namespaces import wait_until
from mininet_tests.site.openvswitch import widen


@dataclass(slots=True)
class BorderSite:
    rig: BorderRig
    controller: Controller
    larkctl: Larkctl
    agent: BorderAgent

    def policy(self, text: str) -> None:
        """The controller hears of another policy."""
        (self.controller.home / "policy.yaml").write_text(text, encoding="utf-8")
        assert self.controller.daemon is not None
        self.controller.daemon.send(signal.SIGHUP)

    def status(self) -> dict[str, Any]:
        """What the agent reported of its queues, as the controller tells it; empty: nothing yet."""
        found: Any = self.larkctl.json("bridges")
        return dict(found["bridges"][0]["queues"] or {})

    def wait_in_force(self) -> None:
        # A busy machine may lose frames in the switch's receive buffer, which is a fault for 30 s.
        wait_until("the queues are in force", lambda: self.status().get("in_force"), 60, 0.25)


def site_text(rate: int) -> str:
    """`site.yaml` for the rig, with a line of so many bit/s. Its lanes are no jobs'."""
    return f"""\
site: border
network: {{ipv4: 10.9.0.0/24, gateway-ipv4: 10.9.0.254, mtu: 1500}}
infrastructure: [192.0.2.0/24]
nodes: {{}}
bridges:
  {BRIDGE}:
    datapath-id: "00000000000000c1"
    roles: [border]
    ports: {{uplink: [lan0], wan: [{{name: wan0, rate: {rate} bit/s}}]}}
"""


@contextmanager
def border_site(
    lanes: Sequence[Lane], rate: int, policy: str, *, compiled: bool = False, hurry: int = 0
) -> Iterator[BorderSite]:
    """Up, with its queues in force."""
    with BorderRig(lanes, hurry=hurry, flows=not compiled) as rig:
        machine = rig.border
        machine.need("ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
        controller = Controller(machine, "os-ken")
        controller.write(site_text(rate), policy)
        agent = BorderAgent(machine, BRIDGE)
        agent.write(controller.token("border", bridge=BRIDGE))
        viewer = machine.root / "lark" / "viewer.token"
        viewer.touch(mode=0o600)
        viewer.write_text(controller.token("viewer"), encoding="utf-8")
        controller.start()
        found = BorderSite(rig, controller, Larkctl(machine, viewer), agent)
        if compiled:
            rig.hand_over()
            wait_until("the border has its flows", lambda: _converged(found), 20)
        # The switch's one send buffer is told of as too small for six queues unless it is made larger.
        rig.delays(lanes[0], 5)
        widen(machine)
        agent.start()
        found.wait_in_force()
        yield found
        if agent.daemon is not None:
            agent.stop()


def _converged(site: BorderSite) -> bool:
    told: Any = site.larkctl.json("bridges")
    return all(bridge["connected"] and bridge["converged"] for bridge in told["bridges"])
