"""`lark-agent doctor`: looks at what this node needs for jobs' networks, says what is wrong and what mends it.

Invariants: nothing is changed but in a scratch network namespace that goes with its thread; a section that cannot be
looked at is a fault of its own, never silence; sections do not depend on one another, so that one dead daemon does
not hide what else is wrong.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ovs_agent import doctor_condor, doctor_controller, doctor_node, doctor_switch, leak_scan
from ovs_agent.config import AgentConfig, read_token
from ovs_agent.controller_client import ControllerClient
from ovs_agent.controller_tls import ControllerTls
from ovs_agent.errors import AgentError
from ovs_agent.findings import Finding, exit_status, fault, warning
from ovs_agent.leaks import Verdict
from ovs_agent.ovsdb import Ovsdb

log = logging.getLogger(__name__)
PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Patient:
    """The node, as its configuration describes it."""

    config: AgentConfig
    db: Ovsdb


Section = Callable[[Patient], Awaitable[list[Finding]]]


async def leaks(patient: Patient) -> list[Finding]:
    try:
        controller = client(patient.config)
    except AgentError as e:
        found = judged(patient.config, await leak_scan.settled(patient.config, patient.db, None))
        return [*found, unseen("leaks", f"{leak_scan.CONTROLLER}: {e}")]
    try:
        return judged(patient.config, await leak_scan.settled(patient.config, patient.db, controller))
    finally:
        await controller.close()


def client(config: AgentConfig) -> ControllerClient:
    """With the agent's own identity. Raises ConfigError."""
    token = None if config.controller.token_file is None else read_token(config.controller.token_file)
    return ControllerClient(config.node, config.controller.urls, token, ControllerTls(config.controller).context)


def judged(config: AgentConfig, verdict: Verdict) -> list[Finding]:
    """A verdict on leaks as findings."""
    file = config.file
    clean = (
        f"restart lark-agent: it removes what belongs to nobody; or stop it and run lark-agent cleanup --config {file}"
    )
    found = [
        fault(
            f"leaks.{leak.kind}", f"{leak.what}: {leak.why}", "what is left of a job may reach what no job may", clean
        )
        for leak in verdict.leaks
    ]
    found += [
        fault(
            f"leaks.lacking-{leak.kind}",
            f"{leak.what}: {leak.why}",
            "a running job has no working network",
            "remove and submit the job again (condor_rm), or let it run without; the agent's log may say who took it",
        )
        for leak in verdict.lacking
    ]
    found += [
        warning(
            "leaks.waiting",
            text,
            "its address is not used again until then: with many of these a node runs out of addresses",
            "is the controller reachable, and every bridge that it names as pending (larkctl bridges)?",
        )
        for text in verdict.waiting
    ]
    return found + [unseen("leaks", text) for text in verdict.trouble]


def unseen(section: str, trouble: str) -> Finding:
    return fault(
        f"{section}.unseen", trouble, "what was not looked at may be wrong", "mend this first, then look again"
    )


SECTIONS: Mapping[str, Section] = {
    "agent": lambda p: doctor_controller.agent(p.config),
    "identity": lambda p: doctor_controller.identity(p.config),
    "controller": lambda p: doctor_controller.controllers(p.config),
    "switch": lambda p: doctor_switch.examine(p.config, p.db),
    "kernel": lambda p: doctor_node.kernel(p.config),
    "guard": lambda p: doctor_node.guard(p.config),
    "helper": lambda p: doctor_node.helper(p.config),
    "lanes": lambda p: doctor_node.lanes(p.config),
    "condor": lambda p: doctor_condor.examine(p.config),
    "leaks": leaks,
}


async def examine(config: AgentConfig, only: Iterable[str] = ()) -> list[Finding]:
    """Every section, or those named."""
    patient = Patient(config, Ovsdb(config.bridge.ovsdb, config.bridge.rundir))
    names = list(only) or list(SECTIONS)
    results = await asyncio.gather(*(_section(name, patient) for name in names))
    return told_once([finding for found in results for finding in found])


CAUSES = {
    f"{leak_scan.SWITCH}:": ("switch.database",),
    f"{leak_scan.CONTROLLER}:": ("controller.reach", "controller.refuses", "identity.token", "identity.certificate"),
}
"""Why leaks could not be looked for, by how that text begins: findings that tell the same with what mends it."""


def told_once(findings: list[Finding]) -> list[Finding]:
    """Without what was not looked at because of something that is told as a finding of its own."""
    checks = {finding.check for finding in findings}

    def told(finding: Finding) -> bool:
        return finding.check == "leaks.unseen" and any(
            finding.what.startswith(begin) and not checks.isdisjoint(causes) for begin, causes in CAUSES.items()
        )

    return [finding for finding in findings if not told(finding)]


async def _section(name: str, patient: Patient) -> list[Finding]:
    try:
        return await asyncio.wait_for(SECTIONS[name](patient), PATIENCE)
    except TimeoutError:
        trouble = f"not done within {PATIENCE:g} s"
    except (AgentError, OSError) as e:
        trouble = str(e)
    return [unseen(name, trouble)]


def document(config: AgentConfig, findings: list[Finding]) -> dict[str, Any]:
    """For programs."""
    return {
        "node": config.node,
        "status": exit_status(findings),
        "findings": [asdict(finding) for finding in findings],
    }
