"""Which rule leaves another nothing to decide. Pure; what cannot be told for certain counts as not covered.

Conditions are compared by their text: that one condition implies another is not looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from policies import expressions
from policies.model import Classify, Expose, Grant, Network, NodeMode, Policy, PortRange, Service, node_matches

_Rule = TypeVar("_Rule")


def shadowed(rules: Sequence[_Rule], covers: Callable[[_Rule, _Rule], bool]) -> Iterator[tuple[_Rule, _Rule]]:
    """Of rules that are looked at in order: (rule, the earlier one that leaves it nothing)."""
    for position, rule in enumerate(rules):
        earlier = next((r for r in rules[:position] if covers(r, rule)), None)
        if earlier is not None:
            yield rule, earlier


def redundant(rules: Sequence[_Rule], covers: Callable[[_Rule, _Rule], bool]) -> Iterator[tuple[_Rule, _Rule]]:
    """Of rules that add up: (rule, one that gives all that it gives). Of two alike the later is named."""
    for position, rule in enumerate(rules):
        for other_position, other in enumerate(rules):
            if other_position == position or not covers(other, rule):
                continue
            if other_position < position or not covers(rule, other):
                yield rule, other
                break


def everybody(policy: Policy, group: str | None) -> bool:
    """Whether a rule for this group is for every job."""
    if group is None:
        return True
    condition = policy.groups[group].condition
    return not condition.references and expressions.Scope({}, {}).evaluate(condition.text) is True


def group_covers(policy: Policy, wide: str | None, narrow: str | None) -> bool:
    """Whether every job of `narrow` is one of `wide`; None: every job."""
    if everybody(policy, wide) or wide == narrow:
        return True
    if wide is None or narrow is None:
        return False
    return _plain(policy.groups[wide].condition.text) == _plain(policy.groups[narrow].condition.text)


def _plain(text: str) -> str:
    return " ".join(text.split())


def nodes_cover(wide: tuple[str, ...], narrow: tuple[str, ...]) -> bool:
    """Whether every node that fits `narrow` fits `wide`."""
    positive = [p for p in wide if not p.startswith("!")]
    negative = {p for p in wide if p.startswith("!")}
    if not wide or wide == narrow or (positive == ["*"] and not negative):
        return True
    asked = [p for p in narrow if not p.startswith("!")]
    if not asked or not negative <= {p for p in narrow if p.startswith("!")}:
        return bool(asked) and all(not set(p) & set("*?[") and node_matches(wide, p) for p in asked)
    return all(p in positive or not positive or (not set(p) & set("*?[") and node_matches(wide, p)) for p in asked)


def ports_cover(wide: Sequence[PortRange], narrow: Sequence[PortRange]) -> bool:
    """Whether every port of `narrow` is one of `wide`."""
    for ports in narrow:
        following = ports.first
        for other in sorted(p for p in wide if p.protocol is ports.protocol):
            if other.first <= following <= other.last:
                following = other.last + 1
        if following <= ports.last:
            return False
    return True


def networks_cover(wide: Sequence[Network], narrow: Sequence[Network]) -> bool:
    """Whether every network of `narrow` lies in one of `wide`."""
    return all(any(_within(net, other) for other in wide) for net in narrow)


def _within(net: Network, other: Network) -> bool:
    return net.version == other.version and net.subnet_of(other)  # type: ignore[arg-type]


def grant_covers(policy: Policy, wide: Grant, narrow: Grant) -> bool:
    return (
        wide.service == narrow.service
        and group_covers(policy, wide.group, narrow.group)
        and narrow.during <= wide.during
        and nodes_cover(wide.nodes, narrow.nodes)
        and (narrow.audit or not wide.audit)
    )


def expose_covers(policy: Policy, wide: Expose, narrow: Expose) -> bool:
    return (
        wide.to_slice == narrow.to_slice
        and group_covers(policy, wide.group, narrow.group)
        and ports_cover(wide.ports, narrow.ports)
        and networks_cover(wide.networks, narrow.networks)
    )


def classify_covers(policy: Policy, wide: Classify, narrow: Classify) -> bool:
    return group_covers(policy, wide.group, narrow.group) and (
        wide.service is None
        or (
            narrow.service is not None
            and service_covers(policy.services[wide.service], policy.services[narrow.service])
        )
    )


def service_covers(wide: Service, narrow: Service) -> bool:
    """Whether every packet for `narrow` is one for `wide`."""
    hosts = not wide.hosts or (bool(narrow.hosts) and set(narrow.hosts) <= set(wide.hosts))
    return hosts and ports_cover(wide.ports, narrow.ports)


def mode_covers(wide: NodeMode, narrow: NodeMode) -> bool:
    return nodes_cover(wide.nodes, narrow.nodes)
