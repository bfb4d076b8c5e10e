"""All files that the controller reads at its start, checked together, so that nothing starts on half of them.

Invariants: a fault in any file raises, with every fault that was found; what is allowed and probably not meant is
logged as a warning wherever files are read (`check`, start, SIGHUP), and stops nothing.
"""

from __future__ import annotations

import datetime
import ipaddress
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from policies.ads import BadAds, JobAd, names_in, read_ads, read_config_dump
from policies.language import PolicyError, Problem, attributes_read, check_together, load_policy, load_site
from policies.lint import lint
from policies.model import Policy, Role, Site
from ryu_apps.config import Config, ConfigError, load_config
from ryu_apps.rest.auth import Tokens, load_tokens
from ryu_apps.tls import ServerTls, TlsError, server_tls

LOG = logging.getLogger("lark")


@dataclass(frozen=True, slots=True)
class Files:
    """Everything that is read at start, checked as a whole."""

    config: Config
    site: Site
    policy: Policy
    tokens: Tokens
    openflow_tls: ServerTls | None = None
    api_tls: ServerTls | None = None
    warnings: tuple[str, ...] = ()
    """What is allowed and probably not meant; logged already."""


@dataclass(frozen=True, slots=True)
class Pool:
    """What is known of the HTCondor pool that the policy is for; None: not known. Files are read when it is checked."""

    ads: Path | None = None
    """Output of `condor_q -long` or `-json`."""
    config: tuple[Path, ...] = ()
    """Outputs of `condor_config_val -dump`, of one machine or several; the lists below go before what they say."""
    startd_job_attrs: str | None = None
    immutable_job_attrs: str | None = None


def read_files(path: Path, pool: Pool | None = None) -> Files:
    """Raises ConfigError with every fault that was found. Logs the warnings; `pool`: compares the policy with it."""
    config = load_config(path)
    faults: list[str] = []
    site = policy = tokens = None
    tls: list[ServerTls | None] = []
    for files, everyone in ((config.openflow_tls, True), (config.api_tls, False)):
        try:
            tls.append(None if files is None else server_tls(files, everyone=everyone))
        except TlsError as problem:
            faults += [str(problem)] if str(problem) not in faults else []
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
    openflow_tls, api_tls = tls
    findings = _lint(policy, site, pool or Pool())
    warnings = (*_endings(openflow_tls, api_tls), *_warnings(config, site, tokens), *map(str, findings))
    for warning in warnings:
        LOG.warning("%s", warning)
    return Files(config, site, policy, tokens, openflow_tls, api_tls, warnings)


def _endings(*several: ServerTls | None) -> list[str]:
    now = datetime.datetime.now(datetime.UTC)
    found = [warning for one in several if one is not None for warning in one.warnings(now)]
    return list(dict.fromkeys(found))


def _lint(policy: Policy, site: Site, pool: Pool) -> list[Problem]:
    ads: list[JobAd] = []
    if pool.ads is not None:
        try:
            ads = read_ads(_text(pool.ads), attributes_read(policy))
        except BadAds as problem:
            raise ConfigError(f"{pool.ads}: {problem}") from problem
    lists: dict[str, frozenset[str]] = {}
    for path in pool.config:
        found = read_config_dump(_text(path))
        if not found:
            raise ConfigError(f"{path}: no list of job attributes in it; give the output of condor_config_val -dump")
        lists |= found
    for name, told in (("STARTD_JOB_ATTRS", pool.startd_job_attrs), ("IMMUTABLE_JOB_ATTRS", pool.immutable_job_attrs)):
        if told is not None:
            lists[name] = names_in(told)
    return lint(
        policy,
        site,
        ads=ads,
        startd_job_attrs=lists.get("STARTD_JOB_ATTRS"),
        immutable_job_attrs=lists.get("IMMUTABLE_JOB_ATTRS"),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as problem:
        raise ConfigError(f"cannot read {path}: {problem.strerror}") from problem


def _warnings(config: Config, site: Site, tokens: Tokens) -> Iterator[str]:
    for node in sorted(tokens.nodes - set(site.nodes)):
        yield f"{config.tokens.name} has a token for node {node}, which site.yaml does not know"
    for bridge_name in sorted(tokens.bridges - {b.name for b in site.bridges.values() if Role.BORDER in b.roles}):
        yield f"{config.tokens.name} has a token for border {bridge_name}, which site.yaml does not know as one"
    host, port = config.openflow
    if config.openflow_tls is None and not ipaddress.ip_address(host).is_loopback:
        for bridge in site.bridges.values():
            if bridge.address is None:
                yield (
                    f"{bridge.place}: bridge {bridge.name} has no `address`: whoever reaches {host} port {port} first "
                    "with its datapath id takes its place; give `openflow` its `tls`, or the bridge the address that "
                    "its connection comes from"
                )
