"""`larkctl`: what the controller knows, for people (tables, sentences) and for scripts (`--json`).

Invariants: it only reads; every failure is one sentence on standard error and a non-zero exit code; `--json` prints
exactly what the API answered.
"""

from __future__ import annotations

import contextlib
import re
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import click
import httpx
from pydantic import BaseModel, ValidationError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from policies.certificates import TlsFault, tls_fault
from policies.events import Kind
from policies.values import in_words
from policies.wire import (
    QUEUES_STALE,
    AttemptList,
    AttemptStatus,
    BridgeList,
    BridgeStatus,
    Counters,
    DecisionView,
    Dropped,
    EventList,
    NodeList,
    PolicyStatus,
    SiteStats,
    WhyAnswer,
)
from ryu_apps.event_lines import gap, in_lines
from ryu_apps.version import version_option

Model = TypeVar("Model", bound=BaseModel)
_SCHEMES = ("http://", "https://")
_JOB = re.compile(r"^[0-9]{1,10}\.[0-9]{1,10}$")


class Failure(Exception):
    """Something to tell the user in one sentence."""


@dataclass(frozen=True, slots=True)
class Client:
    """The API, with one token."""

    url: str
    token_file: Path | None
    ca_file: Path | None = None
    patience: float = 15
    """Seconds."""

    def get(self, path: str, model: type[Model], **query: str) -> Model:
        """Raises Failure."""
        if self.token_file is None:  # not at the start: `larkctl COMMAND --help` needs no token
            raise click.UsageError("name a file with a token of role viewer or admin: --token-file, or LARK_TOKEN_FILE")
        token = _read_token(self.token_file)
        try:
            answer = httpx.get(
                self.url.rstrip("/") + path,
                params=query,
                headers={"Authorization": f"Bearer {token}"},
                timeout=self.patience,
                # An administrator's proxy settings are not meant for the controller.
                trust_env=False,
                verify=_context(self.ca_file),
            )
        except (httpx.HTTPError, httpx.InvalidURL) as problem:
            fault = tls_fault(str(problem)) if "SSL" in str(problem) else None
            if fault in _TLS_WORDS:
                raise Failure(f"{self.url}: {_TLS_WORDS[fault]}") from problem
            raise Failure(f"no answer from {self.url}: {problem}; does lark-controller run there?") from problem
        if answer.status_code != 200:
            raise Failure(_problem(answer))
        try:
            return model.model_validate_json(answer.content)
        except ValidationError as problem:
            raise Failure(f"{self.url} answered what this larkctl does not understand; is it as new?") from problem


_TLS_WORDS = {
    TlsFault.UNKNOWN_CA: "its certificate is not of a CA known here; name the controller's ca.crt with --ca-file (or "
    "LARK_CA_FILE). If that is the right one, somebody else answers at this address",
    TlsFault.WRONG_NAME: "its certificate is not for this name; use a name that is in it, or make it one with this "
    "name: lark-controller pki controller --address NAME --force",
    TlsFault.EXPIRED: "its certificate has expired; on its machine: lark-controller pki renew controller, then reload",
    TlsFault.NOT_YET_VALID: "its certificate is not valid yet; compare the clocks",
    TlsFault.NO_TLS: "it speaks no TLS on this port; write http://, or another port",
}


def _context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as problem:
        raise Failure(f"CA file {ca_file} cannot be used: {problem}; it must hold a certificate in PEM") from problem


def _problem(answer: httpx.Response) -> str:
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return f"{answer.request.url} answered {answer.status_code}; is this the controller's API?"
    return f"{detail} ({answer.status_code})"


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise Failure(f"token file {path} cannot be read: {problem}") from problem
    if not token or not token.isascii() or any(letter.isspace() for letter in token):
        raise Failure(f"token file {path} must hold one token and nothing else")
    return token


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@version_option("larkctl")
@click.option(
    "--url",
    envvar="LARK_URL",
    show_envvar=True,
    default="http://127.0.0.1:8080",
    show_default=True,
    help="The controller's API.",
)
@click.option(
    "--token-file",
    envvar="LARK_TOKEN_FILE",
    show_envvar=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with a token of role viewer or admin.",
)
@click.option(
    "--ca-file",
    envvar="LARK_CA_FILE",
    show_envvar=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Certificate of the controller's CA (default: the system's CAs).",
)
@click.pass_context
def cli(context: click.Context, url: str, token_file: Path | None, ca_file: Path | None) -> None:
    """Ask the Lark controller about jobs, nodes and bridges."""
    if not url.lower().startswith(_SCHEMES):
        raise Failure(f"{url!r} is not a URL; write http://{url.rpartition('/')[2] or 'ADDRESS:PORT'}")
    if url.lower().startswith("http://") and ca_file is not None:
        raise Failure(f"{url} is not https, so --ca-file would check nothing; write https://")
    context.obj = Client(url, token_file, ca_file)


json_option = click.option("--json", "as_json", is_flag=True, help="Print what the API answered.")


def _show(value: BaseModel, as_json: bool, draw: Callable[[Console], None]) -> None:
    if as_json:
        click.echo(value.model_dump_json(indent=2))
    else:
        # Not a terminal (a pipe, a log): no wrapping to some guessed width.
        draw(Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 200))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _text(value: object) -> Text:
    # What came from a job must not be read as markup, nor reach the terminal as control characters.
    return Text("".join(letter if letter.isprintable() else "?" for letter in str(value)))


def _row(table: Table, *cells: object) -> None:
    table.add_row(*(_text(cell) for cell in cells))


@cli.command()
@click.option("--job", help="Only this job, as CLUSTER.PROC.")
@click.option("--node", help="Only this node.")
@json_option
@click.pass_obj
def attempts(client: Client, job: str | None, node: str | None, as_json: bool) -> None:
    """List the attempts (jobs that run, or are about to) under control."""
    query = {name: value for name, value in (("job", job), ("node", node)) if value is not None}
    found = client.get("/v1/attempts", AttemptList, **query)
    if node is not None and not found.attempts:
        # No attempts of a node that does not exist would read as "all is quiet there".
        known = [one.node for one in client.get("/v1/nodes", NodeList).nodes]
        if node not in known:
            raise Failure(f"site.yaml knows no node {node}; it has {', '.join(known) or 'none'}")

    def draw(console: Console) -> None:
        table = _table("JOB", "NODE", "PHASE", "ADDRESS", "PORT", "MAY REACH", "BRIDGES", "ATTEMPT")
        for one in found.attempts:
            spec, decision = one.spec, one.decision
            reach = "nothing (sealed)" if decision.sealed else ", ".join(decision.grants) or "-"
            if decision.mode == "audit" and not decision.sealed:
                reach += " (audit: refusals are let on)"
            waits = [name for name, state in one.bridges.items() if state != "realised"]
            state = f"waiting for {', '.join(waits)}" if waits else "all confirmed"
            _row(table, spec.job or "-", spec.node, spec.phase, spec.ipv4, spec.port.name, reach, state, one.id)
        console.print(table if found.attempts else "no attempts")

    _show(found, as_json, draw)


@cli.command()
@click.argument("id")
@json_option
@click.pass_obj
def attempt(client: Client, id: str, as_json: bool) -> None:
    """Tell all about one attempt. ID: an attempt's id, or a job's CLUSTER.PROC."""
    found = client.get(f"/v1/attempts/{_attempt_id(client, id)}", AttemptStatus)
    _show(found, as_json, lambda console: _tell(console, found))


def _attempt_id(client: Client, id: str) -> str:
    """Of an attempt named by its id or by its job, as it stands in a path."""
    if _JOB.match(id):
        ids = [one.id for one in client.get("/v1/attempts", AttemptList, job=id).attempts]
        if not ids:
            raise Failure(f"no attempt of job {id} is under control now")
        if len(ids) > 1:
            raise Failure(f"job {id} has several attempts; name one of: {', '.join(ids)}")
        id = ids[0]
    return quote(id, safe="~@")


@cli.command()
@click.argument("id")
@click.argument("host")
@click.argument("protocol", type=click.Choice(["tcp", "udp", "icmp"]))
@click.argument("port", type=click.IntRange(1, 65535), required=False)
@json_option
@click.pass_obj
def why(client: Client, id: str, host: str, protocol: str, port: int | None, as_json: bool) -> None:
    """Tell why a job reaches a host, or does not: bridge by bridge, with the line of the policy that decides.

    ID: an attempt's id, or a job's CLUSTER.PROC. HOST: an address, or a service of the policy. PORT: for tcp and udp.
    """
    if (port is None) != (protocol == "icmp"):
        raise click.UsageError("icmp has no port" if port is not None else f"{protocol} needs a port")
    wanted = protocol if port is None else f"{protocol}/{port}"
    attempt_path = f"/v1/attempts/{_attempt_id(client, id)}"
    found = client.get(f"{attempt_path}/why", WhyAnswer, host=host, port=wanted)
    counted = [] if as_json or not found.reasons else _counted(client.get(attempt_path, AttemptStatus), found)

    def draw(console: Console) -> None:
        for line in [*found.lines, *counted]:
            console.print(_text(line))

    _show(found, as_json, draw)


def _counted(status: AttemptStatus, answer: WhyAnswer) -> list[str]:
    """What was refused to the job so far for the reasons of an answer."""
    if status.counters is None:
        return ["no counters: the switch cannot be asked now"]
    seen = {denial.reason: _packets(denial.packets, denial.bytes) for denial in status.counters.denied}
    return [f"so far refused to this job for {one}: {seen.get(one, 'nothing')}" for one in answer.reasons]


def _tell(console: Console, found: AttemptStatus) -> None:
    spec, decision = found.spec, found.decision
    facts = _table("", "")
    facts.show_header = False
    _row(facts, "attempt", found.id)
    _row(facts, "job", spec.job or "not known")
    _row(facts, "node", f"{spec.node}, bridge {spec.port.bridge}, port {spec.port.name} (number {spec.port.ofport})")
    _row(facts, "address", ", ".join(address for address in (spec.ipv4, spec.ipv6, spec.mac) if address))
    _row(facts, "phase", spec.phase)
    _row(facts, "groups", ", ".join(decision.groups) or "none")
    _row(
        facts,
        "may reach",
        "nothing: sealed" if decision.sealed else ", ".join(decision.grants) or "no protected service",
    )
    for what, said in _given(decision):
        _row(facts, what, said)
    for line in decision.trail:
        _row(facts, "because", line)
    for bridge, state in found.bridges.items():
        _row(facts, f"bridge {bridge}", "in force" if state == "realised" else state)
    console.print(facts)
    if found.counters is None:
        console.print("No counters: the switch cannot be asked now.")
        return
    for sentence in sentences(found.counters, decision):
        console.print(_text(sentence))


def _given(decision: DecisionView) -> Iterator[tuple[str, str]]:
    """What else a decision gives, as name and text; what it does not give is left out."""
    if decision.mode == "audit":
        yield "mode", "audit: what is refused is counted and let on, but for what audit never opens"
    if decision.audited:
        yield "let on to", f"{', '.join(decision.audited)} (a rule in audit mode: counted as refused)"
    if decision.audited_defaults:
        yield "let on as", f"{', '.join(decision.audited_defaults)} (defaults in audit mode: counted as refused)"
    if decision.slice is not None:
        yield "slice", decision.slice
    for one in decision.exposes:
        yield "serves", f"{', '.join(one.ports)} to {', '.join(one.to)} ({one.rule})"
    for rule in decision.classes:
        what = "all else" if rule.service is None else f"service {rule.service}"
        yield "class", f"{rule.name} (DSCP {rule.dscp}) for {what} ({rule.rule})"
    if decision.rate is not None:
        yield "rate", f"{in_words(decision.rate)} in each direction"
    if decision.share is not None:
        yield "share", f"{decision.share}, in each direction with all that have it on the node"
    if decision.scitag is not None:
        tag = decision.scitag
        sent = "IPv6 flow label; fireflies, where the agent has a collector"
        yield "scitag", f"experiment {tag.experiment}, activity {tag.activity} ({sent})"


def sentences(counters: Counters, decision: DecisionView | None = None) -> list[str]:
    """Counters as sentences; refusals that never happened are left out.

    With audit mode about, a count does not tell which packets were dropped and which were let on: then neither is said.
    """
    audit = decision is not None and (decision.mode == "audit" or decision.audited or decision.audited_defaults)
    word = "Refused, dropped unless audit mode let it on" if audit else "Dropped"
    said = [
        f"It has sent {_packets(counters.admitted_packets, counters.admitted_bytes)} as itself "
        f"and been sent {_packets(counters.delivered_packets, counters.delivered_bytes)}.",
        *_limited(counters),
        *_of_late(counters),
    ]
    refused = [
        f"{word} ({denial.reason}): {_packets(denial.packets, denial.bytes)}: {denial.text}."
        for denial in counters.denied
        if denial.packets
    ]
    nothing = "Nothing of it was refused." if audit or counters.dropped else "Nothing of it was dropped."
    return [*said, *(refused or [nothing])]


def _limited(counters: Counters) -> Iterator[str]:
    if counters.dropped is not None:
        yield f"Its rate has dropped {_both_ways(counters.dropped)} besides."
    share = counters.share
    if share is not None:
        yield (
            f"Its share has let on {_packets(share.sent_packets, share.sent_bytes)} of what all jobs of that share "
            f"sent, and {_packets(share.received_packets, share.received_bytes)} of what they were sent; "
            f"it has dropped {_both_ways(share.dropped)}, of which job is not known."
        )


def _both_ways(dropped: Dropped) -> str:
    return (
        f"{_packets(dropped.sent_packets, dropped.sent_bytes)} on the way out and "
        f"{_packets(dropped.received_packets, dropped.received_bytes)} on the way in"
    )


def _of_late(counters: Counters) -> Iterator[str]:
    if counters.admitted_rate or counters.delivered_rate:
        yield f"Of late it sends {in_words(counters.admitted_rate)} and is sent {in_words(counters.delivered_rate)}."
    for border, one in sorted(counters.borders.items()):
        late = f", of late {in_words(one.rate)}" if one.rate else ""
        yield f"Border {border} has seen {_packets(one.packets, one.bytes)} of it, both directions together{late}."


def _packets(packets: int, octets: int) -> str:
    size, unit = float(octets), "B"
    for bigger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, bigger
    amount = f"{octets} B" if unit == "B" else f"{size:.1f} {unit}"
    return f"{_count(packets, 'packet')} ({amount})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@cli.command()
@json_option
@click.pass_obj
def nodes(client: Client, as_json: bool) -> None:
    """List the nodes of the site."""
    found = client.get("/v1/nodes", NodeList)

    def draw(console: Console) -> None:
        table = _table("NODE", "BRIDGE", "ATTEMPTS", "LEASE", "AGENT", "HOST ADDRESSES")
        for node in found.nodes:
            if node.spec is None:
                _row(table, node.node, "-", node.attempts, "never registered", "-", "-")
                continue
            lease = f"{node.lease_left:.0f} s left" if node.lease_left else "over"
            addresses = ", ".join(node.spec.host_addresses)
            _row(table, node.node, node.spec.bridge, node.attempts, lease, node.spec.agent_version, addresses)
        console.print(table)

    _show(found, as_json, draw)


@cli.command()
@json_option
@click.pass_obj
def bridges(client: Client, as_json: bool) -> None:
    """List the bridges under control."""
    found = client.get("/v1/bridges", BridgeList)

    def draw(console: Console) -> None:
        table = _table("BRIDGE", "DATAPATH", "ROLES", "STATE", "FLOWS", "PORTS", "DETAIL")
        for one in found.bridges:
            state = "in line" if one.converged else "connected" if one.connected else "not connected"
            if one.connected and one.bypassed:
                state = "meddled"
            if one.missing:
                state = "closed"
            _row(table, one.bridge, one.datapath_id, ", ".join(one.roles), state, one.flows, len(one.ports), one.detail)
        console.print(table)
        for one in found.bridges:
            if "border" in one.roles:
                _tell_queues(console, one)

    _show(found, as_json, draw)


def _tell_queues(console: Console, bridge: BridgeStatus) -> None:
    """What a border's agent reported last."""
    status = bridge.queues
    if status is None:
        console.print()
        console.print(_text(f"{bridge.bridge}: no agent has reported its queues; does `lark-agent border` run there?"))
        return
    state = "in force" if status.in_force else "made, with faults" if status.followed else "NOT in force"
    console.print()
    console.print(_text(f"{bridge.bridge}: queues {state}, reported {status.age:.0f} s ago"))
    if not status.followed:
        console.print(_text("  the agent follows another policy than this, or says nothing any more"))
    for fault in status.report.faults:
        console.print(_text(f"  {fault}"))
    # Of the queue as it is, made anew or not; what the class has carried in all is in `larkctl stats`.
    table = _table("PORT", "CLASS", "RATE NOW", "SENT BY THIS QUEUE", "DROPPED BY IT", "WAITING")
    stale = status.age > QUEUES_STALE
    for name, port in status.report.ports.items():
        for title, one in port.classes.items():
            sent, drops = _packets(one.packets, one.bytes), _count(one.drops, "packet")
            now = ("-", "-") if stale else (in_words(one.rate), f"{one.backlog} B")
            _row(table, f"{name} ({in_words(port.rate)})", title, now[0], sent, drops, now[1])
    if status.report.ports:
        console.print(table)


@cli.command()
@json_option
@click.pass_obj
def policy(client: Client, as_json: bool) -> None:
    """Say which policy is in force."""
    found = client.get("/v1/policy", PolicyStatus)

    def draw(console: Console) -> None:
        console.print(_text(f"policy {found.digest[:12]}, mode {found.mode}, from {', '.join(found.files)}"))
        for line in found.audits:
            console.print(_text(f"in audit mode: {line}"))
        if found.unconfirmed:
            console.print(_text(f"not confirmed yet by {', '.join(found.unconfirmed)}; larkctl bridges says why"))
        if found.on_disk:
            console.print(_text(f"NOT what the files say: {found.on_disk}"))

    _show(found, as_json, draw)


@cli.command()
@click.option("--watch", is_flag=True, help="Go on showing it, until interrupted.")
@click.option(
    "--every",
    type=click.FloatRange(min=0.5, max=3600),
    default=2.0,
    show_default=True,
    help="Seconds between two looks, with --watch.",
)
@json_option
@click.pass_obj
def stats(client: Client, watch: bool, every: float, as_json: bool) -> None:
    """Tell what borders' classes and all jobs together have carried."""
    if not watch:
        found = client.get("/v1/stats", SiteStats)
        _show(found, as_json, lambda console: console.print(stats_table(found)))
        return
    with contextlib.suppress(KeyboardInterrupt):
        _watch(client, every, as_json)


def _watch(client: Client, every: float, as_json: bool) -> None:
    found = client.get("/v1/stats", SiteStats)
    if as_json or not sys.stdout.isatty():
        # One picture below the other: a pipe has no screen to draw it on anew.
        while True:
            shown = stats_table(found)
            _show(found, as_json, lambda console, shown=shown: console.print(shown))  # type: ignore[misc]
            sys.stdout.flush()
            time.sleep(every)
            while isinstance(again := _again(client), Failure):
                click.echo(f"larkctl: {again}", err=True)
                time.sleep(every)
            found = again
    with Live(stats_table(found), auto_refresh=False) as live:
        while True:
            time.sleep(every)
            again = _again(client)
            if not isinstance(again, Failure):
                found = again
                live.update(stats_table(found), refresh=True)
            else:
                live.update(Group(stats_table(found), _text(f"as it was before: {again}")), refresh=True)


def _again(client: Client) -> SiteStats | Failure:
    """Who watches wants to see a restart of the controller, and what comes after it."""
    try:
        return client.get("/v1/stats", SiteStats)
    except Failure as failure:
        return failure


def stats_table(found: SiteStats) -> RenderableType:
    """Classes of borders as a table, jobs as sentences."""
    parts: list[RenderableType] = []
    for border in found.borders:
        if border.age is None:
            parts.append(_text(f"{border.bridge}: no agent has reported its queues"))
        elif not border.in_force:
            parts.append(_text(f"{border.bridge}: not as the policy wishes it; larkctl bridges says why"))
        parts += [
            _text(f"{border.bridge}: refused ({one.reason}): {_packets(one.packets, one.bytes)}")
            for one in border.refused
            if one.packets
        ]
    if found.classes:
        table = _table("BORDER", "PORT", "", "CLASS", "GUARANTEED", "RATE NOW", "AT MOST", "SENT", "DROPPED", "WAITING")
        ages = {border.bridge: border.age for border in found.borders}
        for one in found.classes:
            age = ages.get(one.bridge)
            # What nobody has reported is not 0. Sums may be of an earlier life of the controller.
            known = age is not None or one.packets > 0
            sent, drops = (_packets(one.packets, one.bytes), _count(one.drops, "packet")) if known else ("-", "-")
            fresh = age is not None and age <= QUEUES_STALE
            rate, waiting = (in_words(one.rate), f"{one.backlog} B") if fresh else ("-", "-")
            _row(
                table, one.bridge, one.port, one.direction, one.name, in_words(one.guarantee), rate,
                in_words(one.ceiling), sent, drops, waiting,
            )  # fmt: skip
        parts.append(table)
    jobs = found.jobs
    parts.append(
        _text(
            f"{_count(jobs.attempts, 'attempt')}; since the controller started jobs have sent "
            f"{_packets(jobs.sent_packets, jobs.sent_bytes)} and been sent "
            f"{_packets(jobs.received_packets, jobs.received_bytes)}"
        )
    )
    parts += [
        _text(f"refused ({one.reason}): {_packets(one.packets, one.bytes)}") for one in jobs.refused if one.packets
    ]
    parts += [
        _text(f"dropped by {by}: {_both_ways(one)}")
        for by, one in (("rates of single jobs", jobs.rate_dropped), ("shares", jobs.share_dropped))
        if one.sent_packets or one.received_packets
    ]
    if found.shares:
        table = _table("BRIDGE", "SHARE", "SENDS", "IS SENT", "SENT", "RECEIVED", "DROPPED ON THE WAY OUT", "AND IN")
        for share in found.shares:
            lost = share.dropped
            _row(
                table, share.bridge, share.name, in_words(share.sent_rate), in_words(share.received_rate),
                _packets(share.sent_packets, share.sent_bytes), _packets(share.received_packets, share.received_bytes),
                _packets(lost.sent_packets, lost.sent_bytes), _packets(lost.received_packets, lost.received_bytes),
            )  # fmt: skip
        parts.append(table)
        parts.append(_text("jobs and shares are asked of the switches at different times: their sums need not agree"))
    return Group(*parts)


@cli.command()
@click.option("--follow", is_flag=True, help="Go on, until interrupted.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice([kind.value for kind in Kind]), help="Repeatable.")
@click.option("--since", metavar="CURSOR", help="Only what came after this `cursor` of an answer before (--json).")
@click.option("--json", "as_json", is_flag=True, help="What the API answered; with --follow each event on a line.")
@click.pass_obj
def events(client: Client, follow: bool, kinds: tuple[str, ...], since: str | None, as_json: bool) -> None:
    """Tell what has happened: each event with what to do about it.

    Of the controller that is asked; where there are several, each tells its own.
    """
    wanted = frozenset(kinds or [kind.value for kind in Kind])

    def ask(cursor: str | None, wait: float) -> EventList:
        query = {"wait": f"{wait:g}", **({} if cursor is None else {"since": cursor})}
        found = replace(client, patience=client.patience + wait).get("/v1/events", EventList, **query)
        return found.model_copy(update={"events": [one for one in found.events if not kinds or one.kind in wanted]})

    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(ask, since, as_json)
        return
    found = ask(since, 0)
    _show(found, as_json, lambda console: _tell_events(console, found))


def _tell_events(console: Console, found: EventList) -> None:
    for line in [*gap(found), *(line for one in found.events for line in in_lines(one))]:
        console.print(_text(line))


def _follow(ask: Callable[[str | None, float], EventList], cursor: str | None, as_json: bool) -> None:
    console = Console(highlight=False, soft_wrap=True)
    wait = 0.0
    while True:
        try:
            found = ask(cursor, wait)
        except Failure as failure:
            # Who follows wants to see a restart of the controller, and what comes after it.
            click.echo(f"larkctl: {failure}", err=True)
            time.sleep(2)
            continue
        if as_json:
            for line in gap(found):
                click.echo(f"larkctl: {line}", err=True)
            for one in found.events:
                click.echo(one.model_dump_json())
        else:
            _tell_events(console, found)
        sys.stdout.flush()
        cursor, wait = found.cursor, 25.0


def main(argv: list[str] | None = None) -> None:
    try:
        cli(argv, prog_name="larkctl")
    except Failure as failure:
        click.echo(f"larkctl: {failure}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
