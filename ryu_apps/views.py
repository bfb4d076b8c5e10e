"""What the API tells of a decision and of a policy. Values in, wire messages out; nothing else is read.

A stored decision holds what flows need; which rules of `expose` and `classify` concern the job follows from its groups
and from the policy that the decision was made with.
"""

from __future__ import annotations

from collections.abc import Iterator

from policies.model import Decision, Mode, Policy, Reason, Sharing, node_matches
from policies.values import in_words
from policies.wire import ClassView, DecisionView, ExposureView, Phase, PolicyStatus, ScitagView

_DEFAULT_KEYS = {Reason.EGRESS: "egress", Reason.INGRESS: "ingress", Reason.BETWEEN_JOBS: "between-jobs"}


def decision_view(policy: Policy, node: str, identity: int, decision: Decision) -> DecisionView:
    """A decision that was made with `policy` for a job on `node`."""
    outcome = decision.outcome
    return DecisionView(
        identity=identity,
        sealed=outcome.sealed,
        groups=list(decision.groups),
        grants=sorted(outcome.services),
        slice=decision.slice,
        trail=[f"{place}: {text}" for place, text in decision.trail],
        mode=(Mode.AUDIT if policy.audits(node) else Mode.ENFORCE).value,
        audited=[] if outcome.sealed else sorted(_audited(policy, decision)),
        audited_defaults=[] if outcome.sealed else [_DEFAULT_KEYS[r] for r in sorted(policy.defaults.audited)],
        rate=decision.rate,
        share=None if decision.share is None else _share(decision.share),
        scitag=None
        if decision.scitag is None
        else ScitagView(experiment=decision.scitag[0], activity=decision.scitag[1]),
        exposes=list(_exposes(policy, decision)),
        classes=list(_classes(policy, decision)),
        lasting=_lasting(policy, node, decision),
    )


def _lasting(policy: Policy, node: str, decision: Decision) -> bool:
    """Of all that a policy says, only grants can depend on the phase."""
    return decision.outcome.sealed or not any(
        len(grant.during) < len(Phase) and grant.group in decision.groups and node_matches(grant.nodes, node)
        for grant in policy.grants
    )


def _share(share: Sharing) -> str:
    part = str(share.part) if share.part.bits is None else in_words(share.part.bits)
    return " ".join(filter(None, (part, sharers(share.name))))


def sharers(name: str) -> str:
    """With whom a share of this name is had; empty: with all jobs of the node."""
    group, per, value = name.split("/", 2)
    whose = f"of group {group}" if group else ""
    return " ".join(filter(None, (whose, f"per {per} ({value or 'jobs without it'})" if per else "")))


def policy_status(policy: Policy) -> PolicyStatus:
    return PolicyStatus(
        digest=policy.digest, mode=policy.mode.value, files=list(policy.files), audits=list(_audits(policy))
    )


def _audited(policy: Policy, decision: Decision) -> Iterator[str]:
    for service in policy.services.values():
        by_rule = service.audit or service.name in decision.outcome.audited
        if service.protected and by_rule and service.name not in decision.outcome.services:
            yield service.name


def _exposes(policy: Policy, decision: Decision) -> Iterator[ExposureView]:
    for rule in policy.exposes:
        if decision.outcome.sealed or rule.group not in decision.groups:
            continue
        to = ["slice"] if rule.to_slice else [str(network) for network in rule.networks]
        yield ExposureView(ports=[str(ports) for ports in rule.ports], to=to, rule=str(rule.place))


def _classes(policy: Policy, decision: Decision) -> Iterator[ClassView]:
    if not policy.classes or decision.outcome.sealed:
        return
    by_name = {one.name: one for one in policy.classes}
    for rule in policy.classify:
        if rule.group is not None and rule.group not in decision.groups:
            continue
        found = by_name[rule.traffic_class]
        yield ClassView(name=found.name, dscp=found.dscp, service=rule.service, rule=str(rule.place))
        if rule.service is None:
            return  # it takes all that is left
    last = policy.classes[-1]
    yield ClassView(name=last.name, dscp=last.dscp, rule=str(last.place))


def _audits(policy: Policy) -> Iterator[str]:
    if policy.mode is Mode.AUDIT:
        yield f"{policy.mode_place}: every node that no rule of node-modes names"
    for rule in policy.node_modes:
        if rule.mode is Mode.AUDIT:
            yield f"{rule.place}: nodes {', '.join(rule.nodes)}"
    for service in policy.services.values():
        if service.audit:
            yield f"{service.place}: service {service.name}"
    for grant in policy.grants:
        if grant.audit:
            yield f"{grant.place}: group {grant.group} to service {grant.service}"
    for reason in sorted(policy.defaults.audited):
        yield f"{policy.defaults.place}: defaults {_DEFAULT_KEYS[reason]}"
