"""The story of the demo, chapter by chapter: what each job may reach, proven on a real site.

Every chapter is a function of a running site and a `Telling`; `demo` prints it and `test_story_*` assert it.

Invariants: a chapter leaves no job behind; everything denied stands beside a positive control that shows the same thing
working where it is allowed (otherwise a broken wire would look like a firewall).
"""

from __future__ import annotations

import ipaddress
import re
import shlex
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mininet_tests import payload
from mininet_tests.site.campus import (
    ALICE,
    BOB,
    CAMPUS,
    CAMPUS_6,
    FILE_SERVER,
    FILE_SERVER_6,
    GATE_BRIDGE,
    HOST_ADDRESS,
    HOST_ADDRESS_6,
    HOST_LISTENER_PORT,
    HTTP_PORT,
    LIBEXEC,
    NODE,
    WEB_GREETING,
    WORKER_BRIDGE,
    Site,
)
from mininet_tests.site.lark import API
from mininet_tests.site.namespaces import Machine, Output, SiteError, wait_until
from mininet_tests.site.pool import AdValue, Job, JobStatus
from mininet_tests.site.xrootd import FILE, PORT
from mininet_tests.telling import Telling
from ryu_apps.openflow.pipeline import Table

FS = f"fs={FILE_SERVER}:{PORT}"
FS6 = f"fs6=[{FILE_SERVER_6}]:{PORT}"
WEB = f"web={CAMPUS}:{HTTP_PORT}"
WEB6 = f"web6=[{CAMPUS_6}]:{HTTP_PORT}"
HOST = f"host={HOST_ADDRESS}:{HOST_LISTENER_PORT}"
HOST6 = f"host6=[{HOST_ADDRESS_6}]:{HOST_LISTENER_PORT}"
HOST_OTHER = (
    f"host_udp=udp:{HOST_ADDRESS}:{HOST_LISTENER_PORT}",
    f"host_udp6=udp:[{HOST_ADDRESS_6}]:{HOST_LISTENER_PORT}",
    f"host_ping=ping:{HOST_ADDRESS}",
    f"host_ping6=ping:[{HOST_ADDRESS_6}]",
)
WEB_OTHER = (
    f"web_udp=udp:{CAMPUS}:{HTTP_PORT}",
    f"web_udp6=udp:[{CAMPUS_6}]:{HTTP_PORT}",
    f"web_ping=ping:{CAMPUS}",
    f"web_ping6=ping:[{CAMPUS_6}]",
)
"""The same machines by one datagram and by one echo request."""
CONTROLLER_API = f"api={API}"
UNREACHABLE = 102


# --- small tools ------------------------------------------------------------------------------------------------------


def run_job(
    site: Site,
    user: str,
    script: str,
    files: Mapping[str, str] | None = None,
    lines: Mapping[str, str] | None = None,
    name: str = "job",
    arguments: str | None = None,
) -> Job:
    """Submit a job of which the script is the executable; probe.py comes along."""
    more = dict(files or {})
    carried = ["probe.py", *more]
    submit = {"executable": "job.sh", "transfer_input_files": ", ".join(carried), **(lines or {})}
    if arguments is not None:
        submit["arguments"] = arguments
    return site.pool.submit(user, submit, {"job.sh": script, "probe.py": payload.PROBE, **more}, name)


def wait_for_file(job: Job, name: str = "done", timeout: float = 45) -> str:
    """Wait until the running job wrote a file. Returns its text; for `done`, what the job told until then (`live`).

    Tells at once when the job was held instead.
    """
    last = time.monotonic()

    def probe() -> bool:
        nonlocal last
        if (job.directory / name).exists():
            return True
        if time.monotonic() - last > 3:
            last = time.monotonic()
            status = job.status()
            if status in (JobStatus.HELD, JobStatus.REMOVED, JobStatus.COMPLETED):
                raise SiteError(f"job {job.id} is {status.name}: {job.ad().get('HoldReason')}: {job.errors()}")
        return False

    wait_until(f"job {job.id} of {job.user} writes {name}", probe, timeout)
    return job.said("live" if name == "done" else name)


def results(text: str) -> dict[str, str]:
    """probe.py's lines: name -> `open` or why not."""
    return {line.split()[0]: line.split()[2] for line in text.splitlines() if len(line.split()) >= 3}


def probes(text: str) -> list[str]:
    """Only probe.py's lines."""
    return [line for line in text.splitlines() if re.fullmatch(r"\w+ (ping:\S+|\S+:\d+) \S+", line)]


def names_of(targets: Iterable[str]) -> list[str]:
    """The names of probe.py's targets."""
    return [target.split("=")[0] for target in targets]


def only(text: str, *names: str) -> list[str]:
    """probe.py's lines about these targets."""
    return [line for line in probes(text) if line.split()[0] in names]


def attempt_of(site: Site, job: Job) -> dict[str, object]:
    """The controller's status of a running job's attempt, with counters."""
    attempts = site.larkctl.json("attempts")["attempts"]
    assert isinstance(attempts, list)
    for attempt in attempts:
        if attempt["spec"]["job"] == job.id:
            return site.larkctl.json("attempt", attempt["id"])
    raise SiteError(f"the controller knows no attempt of job {job.id}; it knows {[a['spec']['job'] for a in attempts]}")


def denials(site: Site, job: Job) -> list[dict[str, object]]:
    """What was dropped of a running job, as the controller tells it."""
    counters = attempt_of(site, job)["counters"]
    assert isinstance(counters, dict)
    return list(counters["denied"])


def wait_for_denial(site: Site, job: Job, text: str) -> list[dict[str, object]]:
    """Denials once one of them holds `text` (counters reach the controller when it asks the switch)."""
    seen: list[dict[str, object]] = []

    def probe() -> bool:
        seen[:] = denials(site, job)
        return any(text in str(denial["text"]) and int(str(denial["packets"])) > 0 for denial in seen)

    try:
        wait_until(f"a counted denial of job {job.id} with {text!r}", probe, 8, 0.5)
    except SiteError:
        pass  # the claim is made from what was seen
    return seen


def counted(found: list[dict[str, object]], text: str, reason: str, packets: int = 1) -> bool:
    """Is there a denial for this reason, with this text, of at least so many packets?"""
    return any(d["reason"] == reason and text in str(d["text"]) and int(str(d["packets"])) >= packets for d in found)


def larkctl_tells(site: Site, job: Job) -> list[str]:
    """What an administrator sees of a running job."""
    lines = site.larkctl.text("attempt", job.id).splitlines()
    return [f"$ larkctl attempt {job.id}", *(line.rstrip() for line in lines)]


def wait_for_log(site: Site, *words: str, timeout: float = 15) -> str:
    """The first line of the controller's log that has all these words."""
    daemon = site.controller.daemon
    assert daemon is not None

    def probe() -> str | None:
        lines = daemon.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in lines if "lark.refusals" in line and all(word in line for word in words)), None)

    return wait_until(f"the controller logs {' … '.join(words)}", probe, timeout)


def gate_drops(site: Site) -> tuple[int, list[str]]:
    """Packets towards the services it guards that the gate dropped; the flows that count them (feature 05).

    Only the way in: a server's last words to a job that has ended are dropped on the way out at any time.
    """
    inwards = "|".join(str(int(table)) for table in (Table.GATE_SERVICE, Table.GATE_GRANT))
    wanted = re.compile(rf"cookie=0x4c05.* table=({inwards}), .*actions=drop$")
    flows = [flow for flow in site.switches["gate"].flows(GATE_BRIDGE) if wanted.search(flow)]
    packets = sum(int(found[1]) for flow in flows if (found := re.search(r"n_packets=(\d+)", flow)))
    return packets, [flow for flow in flows if "n_packets=0," not in flow]


def wait_for_gate_drops(site: Site, more_than: int) -> tuple[int, list[str]]:
    """The same, once it counted more (Open vSwitch tells a flow's count about a second late)."""
    try:
        wait_until("the gate counts a drop", lambda: gate_drops(site)[0] > more_than, 5, 0.3)
    except SiteError:
        pass  # the claim is made from what was seen
    return gate_drops(site)


def ad_value(value: AdValue | None) -> str:
    """An attribute as HTCondor's tools print it."""
    return "undefined" if value is None else repr(value)


def shown(output: Output) -> list[str]:
    """A command and what it said, for people."""
    return ["$ " + " ".join(output.argv), *output.text.splitlines()]


def end(*jobs: Job) -> None:
    """Let waiting jobs end and wait for them."""
    for job in jobs:
        job.let_go()
    for job in jobs:
        job.finish()


def open_(found: Mapping[str, str], *names: str) -> bool:
    return all(found.get(name) == "open" for name in names)


def closed(found: Mapping[str, str], *names: str) -> bool:
    """Each was tried and none opened."""
    return all(name in found and found[name] != "open" for name in names)


# --- the chapters -----------------------------------------------------------------------------------------------------


def granted(site: Site, tell: Telling) -> None:
    job = run_job(site, ALICE, payload.FETCH, name="fetch")
    live = wait_for_file(job)
    expected = site.files.sha256
    for server in (FILE_SERVER, f"[{FILE_SERVER_6}]"):
        line = next((text for text in live.splitlines() if text.endswith(f"root://{server}")), "")
        tell.works(
            f"job {job.id} of {ALICE} (group physics) fetched {FILE} from {server} with the right checksum",
            line.startswith(expected),
            [f"job: {text}" for text in ([line] if line else live.splitlines())] + [f"expected sha256: {expected}"],
        )
    status = attempt_of(site, job)
    decision, spec = status["decision"], status["spec"]
    assert isinstance(decision, dict)
    assert isinstance(spec, dict)
    tell.works(
        "the controller names the grant and the line of the policy that gave it",
        "fileserver" in decision["grants"] and any("policy.yaml:" in line for line in decision["trail"]),
        [f"attempt {status['id']}", f"grants {decision['grants']}", *decision["trail"], f"bridges {status['bridges']}"],
    )
    zone = [flow for flow in site.switches[NODE].flows(WORKER_BRIDGE) if "cookie=0x4c07" in flow]
    gate = [flow for flow in site.switches["gate"].flows(GATE_BRIDGE) if "cookie=0x4c07" in flow]
    tell.shows(
        f"its own flows are few: {len(zone)} on the worker bridge, {len(gate)} on the gate",
        1 <= len(zone) <= 6 and 1 <= len(gate) <= 2,
        [
            f"$ ovs-ofctl dump-flows {WORKER_BRIDGE} | grep cookie=0x4c07",
            *zone,
            f"$ ovs-ofctl dump-flows {GATE_BRIDGE} | grep cookie=0x4c07",
            *gate,
        ],
    )
    end(job)


def ungranted(site: Site, tell: Telling) -> None:
    gate_before, _ = gate_drops(site)
    job = run_job(site, BOB, payload.probing(FS, FS6, WEB, WEB6), name="denied")
    live = wait_for_file(job)
    found = results(live)
    tell.works(
        f"job {job.id} of {BOB} reaches the open web server, over IPv4 and IPv6",
        open_(found, "web", "web6"),
        only(live, "web", "web6"),
    )
    tell.shows(
        "it cannot connect to the file server, over IPv4 or IPv6", closed(found, "fs", "fs6"), only(live, "fs", "fs6")
    )
    denied = wait_for_denial(site, job, "fileserver")
    said = larkctl_tells(site, job)
    tell.shows(
        "the drop counter names the job, the service, and that no grant covers it",
        counted(denied, "no grant of this job covers protected service fileserver", "no-grant", 2)
        and any(re.match(r"Dropped \(no-grant\): [1-9]\d* packets? .*fileserver", line) for line in said),
        said,
    )
    gate, flows = gate_drops(site)
    tell.shows(
        "its packets were dropped on its worker bridge already: none came as far as the gate",
        gate == gate_before,
        [f"dropped by {GATE_BRIDGE}: {gate_before} packets before the job, {gate} after it tried", *flows],
    )
    host = try_from(site.worker, FS)
    gate, flows = wait_for_gate_drops(site, gate)
    tell.works(
        f"that counter does count: {NODE} itself, which no worker bridge holds back, is stopped by the gate",
        closed(host, "fs") and gate > gate_before,
        [f"root on {NODE}: {host}", f"dropped by {GATE_BRIDGE}: {gate_before} packets before, {gate} after", *flows],
    )
    end(job)
    line = wait_for_log(site, f" job={job.id} ", " ended; ")
    tell.shows(
        "what was refused stays in the controller's log after the job's end",
        re.search(r" ended; refused: .*no-grant [1-9]\d* packets? ", line) is not None,
        [line],
    )


def forged(site: Site, tell: Telling) -> None:
    forger = {"My.LarkGroup": '"physics"'}
    said, directory = site.pool.try_submit(
        BOB,
        {"executable": "job.sh", "transfer_input_files": "probe.py", **forger},
        {"job.sh": payload.probing(FS, WEB), "probe.py": payload.PROBE},
        "forged",
    )
    if said.code != 0:
        tell.shows(f"{BOB}'s submit file with My.LarkGroup = physics is refused", "LarkGroup" in said.text, shown(said))
    else:
        job = Job(site.pool, said.out.split()[0], BOB, directory)
        found = results(live := wait_for_file(job))
        tell.shows(
            f"job {job.id} of {BOB}, forged with My.LarkGroup = physics, still cannot connect",
            closed(found, "fs"),
            [f"job's ad: LarkGroup = {ad_value(job.ad().get('LarkGroup'))}", *live.splitlines()],
        )
        tell.works("while it reaches the open web server", open_(found, "web"), live)
        end(job)
    idle = site.pool.submit(
        BOB,
        {"executable": "job.sh", "transfer_input_files": "probe.py", "hold": "True"},
        {"job.sh": payload.probing(FS, WEB), "probe.py": payload.PROBE},
        "edited",
    )
    harmless = site.pool.command("condor_qedit", idle.id, "JobPrio", "7", user=BOB)
    tell.works(
        f"{BOB} may edit his job with condor_qedit",
        harmless.code == 0 and idle.ad().get("JobPrio") == 7,
        shown(harmless),
    )
    edit = site.pool.command("condor_qedit", idle.id, "LarkGroup", '"physics"', user=BOB)
    tell.shows(
        "but not into the group",
        idle.ad().get("LarkGroup") != "physics",
        [*shown(edit), f"LarkGroup is {ad_value(idle.ad().get('LarkGroup'))}"],
    )
    site.pool.command("condor_release", idle.id, user=BOB).need()
    found = results(live := wait_for_file(idle))
    tell.shows(f"released, job {idle.id} still cannot connect", closed(found, "fs") and open_(found, "web"), live)
    end(idle)


def sealed(site: Site, tell: Telling) -> None:
    script = payload.probing(FS, WEB, WEB6, HOST, CONTROLLER_API)
    plain = run_job(site, ALICE, script, name="not-sealed")
    closed_job = run_job(site, ALICE, script, lines={"My.LarkNetwork": '"none"'}, name="sealed")
    found = results(live := wait_for_file(plain))
    tell.works(f"job {plain.id} of {ALICE} reaches file server and web server", open_(found, "fs", "web", "web6"), live)
    found = results(live := wait_for_file(closed_job))
    tell.shows(
        f'the same job with My.LarkNetwork = "none" ({closed_job.id}) reaches nothing',
        closed(found, "fs", "web", "web6", "host", "api"),
        live,
    )
    end(plain, closed_job)
    wrong = run_job(site, ALICE, script, lines={"My.LarkNetwork": '"nome"'}, name="misspelt")
    ad = wrong.wait(JobStatus.HELD, JobStatus.COMPLETED, timeout=60)
    tell.shows(
        "misspelt, the job is held with a reason instead of running with a network",
        ad["JobStatus"] == JobStatus.HELD
        and ad.get("HoldReasonSubCode") == 101
        and "LarkNetwork" in str(ad["HoldReason"])
        and not wrong.said("live"),
        held(site, wrong, ad),
    )
    wrong.remove()


def held(site: Site, job: Job, ad: Mapping[str, AdValue]) -> list[str]:
    codes = f"HoldReasonCode {ad.get('HoldReasonCode')}, HoldReasonSubCode {ad.get('HoldReasonSubCode')}"
    return [*shown(site.pool.command("condor_q", "-hold", job.id, "-af:j", "HoldReason", user=job.user)), codes]


def apart(site: Site, tell: Telling) -> None:
    first = run_job(site, BOB, "#!/bin/sh\nexec ./listen.py\n", {"listen.py": payload.LISTENER}, name="listener")
    addresses = wait_for_file(first, "addresses").split()
    live = first.said("live")
    tell.works(
        f"job {first.id} listens on its own addresses, by TCP and by UDP, and reaches itself there",
        len(addresses) == 2 and live.count(" open") == 4,
        live,
    )
    targets = peers_at(addresses)
    script = payload.probing(*targets, HOST, HOST6, *HOST_OTHER, CONTROLLER_API, WEB, WEB6, *WEB_OTHER)
    second = run_job(site, BOB, script, name="neighbour")
    found = results(live := wait_for_file(second))
    web, host, peer = (names_of(t) for t in ((WEB, WEB6, *WEB_OTHER), (HOST, HOST6, *HOST_OTHER), targets))
    tell.works(
        f"job {second.id} beside it reaches the open web server by TCP, UDP and ping",
        open_(found, *web),
        only(live, *web),
    )
    visitors = set(first.said("visitors").split())
    tell.shows(
        f"but not job {first.id}, though both belong to {BOB} (two that share a slice may: next chapter)",
        closed(found, *peer) and visitors == set(addresses),
        [*only(live, *peer), f"visitors seen by the listener: {sorted(visitors)} (itself)"],
    )
    outside = try_from(site.machines["campus"], HOST, HOST6, *HOST_OTHER)
    tell.works("another machine reaches the host's own addresses", open_(outside, *host), as_lines(outside))
    tell.shows("the job does not reach them", closed(found, *host), only(live, *host))
    manager = try_from(site.worker, CONTROLLER_API)
    tell.works("the host reaches the controller's API", open_(manager, "api"), str(manager))
    tell.shows("the job does not reach it", closed(found, "api"), only(live, "api"))
    stranger = try_from(site.machines["campus"], *targets)
    tell.shows(
        "nor does another machine reach the listening job (ingress: deny)", closed(stranger, *peer), as_lines(stranger)
    )
    denied = wait_for_denial(site, second, "other jobs")
    said = larkctl_tells(site, second)
    tell.shows(
        "what was dropped is counted for the job, with its reason",
        counted(denied, "other jobs, a node's own addresses", "policy", 2)
        and any(re.match(r"Dropped \(policy\): [1-9]\d* packets? ", line) for line in said),
        said,
    )
    end(second, first)


def peers_at(addresses: Sequence[str]) -> list[str]:
    """probe.py's targets for a listening job: each of its addresses by TCP, UDP and ping."""
    return [
        target
        for n, address in enumerate(addresses)
        for target in (
            f"peer{n}=[{address}]:7000",
            f"peer{n}_udp=udp:[{address}]:7000",
            f"peer{n}_ping=ping:[{address}]",
        )
    ]


def as_lines(found: Mapping[str, str]) -> list[str]:
    return [f"{name} {what}" for name, what in found.items()]


def shared(site: Site, tell: Telling) -> None:
    listen = {"listen.py": payload.LISTENER}
    script = "#!/bin/sh\nexec ./listen.py\n"
    pair = {"My.LarkSlice": '"pair"'}
    first = run_job(site, BOB, script, listen, pair, name="slice-listener")
    addresses = wait_for_file(first, "addresses").split()
    targets = peers_at(addresses)
    peer = names_of(targets)
    look = payload.probing(*targets, WEB)
    second = run_job(site, BOB, look, lines=pair, name="slice-peer")
    live = wait_for_file(second)
    status = attempt_of(site, second)["decision"]
    assert isinstance(status, dict)
    tell.works(
        f'job {second.id} with the same My.LarkSlice = "pair" reaches job {first.id}: TCP, UDP, ping, IPv4 and IPv6',
        len(addresses) == 2 and open_(results(live), *peer),
        [*only(live, *peer), f"slice: {status['slice']}"],
    )
    for user, lines, what in (
        (BOB, {"My.LarkSlice": '"other"'}, "of the same user in another slice"),
        (BOB, {}, "of the same user in no slice"),
        (ALICE, pair, f"of {ALICE} who chose the same name"),
    ):
        stranger = run_job(site, user, look, lines=lines, name="slice-stranger")
        live = wait_for_file(stranger)
        found = results(live)
        tell.shows(
            f"job {stranger.id} {what} does not",
            closed(found, *peer) and open_(found, "web"),
            only(live, *peer, "web"),
        )
        end(stranger)
    visitors = set(first.said("visitors").split())
    peers = attempt_of(site, second)["spec"]
    assert isinstance(peers, dict)
    tell.shows(
        "the listener saw itself and its peer, and nobody else",
        visitors == {*addresses, peers["ipv4"], peers["ipv6"]},
        f"visitors: {sorted(visitors)}",
    )
    end(second, first)


def try_from(machine: Machine, *targets: str, user: str | None = None) -> dict[str, str]:
    """probe.py, run on a machine of the site."""
    return results(machine.run(["/usr/bin/python3", "-c", payload.PROBE, *targets], user=user, timeout=40).need().out)


def ended(site: Site, tell: Telling) -> None:
    script = f"#!/bin/sh\n./long.py {FILE_SERVER} {PORT} {CAMPUS} {HTTP_PORT} > @HERE@/live 2>&1\n" + payload.WAIT
    job = run_job(site, ALICE, script, {"long.py": payload.LONG_CONNECTION}, name="long")
    live = wait_for_file(job)
    status = attempt_of(site, job)
    spec = status["spec"]
    assert isinstance(spec, dict)
    address, port, mac = spec["ipv4"], spec["port"]["name"], spec["mac"]
    lane = f"lark-{NODE}-{port.removeprefix('lj')}"

    def connections() -> Output:
        return site.machines["fs"].run(["ss", "-Htn", "state", "established", "dst", address])

    before = connections()
    tell.works(
        f"job {job.id} of {ALICE} holds a connection from {address} to the file server",
        address in before.out and "server answered 16 bytes" in live and "connected to the web server" in live,
        [f"job: {line}" for line in live.splitlines()] + shown(before),
    )
    cookies = cookies_of(site, address)
    traces = evidence_of(site, address, port, mac, lane, cookies)
    tell.works(
        f"worker bridge, gate and node know it (its flows have cookie {' '.join(sorted(cookies))})",
        bool(cookies) and all(traces.values()),
        [f"{kind}: {len(found)}" for kind, found in traces.items()],
    )
    tell.works(
        "a tracked connection is that to the web server (what is granted needs no tracking)",
        any(CAMPUS in line for line in traces["tracked connections"]),
        traces["tracked connections"],
    )
    job.let_go()
    started = time.monotonic()
    job.finish()
    left: dict[str, list[str]] = {}

    def gone() -> bool:
        left.clear()
        left.update(evidence_of(site, address, port, mac, lane, cookies))
        return not any(left.values()) and address not in connections().out

    try:
        wait_until("everything of the job is gone", gone, 15, 0.2)
    except SiteError:
        pass  # the claims tell what is left
    gone_after = time.monotonic() - started
    after = connections()
    tell.shows(
        "the job has left; its connection is dead although a process of it was still holding it",
        address not in after.out,
        [*shown(after), "(nothing)"] if not after.out.strip() else shown(after),
    )
    looked = places(address, port, mac, lane, cookies)
    for kind, found in left.items():
        command, wanted = looked[kind]
        what = "its address is not in use in any network of a job" if kind == ADDRESSES else f"no {kind} of it are left"
        tell.shows(what, not found, [f"$ {command} | grep -P {shlex.quote(wanted)}", *(found or ["(nothing)"])])
    tell.shows(
        f"all that was seen gone {gone_after:.1f} s after the job was told to end",
        not any(left.values()),
        [f"{len(left)} kinds of trace looked for, {sum(map(len, left.values()))} found"],
    )


ADDRESSES = "addresses in use"


def places(address: str, port: str, mac: str, lane: str, cookies: set[str]) -> dict[str, tuple[str, str]]:
    """Where the traces of an attempt are looked for, by kind: the command, and what its lines are searched for.

    An address appears in three spellings: as IPv4, as the end of the IPv6 address that holds it, and as a number.
    """
    number = int(ipaddress.IPv4Address(address))
    four, six = rf"(?<![\d.]){re.escape(address)}(?![\d.])", rf":{number >> 16:x}:{number & 0xFFFF:x}\b"
    flow = "|".join([four, six, mac, rf"\b0x0*{number:x}\b", *sorted(cookies)])
    return {
        "worker flows": (f"ovs-ofctl -O OpenFlow14 --no-names dump-flows {WORKER_BRIDGE}", flow),
        "gate flows": (f"ovs-ofctl -O OpenFlow14 --no-names dump-flows {GATE_BRIDGE}", flow),
        "tracked connections": ("ovs-appctl -t ovs-vswitchd dpctl/dump-conntrack netdev@ovs-netdev", f"{four}|{six}"),
        "ports": (f"ovs-vsctl --timeout=5 list-ports {WORKER_BRIDGE}", f"^{port}$"),
        "links": ("ip -o link", rf"^\d+: {port}\b"),
        "namespaces": ("ip netns list", rf"^{lane}\b"),
        ADDRESSES: ("ip -all netns exec ip -o address", f"{four}|{six}"),
        "attempts": ("larkctl attempts", four),
    }


def cookies_of(site: Site, address: str) -> set[str]:
    """The cookies of an attempt's own flows: those (feature 07) that name its address."""
    hexed = re.compile(rf"cookie=(0x4c07[0-9a-f]{{12}}).*=0x0*{int(ipaddress.IPv4Address(address)):x}\b")
    return {found[1] for flow in site.switches[NODE].flows(WORKER_BRIDGE) if (found := hexed.search(flow))}


def evidence_of(site: Site, address: str, port: str, mac: str, lane: str, cookies: set[str]) -> dict[str, list[str]]:
    """Every trace of an attempt, by kind: lines of the commands of `places`, run now."""
    found = {}
    for kind, (command, wanted) in places(address, port, mac, lane, cookies).items():
        if kind == "attempts":
            text = site.larkctl.text("attempts")
        else:
            text = (site.machines["gate"] if kind == "gate flows" else site.worker).need(*command.split())
        found[kind] = [line.strip() for line in text.splitlines() if re.search(wanted, line)]
    return found


def controller_down(site: Site, tell: Telling) -> None:
    running = run_job(site, ALICE, "#!/bin/sh\n./loop.sh\n", {"loop.sh": LOOP}, name="undisturbed")
    wait_for_file(running, "live")
    site.allowed_log.append(re.compile(r"controller \S+ cannot be reached"))
    site.controller.stop(signal.SIGKILL)
    tell.shows("the controller is killed", site.controller.daemon is None, "kill -9 lark-controller")
    job = run_job(site, ALICE, payload.probing(FS, wait=False), name="waits")
    ad = job.wait(JobStatus.HELD, JobStatus.COMPLETED, JobStatus.REMOVED, timeout=60)
    lines = held(site, job, ad)
    tell.shows(
        f"job {job.id}, started meanwhile, does not run: it is held, and condor_q says why",
        ad["JobStatus"] == JobStatus.HELD
        and ad.get("HoldReasonSubCode") == UNREACHABLE
        and "controller" in str(ad.get("HoldReason"))
        and not (job.directory / "done").exists(),
        lines,
    )
    count = len(running.said("live").splitlines())
    wait_until("the running job goes on", lambda: len(running.said("live").splitlines()) >= count + 2, 20)
    went = running.said("live").splitlines()[count:]
    tell.works(
        f"job {running.id}, already running, still reaches the file server",
        all(line.endswith(" open") for line in went) and bool(went),
        went[-2:],
    )
    site.controller.start()
    ad = job.wait(JobStatus.COMPLETED, JobStatus.REMOVED, timeout=90)
    tell.works(
        "the controller is back; HTCondor releases the job by itself, and it runs and connects",
        ad["JobStatus"] == JobStatus.COMPLETED and open_(results(job.said("live")), "fs"),
        [site.controller.ready_line, f"job {job.id}: {job.said('live').strip()}", f"starts: {ad.get('NumJobStarts')}"],
    )
    tell.shows(
        "the running job never lost the file server",
        set(running.said("live").split("\n")) - {""} != set()
        and all(line.endswith(" open") for line in running.said("live").splitlines()),
        f"{len(running.said('live').splitlines())} connections, all open",
    )
    end(running)


LOOP = f"""#!/bin/sh
while [ ! -e @HERE@/go ]; do
    ./probe.py {FS} >> @HERE@/live
    sleep 0.5
done
"""


def owner_code_outside(site: Site, tell: Telling) -> None:
    gate_before, _ = gate_drops(site)
    host = try_from(site.worker, FS, FS6, WEB)
    tell.works("the node's own network reaches the campus", open_(host, "web"), f"root on {NODE}: {host}")
    gate, flows = wait_for_gate_drops(site, gate_before)
    tell.shows(
        "but the gate keeps it from the protected file server, and counts that",
        closed(host, "fs", "fs6") and gate > gate_before,
        [str(host), f"dropped by {GATE_BRIDGE}: {gate_before} packets before, {gate} after", *flows],
    )
    owner = try_from(site.worker, FS, WEB, user=ALICE)
    tell.shows(
        f"the guard stops processes of {ALICE} in the node's network, even towards the campus",
        closed(owner, "fs", "web"),
        f"{ALICE} on {NODE}, outside of a job: {owner}",
    )
    fetched = run_job(
        site,
        ALICE,
        "#!/bin/sh\ncat index.html > @HERE@/live\n: > @HERE@/done\n",
        lines={"transfer_input_files": f"probe.py, http://{CAMPUS}:{HTTP_PORT}/index.html"},
        name="stage-in",
    )
    wait_for_file(fetched)
    tell.works(
        f"the pool's own plugin (http), wrapped, stages in for job {fetched.id} through the job's network",
        WEB_GREETING in fetched.said("live"),
        fetched.said("live"),
    )
    fetched.finish()
    before_job: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
        "PreCmd": ({"My.PreCmd": '"pre.sh"'}, {"pre.sh": payload.PRE_COMMAND}, "pre"),
        "a transfer plugin named in the submit file": (
            {"transfer_plugins": "mine=plugin.py", "transfer_input_files": "probe.py, mine://x/y"},
            {"plugin.py": payload.TRANSFER_PLUGIN},
            "plugin",
        ),
    }
    for what, (lines, files, _) in before_job.items():
        submit = {"executable": "job.sh", "transfer_input_files": ", ".join(["probe.py", *files]), **lines}
        scripts = {"job.sh": payload.probing(FS), "probe.py": payload.PROBE, **files}
        said, _directory = site.pool.try_submit(ALICE, submit, scripts, "refused")
        tell.shows(f"the access point refuses {what}, and says why", "outside of the job" in said.text, shown(said))
    # A pool could be without that refusal (an access point that is not ours): then the guard alone must hold.
    pool = site.pool
    pool.reconfigure(pool.access, "99-open.config", "SUBMIT_REQUIREMENT_NAMES =\n")
    pool.reconfigure(pool.execute, "99-open.config", "START = True\nSTARTER_ALLOW_JOB_PRE_AND_POST_CMD = True\n")
    try:
        for what, (lines, files, where) in before_job.items():
            stopped_before = guard_counters(site)
            job = run_job(site, ALICE, payload.probing(FS, WEB), files, lines, name=where)
            text = wait_for_file(job, where, timeout=60)
            # The file is written line by line.
            wait_until(f"{what} tried everything", lambda j=job, w=where: len(results(j.said(w))) >= 3, 30)  # type: ignore[misc]
            text = job.said(where)
            tell.shows(
                f"without that refusal {what} (job {job.id}) runs in the node's network as {ALICE}: it reaches nothing",
                closed(results(text), "fs", "fs6", "web") and site.node_network() in text,
                [f"network of {NODE} itself: {site.node_network()}", *text.splitlines()],
            )
            stopped = guard_counters(site)
            tell.shows(
                "the guard counted it",
                stopped["guard_rejected"] > stopped_before["guard_rejected"],
                f"guard_rejected: {stopped_before['guard_rejected']} before, {stopped['guard_rejected']} after",
            )
            if where == "pre":
                found = results(live := wait_for_file(job))
                tell.works("the job itself, in its own network, reaches both", open_(found, "fs", "web"), live)
                end(job)
            else:
                job.remove()
    finally:
        pool.reconfigure(pool.access, "99-open.config", None)
        pool.reconfigure(pool.execute, "99-open.config", None)


def guard_counters(site: Site) -> dict[str, int]:
    """Packets that the guard of the node let pass and rejected."""
    text = site.worker.need("nft", "list", "counters", "table", "inet", "lark")
    return {name: int(count) for name, count in re.findall(r"counter (\w+) \{\s*packets (\d+)", text)}


def impostors(site: Site, tell: Telling) -> None:
    script = (
        "#!/bin/sh\n{\n"
        "./ask.py ping='LARK1 ping' begin='LARK1 begin' stage-out='LARK1 stage-out' nonsense='LARK9 rule the world'\n"
        "readlink /proc/self/ns/net\n"
        # A wrapper that fails says so in this file; the job would only hurt itself.
        "unset _CONDOR_WRAPPER_ERROR_FILE\n"
        f"{LIBEXEC}/lark-job-wrapper /bin/readlink /proc/self/ns/net; echo wrapper exit $?\n"
        f"cat .job.ad | {LIBEXEC}/lark-hook-prepare; echo hook exit $?\n"
        "./probe.py '" + FS + "' '" + WEB + "'\n"
        "} > @HERE@/live 2>&1\n" + payload.WAIT
    )
    job = run_job(site, BOB, script, {"ask.py": payload.ASK_AGENT}, name="impostor")
    attempts_before = len(site.larkctl.json("attempts")["attempts"])  # type: ignore[arg-type]
    live = wait_for_file(job)
    answers = {line.split()[0]: line for line in live.splitlines() if line}
    outside = site.worker.run([f"{LIBEXEC}/lark-ping"], user=BOB).out
    tell.works("any process may ask whether the agent serves", "HasLarkNetwork = true" in outside, outside)
    tell.shows(
        "one inside a job is told that there is no agent for jobs of a job (a pilot's)",
        answers.get("ping", "").startswith("ping hold 104 ") and "(a pilot) has no agent" in answers["ping"],
        answers.get("ping", live),
    )
    for name in ("begin", "stage-out", "nonsense"):
        tell.shows(
            f"job {job.id}'s own process saying {name!r} is refused",
            answers.get(name, "").startswith(f"{name} refused") and answers[name].endswith("fds=0"),
            answers.get(name, live),
        )
    attempts = site.larkctl.json("attempts")["attempts"]
    assert isinstance(attempts, list)
    mine = [a for a in attempts if a["spec"]["job"] == job.id]
    tell.shows(
        "it has still one attempt, one identity and one port",
        len(mine) == 1 and len(attempts) <= attempts_before + 1,
        [f"{a['id']} identity {a['decision']['identity']} port {a['spec']['port']['name']}" for a in mine],
    )
    found = results(live)
    tell.works("its own network works", open_(found, "web"), probes(live))
    tell.shows("and gives it nothing more than before", closed(found, "fs"), probes(live))
    refused = [line for line in live.splitlines() if "hold 105" in line]
    tell.shows(
        "run by the job, the installed wrapper and hook are refused: their parent is no starter",
        len(refused) == 2 and "wrapper exit 0" not in live,
        refused,
    )
    end(job)
    # The job's first process is a true child of the starter: here it becomes the true hook.
    hook = run_job(
        site, BOB, f"#!/bin/sh\nid -un > @HERE@/live\nexec {LIBEXEC}/lark-hook-prepare < .job.ad\n", name="as-hook"
    )
    said = hook.finish()
    tell.shows(
        f"job {hook.id} turned itself into the hook, as the starter's own child, and is refused: its attempt has begun",
        "HookStatusCode = 105" in said,
        [f"running as {hook.said('live').strip()}", *said.splitlines()],
    )
    user = site.worker.run(
        ["/usr/bin/python3", "-c", payload.ASK_AGENT, "begin=LARK1 begin", "enter=LARK1 enter job", "ping=LARK1 ping"],
        user=BOB,
    )
    tell.shows(
        f"{BOB} on the node, outside of any job, is refused as well",
        "begin refused" in user.out and "enter refused" in user.out and "fds=1" not in user.out,
        user.text,
    )


@dataclass(frozen=True, slots=True)
class Chapter:
    """One line of the story."""

    slug: str
    title: str
    tell: Callable[[Site, Telling], None]

    def problems(self, site: Site, telling: Telling) -> list[str]:
        """Tell it; why it is not proven, or nothing. A chapter that broke off leaves no job to the next one."""
        try:
            self.tell(site, telling)
        except Exception as error:  # noqa: BLE001 - whatever broke, the story is not proven, and the site must end in order
            site.pool.command("condor_rm", "-all")
            where = traceback.extract_tb(error.__traceback__)[-1]
            return [*telling.problems(), f"broke off: {type(error).__name__}: {error} ({where.name}:{where.lineno})"]
        return telling.problems()


CHAPTERS = (
    Chapter("granted", "A job of the granted group fetches the protected file", granted),
    Chapter("ungranted", "A job of another user cannot connect, and is told why", ungranted),
    Chapter("forged", "Forging the attribute does not help", forged),
    Chapter("sealed", 'A job with My.LarkNetwork = "none" reaches nothing', sealed),
    Chapter("apart", "Jobs are kept apart from each other and from the host", apart),
    Chapter("slice", "Jobs that share a slice may talk to each other", shared),
    Chapter("ended", "When a job ends, everything it was given is gone", ended),
    Chapter("outside", "Owner code outside of the job's network is stopped", owner_code_outside),
    Chapter("impostors", "A job cannot pose as its hook, its starter or another job", impostors),
    Chapter("controller-down", "No policy, no run: the controller is down and comes back", controller_down),
)
