"""Puts the rulesets of `ovs_agent.plan` into the kernel, each whole in one transaction, and reads their counters."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable

from ovs_agent import command, plan
from ovs_agent.config import GuardSection
from ovs_agent.errors import AgentError

log = logging.getLogger(__name__)


async def install(guard: GuardSection) -> None:
    """Replace the ruleset. Raises AgentError: without it no port may be plugged, so the agent must not go on."""
    text = plan.nft_ruleset(guard.uids, guard.loopback, guard.pool)
    try:
        await command.run(["nft", "-f", "-"], stdin=text)
    except command.CommandError as e:
        raise AgentError(f"the drop rules cannot be installed ({e}); is the nf_tables kernel module there?") from e
    log.info(
        "packet guard in place: uids=%s loopback=%s pool=%s",
        ",".join(f"{a}-{b}" for a, b in guard.uids) or "none",
        ",".join(f"{p}/{n}" for p, n in guard.loopback) or "none",
        ",".join(f"{a} tcp/{n}" for a, n in guard.pool) or "none",
    )


async def addressed() -> frozenset[str]:
    """Devices that somebody gave an address, link-local ones aside."""
    return plan.addressed_devices(await command.run(["ip", "-j", "address", "show", "scope", "global"]))


async def guard_ports(bridge: str, ports: Iterable[str]) -> None:
    """Keep the host's kernel off these ports (`plan.nft_port_guard`). Raises AgentError."""
    try:
        await command.run(["nft", "-f", "-"], stdin=plan.nft_port_guard(bridge, ports))
    except command.CommandError as e:
        raise AgentError(f"the drop rules for its ports cannot be installed ({e})", f"bridge {bridge}") from e


async def ports_guarded(bridge: str) -> bool:
    return await command.succeeds(["nft", "list", "table", "inet", plan.nft_port_guard_table(bridge)])


async def remove() -> None:
    await command.run(["nft", "-f", "-"], stdin=plan.nft_removal())


async def present() -> bool:
    return await command.succeeds(["nft", "list", "table", "inet", plan.NFT_TABLE])


async def counters() -> dict[str, int]:
    """Packets by counter name; empty when the table is not there."""
    try:
        text = await command.run(["nft", "-j", "list", "counters", "table", "inet", plan.NFT_TABLE])
    except command.CommandError:
        return {}
    found = (entry["counter"] for entry in json.loads(text)["nftables"] if "counter" in entry)
    return {c["name"]: int(c["packets"]) for c in found}


TABLES = (("inet", plan.NFT_TABLE), ("arp", plan.NFT_TABLE))


async def in_force() -> str:
    """Our tables as the kernel has them, without counts."""
    return "".join([await command.run(["nft", "-s", "list", "table", *table]) for table in TABLES])


async def canonical(rules: str) -> str:
    """What `in_force` would say of these rules: they are put in force in a network namespace that nobody sees."""
    script = "nft -f - && " + " && ".join(f"nft -s list table {family} {name}" for family, name in TABLES)
    return await command.run(["unshare", "--net", "sh", "-c", script], stdin=rules)
