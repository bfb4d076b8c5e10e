"""What this agent has made on the machine, listed and taken away. The last resort, and the judge of tests.

Invariants: only names this agent gives (`lj<n>`, `lark-<node>-…`, nft tables `lark`, flows with the host lane's cookie
are left alone: the host needs them) are touched; a dry run touches nothing.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ovs_agent import netlink, nft, plan
from ovs_agent.config import AgentConfig
from ovs_agent.errors import AgentError
from ovs_agent.ovsdb import Ovsdb
from ovs_agent.steps import Step, reached


@dataclass(frozen=True, slots=True)
class Inventory:
    ports: tuple[str, ...]
    devices: tuple[str, ...]
    namespaces: tuple[str, ...]
    nft: bool

    def __bool__(self) -> bool:
        return bool(self.ports or self.devices or self.namespaces or self.nft)

    def lines(self) -> list[str]:
        return [
            *(f"switch port {name}" for name in self.ports),
            *(f"network device {name}" for name in self.devices),
            *(f"network namespace {name}" for name in self.namespaces),
            *([f"nft tables inet/arp {plan.NFT_TABLE}"] if self.nft else []),
        ]


async def take_stock(config: AgentConfig, db: Ovsdb) -> tuple[Inventory, str]:
    """What is there, and in words what could not be looked at."""
    trouble = ""
    try:
        there = await db.bridge(config.bridge.name)
        ports = tuple(p.name for p in await db.ports(config.bridge.name)) if there else ()
    except AgentError as e:
        ports, trouble = (), str(e)
    devices = tuple(netlink.job_devices())
    namespaces = tuple(netlink.namespaces(plan.namespace_prefix(config.node)))
    return Inventory(ports, devices, namespaces, await nft.present()), trouble


async def remove(
    config: AgentConfig, db: Ovsdb, stock: Inventory, keep_ports: set[str], keep_namespaces: set[str], with_nft: bool
) -> None:
    """Take away what is in `stock` and not to be kept. Devices before rules: nothing is open in between."""
    names = [name for name in stock.namespaces if name not in keep_namespaces]
    for name in names:
        await netlink.in_thread(functools.partial(netlink.kill_inside, name))
    reached(Step.SWEEP_KILLED)
    for device in stock.devices:
        if device not in keep_ports:
            await netlink.in_thread(functools.partial(netlink.delete_device, device))
    reached(Step.SWEEP_DEVICES)
    for name in names:
        await netlink.in_thread(functools.partial(netlink.delete_namespace, name))
    reached(Step.SWEEP_NAMESPACES)
    doomed = [port for port in stock.ports if port not in keep_ports]
    for at in range(0, len(doomed), 16):
        await db.delete_ports(config.bridge.name, doomed[at : at + 16])
    reached(Step.SWEEP_PORTS)
    if with_nft and stock.nft:
        await nft.remove()
