"""What another policy would change: which jobs gain or lose reach to what. Pure, and sends nothing anywhere.

A plan has two parts: what changes in the rules for everybody (services, networks, defaults, modes, classes), and what
becomes of each job. Jobs to which the same happens are one line with a count and examples, so that a plan for ten
thousand jobs can be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from policies.decide import Decider, Held
from policies.model import (
    EXPOSED_PREFIX,
    Bandwidth,
    Decision,
    Defaults,
    Mode,
    Outcome,
    Place,
    Policy,
    Reason,
    Service,
    Sharing,
    Site,
    TrafficClass,
    Verdict,
    node_matches,
)
from policies.values import in_words
from policies.wire import Phase

EXAMPLES = 3
"""How many jobs of a group are named."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the store keeps it: enough to decide anew. `label`: what people call it (123.0)."""

    id: str
    label: str
    node: str
    ad: Mapping[str, object]
    slot: Mapping[str, object]
    phase: Phase


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of some jobs. `opens`, `closes`: in words, with the line of the new policy where one says so.

    `held`: why the new policy would hold them (a running job is then sealed).
    """

    jobs: tuple[Job, ...]
    opens: tuple[str, ...]
    closes: tuple[str, ...]
    otherwise: tuple[str, ...]
    """What changes without opening or closing anything: class, rate, marks."""
    held: str | None = None

    def line(self) -> str:
        first = self.jobs[0]
        who = f"{first.label} on {first.node}"
        if len(self.jobs) > 1:
            examples = ", ".join(f"{job.label} on {job.node}" for job in self.jobs[:EXAMPLES])
            who = f"{len(self.jobs)} jobs (such as {examples})"
        if self.held is not None:
            return f"! {who}: would be held, and if running, sealed: {self.held}"
        mark = "-" if self.closes else "+" if self.opens else "~"
        return f"{mark} {who}: {', '.join((*self.closes, *self.opens, *self.otherwise))}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The difference between two policies. `changes`: what holds jobs first, then what closes, then what opens."""

    everybody: tuple[str, ...]
    changes: tuple[Change, ...]
    changed: int
    untouched: int

    def lines(self) -> list[str]:
        told = [f"~ {text}" for text in self.everybody] + [change.line() for change in self.changes]
        return [*told, f"{_jobs(self.changed)} change{'s' if self.changed == 1 else ''}, {self.untouched} do not"]


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"


def plan(old: Policy, new: Policy, jobs: Sequence[Job], site: Site | None = None) -> Plan:
    """What `new` in place of `old` would change for these jobs. `site`: to name nodes that have no job now."""
    decide_old, decide_new = _Judge(old), _Judge(new)
    classes = _Classes(old, new)
    pairs = [(job, decide_old.of(job), decide_new.of(job)) for job in jobs]
    members_old = _members(before for _, before, _ in pairs)
    members_new = _members(after for _, _, after in pairs)
    grouped: dict[tuple[object, ...], list[tuple[Job, _Difference]]] = {}
    untouched = 0
    for job, before, after in pairs:
        found = _difference(old, new, classes, job, before, after)
        if found is None:
            untouched += 1
        else:
            grouped.setdefault(found.key, []).append((job, found))
    changes = [_told(new, found, members_old, members_new) for found in grouped.values()]
    changes.sort(key=lambda c: (_rank(c), -len(c.jobs), c.jobs[0].label))
    nodes = sorted({job.node for job in jobs} | (set(site.nodes) if site else set()))
    return Plan(tuple(_for_everybody(old, new, nodes)), tuple(changes), len(jobs) - untouched, untouched)


def _rank(change: Change) -> int:
    if change.held is not None:
        return 0
    return 1 if change.closes else 2 if change.opens else 3


class _Judge:
    """Decisions of one policy, and for each what holds the job, if anything does."""

    def __init__(self, policy: Policy) -> None:
        self._decider = Decider(policy)

    def of(self, job: Job) -> Decision | Held:
        try:
            return self._decider.decide(job.node, job.ad, job.slot, job.phase)
        except Held as held:
            return held


# --- one job ----------------------------------------------------------------------------------------------------------

_NOTHING = Decision(Outcome(sealed=True, services=frozenset()), (), ())


@dataclass(frozen=True, slots=True)
class _Difference:
    """What happens to a job. `key`: what is the same for all jobs that are told in one line."""

    key: tuple[object, ...]
    opens: tuple[str, ...]
    closes: tuple[str, ...]
    otherwise: tuple[str, ...]
    left: str | None
    joined: str | None
    joined_at: Place | None
    rates: tuple[int | None, int | None]
    held: str | None


def _difference(
    old: Policy, new: Policy, classes: _Classes, job: Job, was: Decision | Held, will: Decision | Held
) -> _Difference | None:
    # One that the old policy would hold was let in by a policy that is gone already; it is sealed since.
    before = _NOTHING if isinstance(was, Held) else was
    if isinstance(will, Held):
        if isinstance(was, Held):
            return None
        closes = tuple(f"loses {name}" for name in sorted(before.outcome.services))
        return _Difference(("held", str(will)), (), closes, (), None, None, None, (None, None), str(will))
    opens: list[str] = []
    closes_: list[str] = []
    sealed, was_sealed = will.outcome.sealed, before.outcome.sealed
    if sealed and not was_sealed:
        closes_.append("becomes sealed" + _where(will.trail[0][0]))
    if was_sealed and not sealed:
        opens.append("is no longer sealed")
    freely = _services(old, new, job, before, will, opens, closes_)
    _exposures(old, new, before, will, opens, closes_)
    if not sealed and not was_sealed and old.audits(job.node) is not new.audits(job.node):
        rule = new.mode_of(job.node)
        place = new.mode_place if rule is None else rule.place
        if new.audits(job.node):
            opens.append(f"is in audit mode: refusals are let on{_where(place)}")
        else:
            closes_.append(f"is no longer in audit mode: refusals are enforced{_where(place)}")
    otherwise = freely + ([] if sealed else _marks(classes, before, will))
    left = before.slice if before.slice != will.slice else None
    joined = will.slice if before.slice != will.slice else None
    joined_at = next((p for p, t in will.trail if t.startswith("in slice ")), None) if joined else None
    rates = (before.rate, will.rate) if before.rate != will.rate and not sealed else (None, None)
    if not (opens or closes_ or otherwise or left or joined or rates != (None, None)):
        return None
    kinds = (left is None, joined_at, _kind(left), _kind(joined), rates[0] is None, rates[1] is None)
    key = ("changes", *opens, "", *closes_, "", *otherwise, *kinds)
    return _Difference(key, tuple(opens), tuple(closes_), tuple(otherwise), left, joined, joined_at, rates, None)


def _services(
    old: Policy, new: Policy, job: Job, before: Decision, after: Decision, opens: list[str], closes: list[str]
) -> list[str]:
    """Tells what opens and what closes, and gives what does neither: a grant where none is needed before or after."""
    was, will = before.outcome, after.outcome
    if (was.services, was.audited) == (will.services, will.audited):
        return []
    groups = set(after.groups)
    given = {
        g.service: g.place
        for g in reversed(new.grants)
        if g.group in groups and not g.audit and job.phase in g.during and node_matches(g.nodes, job.node)
    }
    sealed = was.sealed or will.sealed
    gained = sorted(will.services - was.services)
    had = [name for name in gained if not sealed and _open_to_all(old, new.services[name])]
    opens += [f"gains {name}{_where(given.get(name))}" for name in gained if name not in had]
    lost = sorted(was.services - will.services)
    kept = [name for name in lost if not sealed and _open_to_all(new, old.services[name])]
    lost = [name for name in lost if name not in kept]
    closes += [f"loses {name}" for name in lost if name not in will.audited]
    closes += [f"loses {name}, and is let on to it in audit mode" for name in lost if name in will.audited]
    opens += [f"is let on to {name} in audit mode" for name in sorted(will.audited - was.audited - was.services)]
    closes += [f"is no longer let on to {name}" for name in sorted(was.audited - will.audited - will.services)]
    freely = [f"reaches {name} by a grant, and did without{_where(given.get(name))}" for name in had]
    return freely + [f"reaches {name} without a grant" for name in kept]


def _open_to_all(policy: Policy, service: Service) -> bool:
    """Whether no job needs a grant for this service of another policy."""
    if policy.defaults.egress is not Verdict.ALLOW:
        return False
    closed = [s for s in policy.services.values() if s.protected]
    return not any(s.name == service.name or set(s.hosts) & set(service.hosts) for s in closed)


def _exposures(
    old: Policy, new: Policy, before: Decision, after: Decision, opens: list[str], closes: list[str]
) -> None:
    was = _exposed(old, before)
    will = _exposed(new, after)
    opens += [f"serves {what}{_where(place)}" for what, place in will.items() if what not in was]
    closes += [f"serves {what} no more" for what in was if what not in will]


def _exposed(policy: Policy, decision: Decision) -> dict[str, Place]:
    """What a job serves to whom, and by which rule."""
    found: dict[str, Place] = {}
    if decision.outcome.sealed:
        return found
    in_exposed_slice = decision.slice is not None and decision.slice.startswith(EXPOSED_PREFIX)
    for rule in policy.exposes:
        if rule.group not in decision.groups or (rule.to_slice and not in_exposed_slice):
            continue
        to = ["its slice"] if rule.to_slice else [str(net) for net in rule.networks]
        for ports in rule.ports:
            for whom in to:
                found.setdefault(f"{ports} to {whom}", rule.place)
    return found


def _marks(classes: _Classes, before: Decision, after: Decision) -> list[str]:
    told = classes.changes(before.groups, after.groups)
    if before.scitag != after.scitag:
        was, will = ("none" if tag is None else f"{tag[0]}/{tag[1]}" for tag in (before.scitag, after.scitag))
        told.append(f"scitag {was} becomes {will}")
    if before.share != after.share:
        told.append(f"share: {_share(before.share)} becomes {_share(after.share)}")
    return told


def _share(share: Sharing | None) -> str:
    """Without what a job shares by: the jobs of all users are told in one line."""
    if share is None:
        return "none"
    group, per = share.name.split("/")[:2]
    return _amount(share.part) + (f" of group {group}" if group else "") + (f" per {per}" if per else "")


class _Classes:
    """What becomes of the classes of a job's traffic. Kept: jobs of the same groups share it."""

    def __init__(self, old: Policy, new: Policy) -> None:
        self._old, self._new = old, new
        self._services = sorted({*old.classified_services, *new.classified_services})
        named = [{r.group for r in policy.classify if r.group is not None} for policy in (old, new)]
        self._named_old, self._named_new = named
        self._kept: dict[tuple[frozenset[str], frozenset[str]], list[str]] = {}

    def changes(self, before: Iterable[str], after: Iterable[str]) -> list[str]:
        key = (frozenset(self._named_old.intersection(before)), frozenset(self._named_new.intersection(after)))
        if key not in self._kept:
            self._kept[key] = self._work_out(*key)
        return list(self._kept[key])

    def _work_out(self, before: frozenset[str], after: frozenset[str]) -> list[str]:
        told = []
        others = tuple(class_for(p, g, None)[0] for p, g in ((self._old, before), (self._new, after)))
        for service in [None, *self._services]:
            was, _ = class_for(self._old, before, service)
            will, place = class_for(self._new, after, service)
            if was == will or (service is not None and (was, will) == others):
                continue  # nothing, or the same as for all other traffic
            about = "other traffic" if self._new.classified_services else "traffic"
            about = about if service is None else f"traffic with {service}"
            told.append(f"{about}: class {was or 'none'} becomes {will or 'none'}{_where(place)}")
        return told


def class_for(policy: Policy, groups: frozenset[str], service: str | None) -> tuple[str | None, Place | None]:
    """Class of a job's traffic with a service alone (None: with what no rule names), and the rule that gives it."""
    if not policy.classes:
        return None, None
    for rule in policy.classify:
        if (rule.group is None or rule.group in groups) and rule.service in (None, service):
            return rule.traffic_class, rule.place
    return policy.classes[-1].name, policy.classes[-1].place


def _kind(name: str | None) -> str | None:
    """Whose slice it is, and whether it is open: jobs that differ only in its name are told in one line."""
    return None if name is None else name.partition("/")[0]


def _where(place: Place | None) -> str:
    return f" ({place})" if place is not None else ""


# --- jobs with the same change ----------------------------------------------------------------------------------------


def _members(decisions: Iterable[Decision | Held]) -> dict[str, int]:
    count: dict[str, int] = {}
    for decision in decisions:
        if isinstance(decision, Decision) and decision.slice is not None:
            count[decision.slice] = count.get(decision.slice, 0) + 1
    return count


def _told(
    new: Policy, found: Sequence[tuple[Job, _Difference]], before: Mapping[str, int], after: Mapping[str, int]
) -> Change:
    jobs = tuple(job for job, _ in found)
    first = found[0][1]
    if first.held is not None:
        return Change(jobs, (), first.closes, (), first.held)
    opens, closes, otherwise = list(first.opens), list(first.closes), list(first.otherwise)
    left = [d.left for _, d in found if d.left is not None]
    joined = [d.joined for _, d in found if d.joined is not None]
    if left:
        closes.append(f"leaves {_slices(left, before)}")
    if joined:
        opens.append(f"joins {_slices(joined, after)}{_where(first.joined_at)}")
    if first.rates != (None, None):
        was, will = ([d.rates[side] for _, d in found] for side in (0, 1))
        otherwise.append(f"rate: {_rates(was)} becomes {_rates(will)}")
    return Change(jobs, tuple(opens), tuple(closes), tuple(otherwise))


def _slices(names: Sequence[str], members: Mapping[str, int]) -> str:
    distinct = sorted(set(names))
    exposed = " of exposed ports only" if distinct[0].startswith(EXPOSED_PREFIX) else ""
    if len(distinct) > 1:
        examples = ", ".join(distinct[:2])
        return f"{len(distinct)} slices{exposed} ({examples}, …)"
    others = members.get(distinct[0], 1) - 1
    with_others = f" with {others} other{'' if others == 1 else 's'}" if others else ""
    return f"slice {distinct[0]}{exposed}{with_others}"


def _rates(values: Sequence[int | None]) -> str:
    known = sorted({v for v in values if v is not None})
    if not known:
        return "no limit"
    least, most = in_words(known[0]), in_words(known[-1])
    return least if len(known) == 1 else f"{least} to {most}"


# --- everybody --------------------------------------------------------------------------------------------------------


def _for_everybody(old: Policy, new: Policy, nodes: Sequence[str]) -> list[str]:
    return [
        *_modes(old, new, nodes),
        *_defaults(old.defaults, new.defaults),
        *_all_services(old, new),
        *_all_classes(old, new),
    ]


def _modes(old: Policy, new: Policy, nodes: Sequence[str]) -> list[str]:
    told = []
    if old.mode is not new.mode:
        told.append(f"mode: {old.mode.value} becomes {new.mode.value}{_where(new.mode_place)}")
    changed: dict[tuple[Mode, Place], list[str]] = {}
    for node in nodes:
        if old.audits(node) is not new.audits(node):
            rule = new.mode_of(node)
            if rule is not None or old.mode is new.mode:
                mode = Mode.AUDIT if new.audits(node) else Mode.ENFORCE
                changed.setdefault((mode, new.mode_place if rule is None else rule.place), []).append(node)
    for (mode, place), names in changed.items():
        told.append(f"{_some(names, 'node')}: mode becomes {mode.value}{_where(place)}")
    kept = [n for n in nodes if old.mode is not new.mode and old.audits(n) is new.audits(n)]
    if kept:
        told.append(f"{_some(kept, 'node')}: mode stays {'audit' if new.audits(kept[0]) else 'enforce'}")
    return told


def _some(names: Sequence[str], word: str) -> str:
    if len(names) == 1:
        return f"{word} {names[0]}"
    shown = ", ".join(names[:EXAMPLES]) + (", …" if len(names) > EXAMPLES else "")
    return f"{len(names)} {word}s ({shown})"


def _defaults(old: Defaults, new: Defaults) -> list[str]:
    told = []
    for key, reason in (
        ("egress", Reason.EGRESS),
        ("ingress", Reason.INGRESS),
        ("between-jobs", Reason.BETWEEN_JOBS),
    ):
        was, will = (_default(d, key.replace("-", "_"), reason) for d in (old, new))
        if was != will:
            told.append(f"defaults.{key}: {was} becomes {will}{_where(new.place)}")
    return told


def _default(defaults: Defaults, field: str, reason: Reason) -> str:
    if reason in defaults.audited:
        return "audit"
    return "allow" if getattr(defaults, field) is Verdict.ALLOW else "deny"


def _all_services(old: Policy, new: Policy) -> list[str]:
    told = []
    for name in sorted({*old.services, *new.services}):
        was, will = old.services.get(name), new.services.get(name)
        closed_before, closed_after = bool(was and was.protected), bool(will and will.protected)
        where = _where(will.place) if will else ""
        if closed_after and not closed_before:
            told.append(f"service {name} is protected now: closed to jobs without a grant{where}")
        elif closed_before and not closed_after:
            told.append(f"service {name} is protected no more{where}")
        elif was and will:
            differences = _service(was, will)
            if differences:
                told.append(f"service {name}: {', '.join(differences)}{where}")
    return told


def _service(was: Service, will: Service) -> list[str]:
    told = [
        *_sets("hosts", was.hosts, will.hosts),
        *_sets("ports", was.ports, will.ports),
        *_sets("open-to", was.open_to, will.open_to),
    ]
    if was.audit is not will.audit:
        told.append("its refusals are let on (mode: audit)" if will.audit else "its refusals are enforced")
    return told


def _sets(what: str, before: Iterable[object], after: Iterable[object]) -> list[str]:
    was, will = {str(v) for v in before}, {str(v) for v in after}
    told = [f"+{v}" for v in sorted(will - was)] + [f"-{v}" for v in sorted(was - will)]
    shown = told[:EXAMPLES] + ([f"and {len(told) - EXAMPLES} more"] if len(told) > EXAMPLES else [])
    return [f"{what} {' '.join(shown)}"] if told else []


def _all_classes(old: Policy, new: Policy) -> list[str]:
    told = []
    was = {c.name: c for c in old.classes}
    will = {c.name: c for c in new.classes}
    told += [f"class {name} is gone" for name in was if name not in will]
    for name, there in will.items():
        if name not in was:
            told.append(f"class {name} is new: {_class(there)}{_where(there.place)}")
        elif _class(was[name]) != _class(there):
            told.append(f"class {name}: {_class(was[name])} becomes {_class(there)}{_where(there.place)}")
    both = [name for name in was if name in will]
    if both != [name for name in will if name in was]:
        told.append(f"order of classes: {', '.join(will)}{_where(new.classes[0].place)}")
    return told


def _class(found: TrafficClass) -> str:
    parts = [f"dscp {found.dscp}"]
    parts += [f"guarantee {_amount(found.guarantee)}"] if found.guarantee else []
    parts += [f"ceiling {_amount(found.ceiling)}"] if found.ceiling else []
    return " ".join(parts)


def _amount(found: Bandwidth) -> str:
    return in_words(found.bits) if found.bits is not None else str(found)
