"""Nodes, what their agents say of them, and their leases.

Invariants: a lease is ended only by the controller that the node's agent talks to (`elsewhere`: those that talk to
another one), and never because this process stood still or turned clients away.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import replace

from policies.language import attributes_read
from policies.wire import Heartbeat, HeartbeatAnswer, NodeGrant, NodeSpec, NodeStatus
from ryu_apps.life.checks import host_addresses, nobodys_host
from ryu_apps.life.departures import Departures
from ryu_apps.life.present import Present
from ryu_apps.life.records import Records
from ryu_apps.life.telling import Telling
from ryu_apps.life.times import STANDSTILL, STORE_PATIENCE, Times
from ryu_apps.refusals import Refused, Slug
from ryu_apps.store.store import NodeRow, PutNode, StoreError

LOG = logging.getLogger("lark.controller")


class Nodes:
    """`leases`: when, by the clock, the lease of each node ends whose agent talks to this controller."""

    def __init__(
        self, present: Present, telling: Telling, records: Records, departures: Departures, times: Times
    ) -> None:
        self._present = present
        self._telling = telling
        self._records = records
        self._departures = departures
        self._times = times
        self.leases: dict[str, float] = {}
        self.elsewhere: dict[str, str] = {}
        self._held = False
        self._last_look = 0.0

    def begin(self, others: Collection[str]) -> None:
        """Everything has been read back: every lease begins anew. `others`: controllers that live besides this one."""
        self._last_look = self._times.clock()
        nodes = self._present.nodes
        self.elsewhere = {name: row.controller for name, row in nodes.items() if row.controller in others}
        self.leases = {name: self._times.until(self._times.lease) for name in nodes if name not in self.elsewhere}

    # --- what agents ask ----------------------------------------------------------------------------------------------

    def register(self, name: str, spec: NodeSpec) -> NodeGrant:
        """An agent says what its node is; it is told what the node may use. Raises Refused."""
        present = self._present
        with present.lock:
            site = present.world.site
            node = site.nodes.get(name)
            if node is None:
                raise Refused(Slug.NO_SUCH_NODE, f"node {name} is not in site.yaml; declare it under nodes")
            if spec.bridge != node.bridge:
                raise Refused(
                    Slug.UNKNOWN_BRIDGE,
                    f"node {name} has bridge {node.bridge} in site.yaml, the agent says {spec.bridge}",
                )
            addresses = host_addresses(spec)
            for address in addresses:
                why = nobodys_host(present.world, address)
                if why:
                    raise Refused(
                        Slug.BAD_ADDRESS,
                        f"node {name} says that {address} is an address of its host, but that is {why}: take it off "
                        "the host, or mend site.yaml or the policy",
                    )
            old = present.nodes.get(name)
            row = NodeRow(name, spec, self._records.name or "")
        if old != row:
            try:
                self._records.store.write([PutNode(row)]).wait(self._times.until())
            except StoreError as problem:
                raise Refused(Slug.NOT_REALISED, f"node {name}: {problem}; try again", {"bridges": []}) from problem
        with present.lock:
            present.nodes[name] = row
            self.elsewhere.pop(name, None)
            self.renew(name)
            if present.set_host_addresses(name, addresses):
                # They close addresses on the node's own bridge only. Not waited for: these flows go before those of any
                # job registered from now on.
                self._telling.follow_base([node.bridge])
        if old is not None and old.spec.boot_id != spec.boot_id:
            with present.lock:
                lost = sorted(present.on_node[name].ids)
            LOG.warning("node=%s has rebooted (boot id %s): %d attempts are over", name, spec.boot_id, len(lost))
            self._departures.end_quietly(lost)
        elif old != row:
            LOG.info("node=%s registered: bridge=%s, %d host addresses", name, spec.bridge, len(addresses))
        network = site.network
        return NodeGrant(
            node=name,
            ipv4_range=str(node.ipv4),
            ipv4_prefix_length=network.ipv4.prefixlen,
            ipv4_gateway=_text(network.gateway_ipv4),
            ipv6_prefix=_text(node.ipv6),
            ipv6_prefix_length=network.ipv6.prefixlen if network.ipv6 is not None and node.ipv6 is not None else None,
            ipv6_gateway=_text(network.gateway_ipv6) if node.ipv6 is not None else None,
            mtu=network.mtu,
            lease=self._times.lease,
            attributes=sorted(attributes_read(present.world.policy)),
        )

    def heartbeat(self, name: str, beat: Heartbeat) -> HeartbeatAnswer:
        """Renew a node's lease and compare what both sides know. Raises Refused."""
        present, lease = self._present, self._times.lease
        if name not in present.nodes:
            self._records.catch_up()
        self._serve(name)
        with present.lock:
            digest = present.on_node[name].digest if name in present.on_node else ""
        if beat.attempts is not None or beat.digest != digest:
            # An agent must not be told to drop what another controller registered a moment ago.
            self._records.catch_up()
        with present.lock:
            node = present.nodes.get(name)
            if node is None:
                raise Refused(Slug.NO_SUCH_NODE, f"node {name} has not registered; PUT /v1/nodes/{name} first")
            if node.spec.boot_id != beat.boot_id:
                raise Refused(
                    Slug.CONFLICT,
                    f"node {name} registered with boot id {node.spec.boot_id}; PUT /v1/nodes/{name} again",
                )
            self.renew(name)
            policy = present.world.policy.digest
            agreed = beat.attempts is None and beat.digest == present.on_node[name].digest
            mine = set() if agreed else set(present.on_node[name].ids)
        if agreed:
            return HeartbeatAnswer(lease=lease, policy=policy, drop=[], gone=[])
        if beat.attempts is None:
            LOG.info("node=%s knows other attempts than the controller: it is asked which", name)
            return HeartbeatAnswer(lease=lease, policy=policy, agree=False, drop=[], gone=[])
        theirs = set(beat.attempts)
        return HeartbeatAnswer(lease=lease, policy=policy, drop=sorted(theirs - mine), gone=sorted(mine - theirs))

    def statuses(self) -> list[NodeStatus]:
        """Every node of the site, registered or not."""
        present = self._present
        with present.lock:
            now = self._times.clock()
            found = []
            for name in sorted(present.world.site.nodes):
                row = present.nodes.get(name)
                # Of a node whose agent talks to another controller, that one knows.
                unknown = row is None or name in self.elsewhere
                left = None if unknown else max(0.0, round(self.leases.get(name, now) - now, 1))
                found.append(
                    NodeStatus(
                        node=name,
                        spec=row.spec if row else None,
                        attempts=len(present.on_node[name].ids),
                        lease_left=left,
                    )
                )
            return found

    # --- leases; the caller has the lock ------------------------------------------------------------------------------

    def renew(self, name: str) -> None:
        self.leases[name] = self._times.until(self._times.lease)

    def look(self, now: float, turned_away: float | None) -> tuple[list[str], list[str]]:
        """Nodes whose lease is over from now on, and the attempts of all whose lease is over."""
        # If this process stood still (a suspended machine), the heartbeats of that time are still unread.
        stood_still = now - self._last_look
        self._last_look = now
        if stood_still > STANDSTILL:
            LOG.warning("the controller stood still for %.0f s: leases are prolonged by that", stood_still)
            self.leases = {name: end + stood_still for name, end in self.leases.items()}
        if turned_away is not None:
            self._hold(turned_away + self._times.lease, now)
        over = [name for name, end in self.leases.items() if end <= now]
        for name in over:
            del self.leases[name]
        ended = set(self._present.nodes) - set(self.leases) - set(self.elsewhere)
        return over, [id for name in ended for id in sorted(self._present.on_node[name].ids)]

    def _hold(self, until: float, now: float) -> None:
        """Whoever is silent when clients are turned away may not be dead."""
        if now < until and not self._held:
            LOG.warning("clients are being turned away: no lease ends within %d s of that", self._times.lease)
        self._held = now < until
        self.leases = {name: max(end, until) for name, end in self.leases.items()}

    # --- several controllers ------------------------------------------------------------------------------------------

    def hear(self, row: NodeRow) -> None:
        """Another controller has written this row; the caller has the lock."""
        present = self._present
        if row.name not in present.world.site.nodes:
            return
        present.nodes[row.name] = row
        if row.controller not in ("", self._records.name):
            self.elsewhere[row.name] = row.controller
            self.leases.pop(row.name, None)
        if present.set_host_addresses(row.name, present.believed(row)):
            self._telling.follow_base([present.world.site.nodes[row.name].bridge])

    def peer_gone(self, controller: str) -> None:
        """Whose agents talked to a controller that has ended have a full lease to find another one; has the lock."""
        orphaned: Iterable[str] = [node for node, talks_to in self.elsewhere.items() if talks_to == controller]
        for node in orphaned:
            del self.elsewhere[node]
            self.renew(node)

    def _serve(self, name: str) -> None:
        """An agent talks to this controller now: say so to the one that would end its lease otherwise."""
        node = self._present.nodes.get(name)
        if not self._records.shared or node is None or node.controller == self._records.name:
            return
        mine = replace(node, controller=self._records.name or "")
        try:
            self._records.store.write([PutNode(mine, node)]).wait(self._times.until(STORE_PATIENCE))
        except StoreError as problem:
            # It beats again; until then the other one does not end the lease before it is over.
            LOG.warning("node=%s: not noted that its agent talks to this controller: %s", name, problem)
            return
        with self._present.lock:
            self._present.nodes[name] = mine
            self.elsewhere.pop(name, None)
            self.renew(name)
        LOG.info("node=%s: its agent talks to this controller now, not to %s", name, node.controller or "none")


def _text(value: object | None) -> str | None:
    return None if value is None else str(value)
