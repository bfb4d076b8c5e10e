"""Host classes and port classes: the sets of services that share a host or a port, each with a number for a register.

A packet's host gives its host class, its port a port class, both together its service (of services that share a host no
two have the same port): hosts and ports never multiply. A host or port of one service only has that service's number
for its class; one of several has `SEVERAL` plus the position of their set among all such sets of this policy and site
(of ports: of this bridge). A later fragment, which shows no port, stands for its class as a whole: its SERVICE
register holds the class with the `registers.LATER` bit.

What is computed here follows from the policy, the site and the services' numbers alone. It is kept for the last few of
them, found again by identity, because every identity asks: whoever changes one of these in place breaks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from policies.model import Address, Bridge, Policy, PortRange, Role, Service, Site, World
from ryu_apps.openflow.cookies import Feature, cookie
from ryu_apps.openflow.flows import Cookie
from ryu_apps.openflow.pipeline import Fixed
from ryu_apps.openflow.same import Same
from ryu_apps.openflow.spans import spans

SEVERAL = 0x4000_0000
LATER_BIT = 0x8000_0000
_KEPT = 64


@dataclass(frozen=True, slots=True)
class HostClass:
    """Hosts that have the same services, and their number."""

    number: int
    services: tuple[Service, ...]
    hosts: tuple[Address, ...]

    @property
    def later(self) -> int:
        """The SERVICE register of a later fragment from or to one of the hosts."""
        return LATER_BIT | self.number

    @property
    def versions(self) -> tuple[int, ...]:
        """The families that the hosts have addresses of."""
        return tuple(sorted({h.version for h in self.hosts}))

    @property
    def names(self) -> frozenset[str]:
        return frozenset(s.name for s in self.services)

    @property
    def cookie(self) -> Cookie:
        if len(self.services) == 1:
            return cookie(Feature.SERVICE, self.number)
        return cookie(Feature.HOSTS, self.number)


@dataclass(frozen=True, slots=True)
class PortClass:
    """Ports that the same services have, in the families that these services have hosts of."""

    number: int
    services: tuple[Service, ...]
    ports: tuple[PortRange, ...]
    versions: tuple[int, ...]

    @property
    def cookie(self) -> Cookie:
        """One service's, or, of several, that of the pipeline."""
        if len(self.services) == 1:
            return cookie(Feature.SERVICE, self.number)
        return cookie(Feature.PIPELINE, Fixed.SHARED_PORTS)


@dataclass(frozen=True, slots=True)
class HostClasses:
    """All host classes of a bridge; `of_service`: those that a service has a part in; `ports`: its port classes.

    `pairs`: for every host class and port class that have a service in common, that service.
    """

    classes: tuple[HostClass, ...]
    of_service: Mapping[str, tuple[HostClass, ...]]
    ports: tuple[PortClass, ...]
    pairs: tuple[tuple[HostClass, PortClass, Service], ...]


def host_classes(world: World, spec: Bridge) -> HostClasses:
    """The host classes of the services that a bridge closes: a worker bridge all protected ones, a gate its own."""
    guards = None if Role.WORKER in spec.roles else spec.guards
    return _classes(Same(world.policy), Same(world.site), Same(world.service_numbers), guards)


def shared_hosts(world: World, number: int) -> tuple[str, ...]:
    """The services whose shared hosts have this number; none: nobody's."""
    sets = _shared_sets(Same(world.policy), Same(world.site))
    return next((names for names, position in sets.items() if SEVERAL + position == number), ())


@lru_cache(maxsize=_KEPT)
def _classes(policy: Same, site: Same, numbers: Same, guards: tuple[str, ...] | None) -> HostClasses:
    assert isinstance(policy.value, Policy)
    assert isinstance(numbers.value, Mapping)
    services = policy.value.services
    shared = _shared_sets(policy, site)
    found = []
    for names, hosts in sorted(_sets(services, _protected(services) if guards is None else guards).items()):
        number = numbers.value[names[0]] if len(names) == 1 else SEVERAL + shared[names]
        found.append(HostClass(number, tuple(services[name] for name in names), tuple(hosts)))
    of_service: dict[str, list[HostClass]] = {}
    for one in found:
        for service in one.services:
            of_service.setdefault(service.name, []).append(one)
    ports = _port_classes([s for name, s in services.items() if name in of_service], numbers.value)
    with_port: dict[str, list[PortClass]] = {}
    for one_ in ports:
        for service in one_.services:
            with_port.setdefault(service.name, []).append(one_)
    pairs = [
        (hosts_, ports_, services[name])
        for name in sorted(of_service)
        for hosts_ in of_service[name]
        for ports_ in with_port.get(name, ())
    ]
    return HostClasses(
        tuple(found), {name: tuple(classes) for name, classes in of_service.items()}, ports, tuple(pairs)
    )


def _port_classes(services: Sequence[Service], numbers: Mapping[str, int]) -> tuple[PortClass, ...]:
    """Ports by the set of services that have them."""
    having: dict[tuple[str, ...], list[PortRange]] = {}
    for ports, positions in spans(services):
        having.setdefault(tuple(sorted(services[n].name for n in positions)), []).append(ports)
    by_name = {service.name: service for service in services}
    shared = {names: position for position, names in enumerate(sorted(n for n in having if len(n) > 1))}
    found = []
    for names, ports_ in sorted(having.items()):
        number = numbers[names[0]] if len(names) == 1 else SEVERAL + shared[names]
        versions = sorted({host.version for name in names for host in by_name[name].hosts})
        found.append(PortClass(number, tuple(by_name[n] for n in names), tuple(ports_), tuple(versions)))
    return tuple(found)


@lru_cache(maxsize=_KEPT)
def _shared_sets(policy: Same, site: Same) -> Mapping[tuple[str, ...], int]:
    """Every set of several services that share a host on some bridge, numbered in sorted order."""
    assert isinstance(policy.value, Policy)
    assert isinstance(site.value, Site)
    services = policy.value.services
    closing = {tuple(b.guards) for b in site.value.bridges.values() if Role.GATE in b.roles} | {_protected(services)}
    found = {names for names_ in closing for names in _sets(services, names_) if len(names) > 1}
    return {names: position for position, names in enumerate(sorted(found))}


def _protected(services: Mapping[str, Service]) -> tuple[str, ...]:
    return tuple(s.name for s in services.values() if s.protected)


def _sets(services: Mapping[str, Service], names: Sequence[str]) -> dict[tuple[str, ...], list[Address]]:
    """Hosts by the set of services, of those named, that they have."""
    having: dict[Address, list[str]] = {}
    for name in sorted(set(names)):
        for address in dict.fromkeys(services[name].hosts):
            having.setdefault(address, []).append(name)
    sets: dict[tuple[str, ...], list[Address]] = {}
    for address, theirs in having.items():
        sets.setdefault(tuple(theirs), []).append(address)
    return sets
