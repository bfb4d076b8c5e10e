"""All files that the controller reads at its start, checked together, so that nothing starts on half of them."""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass
from pathlib import Path

from policies.language import PolicyError, check_together, load_policy, load_site
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


def read_files(path: Path) -> Files:
    """Raises ConfigError with every fault that was found."""
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
    for node in sorted(tokens.nodes - set(site.nodes)):
        LOG.warning("%s has a token for node %s, which site.yaml does not know", config.tokens.name, node)
    if not ipaddress.ip_address(config.openflow[0]).is_loopback:
        for bridge in site.bridges.values():
            if bridge.address is None:
                LOG.warning(
                    "%s: bridge %s has no `address`: whoever reaches %s port %d first with its datapath id takes its "
                    "place; give the address that its OpenFlow connection comes from",
                    bridge.place, bridge.name, *config.openflow,
                )  # fmt: skip
    return Files(config, site, policy, tokens)
