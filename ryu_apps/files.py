"""All files that the controller reads at its start, checked together, so that nothing starts on half of them.

Invariants: a fault in any file raises, with every fault that was found; what is allowed and probably not meant is
logged as a warning wherever files are read (`check`, start, SIGHUP), and stops nothing.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from policies.language import PolicyError, check_together, load_policy, load_site
from policies.lint import lint
from policies.model import Policy, Site
from ryu_apps.config import Config, ConfigError, load_config
from ryu_apps.rest.auth import Tokens, load_tokens

LOG = logging.getLogger("lark")


@dataclass(frozen=True, slots=True)
class Files:
    """Everything that is read at start, checked as a whole."""

    config: Config
    site: Site
    policy: Policy
    tokens: Tokens
    warnings: tuple[str, ...] = ()
    """What is allowed and probably not meant; logged already."""


def read_files(path: Path) -> Files:
    """Raises ConfigError with every fault that was found. Logs the warnings."""
    config = load_config(path)
    faults: list[str] = []
    site = policy = tokens = None
    try:
        site = load_site(config.site)
    except PolicyError as problem:
        faults.append(str(problem))
    try:
        policy = load_policy(config.policy)
    except PolicyError as problem:
        faults.append(str(problem))
    try:
        tokens = load_tokens(config.tokens)
    except ConfigError as problem:
        faults.append(str(problem))
    if site is not None and policy is not None:
        try:
            check_together(policy, site)
        except PolicyError as problem:
            faults.append(str(problem))
    if site is None or policy is None or tokens is None or faults:
        raise ConfigError("\n".join(faults))
    warnings = tuple(_warnings(config, site, policy, tokens))
    for warning in warnings:
        LOG.warning("%s", warning)
    return Files(config, site, policy, tokens, warnings)


def _warnings(config: Config, site: Site, policy: Policy, tokens: Tokens) -> Iterator[str]:
    for node in sorted(tokens.nodes - set(site.nodes)):
        yield f"{config.tokens.name} has a token for node {node}, which site.yaml does not know"
    host, port = config.openflow
    if not ipaddress.ip_address(host).is_loopback:
        for bridge in site.bridges.values():
            if bridge.address is None:
                yield (
                    f"{bridge.place}: bridge {bridge.name} has no `address`: whoever reaches {host} port {port} first "
                    "with its datapath id takes its place; give the address that its OpenFlow connection comes from"
                )
    yield from map(str, lint(policy, site))
