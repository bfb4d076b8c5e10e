"""Why a packet of a job passes or not: the verdict, each step taken, and the lines of the policy that matter.

Pure; the flows that carry the verdict out are added by `ryu_apps.openflow.explain`, which may know of flows.
"""

from __future__ import annotations

from dataclasses import dataclass

from policies.model import Attempt, Decision, Mode, Place, Policy, Verdict, World, node_matches
from policies.semantics import INWARD, OUTWARD, Judgement, Packet, Step, judge


@dataclass(frozen=True, slots=True)
class Remark:
    """A line of the policy that did not help, and why: what an administrator would look at first."""

    place: Place
    text: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """`passed`: questions that did not decide, in order; `judgement.step` decided. `remarks`: rules that nearly did."""

    judgement: Judgement
    passed: tuple[Step, ...]
    remarks: tuple[Remark, ...]

    def lines(self) -> list[str]:
        """The explanation as text, one fact a line."""
        judged = self.judgement
        where = f" ({judged.place})" if judged.place else ""
        reason = f" [{judged.reason.slug}]" if judged.reason else ""
        told = [f"{judged.verdict.value}{reason}: {judged.text}{where}"]
        told += [f"  {step.value} did not decide" for step in self.passed]
        told.append(f"  {judged.step.value} decided")
        return told + [f"  {remark.place}: {remark.text}" for remark in self.remarks]


def why(world: World, packet: Packet, decision: Decision | None = None) -> Explanation:
    """Explain what happens to a packet from or to a job. Raises KeyError for an unknown sender.

    `decision`: the job's decision, if at hand; with it the explanation says why each grant of the service did not help.
    """
    judgement = judge(world, packet)
    order = OUTWARD if packet.sender is not None else INWARD
    passed = order[: order.index(judgement.step)] if judgement.step in order else ()
    remarks: list[Remark] = []
    policy = world.policy
    if policy.mode is Mode.AUDIT and judgement.verdict is Verdict.ALLOW and judgement.reason is not None:
        remarks.append(Remark(policy.mode_place, "mode: audit lets it on; enforce would not"))
    if packet.sender is not None and judgement.step is Step.SERVICE and decision is not None:
        remarks += _about_grants(policy, world.attempts[packet.sender], packet, decision)
    return Explanation(judgement, passed, tuple(remarks))


def _about_grants(policy: Policy, job: Attempt, packet: Packet, decision: Decision) -> list[Remark]:
    """Every grant of the services at the packet's destination, and what it lacks for this job."""
    wanted = {s.name for s in policy.services.values() if s.protected and packet.destination in s.hosts}
    remarks = []
    for grant in policy.grants:
        if grant.service not in wanted:
            continue
        group = policy.groups[grant.group]
        lacks = []
        if grant.group not in decision.groups:
            lacks.append(f"the job is no member ({group.place}: {group.condition.text})")
        if job.phase not in grant.during:
            during = ", ".join(sorted(grant.during))
            lacks.append(f"it holds during {during}, and this is {job.phase.value}")
        if not node_matches(grant.nodes, job.node):
            lacks.append(f"it holds on nodes {', '.join(grant.nodes)}, and this is {job.node}")
        text = f"grants {grant.service} to group {grant.group}"
        remarks.append(Remark(grant.place, f"{text}, but {'; '.join(lacks)}" if lacks else text))
    if not remarks:
        names = ", ".join(sorted(wanted))
        place = policy.services[min(wanted)].place
        remarks.append(Remark(place, f"no rule grants {names} to anybody"))
    return remarks
