"""The doctor's look at the agent itself, at its identity (token, certificates), at the controllers, and at the clock.

Invariants: no request changes anything at the controller, least of all a lease: a node whose agent is dead must not be
kept alive by somebody who looks. Tokens and keys are never shown.
"""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import socket
import ssl
from pathlib import Path

import httpx
from cryptography import x509
from pydantic import ValidationError

from ovs_agent.config import AgentConfig, ConfigError, is_loopback, read_token
from ovs_agent.controller_client import meaning
from ovs_agent.controller_tls import ControllerTls, tls_words
from ovs_agent.drain import Drain
from ovs_agent.findings import Finding, fault, warning
from policies.wire import NodeStatus

SOON = datetime.timedelta(days=30)
CLOCK_FAULT, CLOCK_WARNING = 60.0, 5.0
"""Seconds between this node's clock and the controller's. Certificates and HTCondor's tokens need the same time."""


async def agent(config: AgentConfig) -> list[Finding]:
    """Does it answer, and could it serve?"""
    said = await asyncio.to_thread(ping, config.socket)
    if said == "ok":
        return []
    if (order := Drain(config.state_dir).order()) is not None:
        what = f"the node is drained since {order.since}{': ' + order.reason if order.reason else ''}"
        mend = f"lark-agent drain --config {config.file} --undo, when it is to take jobs again"
        return [warning("agent.drained", what, "no job is matched to it, as somebody wished", mend)]
    if said.startswith("hold "):
        why = "HasLarkNetwork is false on this node: no job is matched to it"
        return [fault("agent.ping", said.partition(" ")[2].partition(" ")[2], why, "the text says what is missing")]
    why = "no job starts here; running ones lose their network when the lease is over"
    mend = "systemctl start lark-agent; journalctl -u lark-agent says why it ended"
    return [fault("agent.ping", said, why, mend)]


def ping(path: Path) -> str:
    """The agent's answer, or why there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.settimeout(5)
        try:
            s.connect(str(path))
            s.send(b"LARK1 ping")
            return s.recv(1024).decode(errors="replace") or "the agent closed the connection"
        except OSError as e:
            return f"the agent does not answer on {path}: {e.strerror or e}"


async def identity(config: AgentConfig) -> list[Finding]:
    """Token and certificates: there, closed to others, and for how long."""
    section = config.controller
    found = []
    why = "the agent does not start"
    if section.token_file is not None:
        try:
            read_token(section.token_file)
        except ConfigError as e:
            new = f"lark-controller token --role agent --node {config.node}"
            mend = f"chmod 600 {section.token_file} (and chown root); or make a new one: {new}"
            found.append(fault("identity.token", str(e), why, mend))
    try:
        ControllerTls(section)
    except ConfigError as e:
        mend = f"copy ca.crt of the controller's CA (lark-controller pki) to {section.ca_file}"
        if section.certificate_file is not None:
            mend = f"lark-controller pki agent {config.node}, copy both files here, and ca.crt"
        found.append(fault("identity.certificate", str(e), why, mend))
        return found
    now = datetime.datetime.now(datetime.UTC)
    for name, path in (("certificate", section.certificate_file), ("ca", section.ca_file)):
        if path is not None:
            found += expiry(name, path, path.read_bytes(), now, config.node)
    if section.allow_plaintext and any(u.startswith("http:") and not is_loopback(u) for u in section.urls):
        what = "controller.allow-plaintext: the token travels in the clear"
        mend = "tls in controller.yaml, https in controller.urls (docs/operations.md)"
        found.append(warning("identity.plaintext", what, "who reads it can speak for this node", mend))
    return found


def expiry(name: str, path: Path, pem: bytes, now: datetime.datetime, node: str) -> list[Finding]:
    """Every certificate of a file. `now` is aware of its time zone."""
    found = []
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError as e:
        return [fault(f"identity.{name}", f"{path}: {e}", "the agent does not start", "copy the file again")]
    renew = f"lark-controller pki renew agent-{node}, copy it here, systemctl reload lark-agent"
    mend = renew if name == "certificate" else "copy the controller's ca.crt here; systemctl restart lark-agent"
    for certificate in certificates:
        ends = certificate.not_valid_after_utc
        if ends <= now:
            what = f"{path} ended on {ends:%Y-%m-%d}"
            found.append(fault(f"identity.{name}", what, "no call to the controller is answered", mend))
        elif certificate.not_valid_before_utc > now:
            what = f"{path} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC only"
            found.append(
                fault(f"identity.{name}", what, "no call to the controller is answered", "is this node's clock right?")
            )
        elif ends <= now + SOON:
            what = f"{path} ends on {ends:%Y-%m-%d}"
            found.append(warning(f"identity.{name}", what, "then no job starts here", mend))
    return found


async def controllers(config: AgentConfig) -> list[Finding]:
    """Every controller is asked about this node, and what time it is there."""
    try:
        context = ControllerTls(config.controller).context
        token = None if config.controller.token_file is None else read_token(config.controller.token_file)
    except ConfigError:
        return []  # `identity` says it
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(headers=headers, timeout=10, verify=context, trust_env=False) as http:
        results = await asyncio.gather(*(_controller(config, http, url) for url in config.controller.urls))
    return [finding for found in results for finding in found]


async def _controller(config: AgentConfig, http: httpx.AsyncClient, url: str) -> list[Finding]:
    try:
        response = await http.get(f"{url}/v1/nodes/{config.node}")
    except (httpx.HTTPError, ssl.SSLError, OSError) as e:
        what = f"{url} cannot be reached: {tls_words(e) or str(e) or type(e).__name__}"
        mend = "is lark-controller running there, and does nothing block its port?"
        return [fault("controller.reach", what, "if no controller answers, jobs are held (102)", mend)]
    found = clock(url, response.headers.get("Date", ""), datetime.datetime.now(datetime.UTC))
    if response.status_code != 200:
        what = f"{url} refuses this node: {meaning(response.status_code, response.content)}"
        why, mend = (
            "no job starts here",
            f"lark-controller token --role agent --node {config.node}, or is the node in site.yaml?",
        )
        return [*found, fault("controller.refuses", what, why, mend)]
    try:
        node = NodeStatus.model_validate_json(response.content)
    except ValidationError as e:
        what = f"{url} answers with nonsense: {str(e).splitlines()[0]}"
        return [*found, fault("controller.reach", what, "jobs are held (102)", "is this the controller's URL?")]
    if node.spec is None or not node.lease_left:
        what = f"{url} has no lease for node {config.node}"
        why = "no job starts here, and what runs has no network"
        return [*found, fault("controller.lease", what, why, "start lark-agent; its log says why it cannot register")]
    return found


def clock(url: str, date: str, now: datetime.datetime) -> list[Finding]:
    """This node's clock against an answer's Date (whole seconds). `now` is aware of its time zone."""
    try:
        there = email.utils.parsedate_to_datetime(date)
    except ValueError:
        return []
    apart = abs((now - there).total_seconds())
    if apart <= CLOCK_WARNING:
        return []
    what = f"this node's clock and that of {url} are {apart:.0f} s apart"
    why = "certificates and HTCondor's tokens seem to have ended, or not to have begun; logs cannot be compared"
    mend = "run chrony (or another NTP client) on both machines"
    return [(fault if apart > CLOCK_FAULT else warning)("clock.apart", what, why, mend)]
