"""SIGHUP: policy, tokens and certificates are read again, and take effect as a whole or not at all.

Unlike `daemon`, which uses it, this does not make the process green.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from policies.events import Kind
from ryu_apps.config import ConfigError
from ryu_apps.files import Files, read_files
from ryu_apps.refusals import Refused
from ryu_apps.store.store import StoreError
from ryu_apps.tls import TlsDoor

if TYPE_CHECKING:
    from ryu_apps.controller import Controller
    from ryu_apps.rest.api import Api

LOG = logging.getLogger("lark")


class Doors:
    """The TLS of both listeners: what a reload replaces."""

    def __init__(self, files: Files) -> None:
        self.openflow = None if files.openflow_tls is None else TlsDoor(files.openflow_tls)
        self.api = None if files.api_tls is None else TlsDoor(files.api_tls)

    def same_kind(self, files: Files) -> bool:
        """Is there TLS where there was, and none where there was none?"""
        return (files.openflow_tls is None, files.api_tls is None) == (self.openflow is None, self.api is None)

    def replace(self, files: Files) -> None:
        """From now on new connections get these certificates; open ones keep theirs."""
        for door, tls in ((self.openflow, files.openflow_tls), (self.api, files.api_tls)):
            if door is not None and tls is not None:
                door.tls = tls


def reload(files: Files, controller: Controller, api: Api, doors: Doors) -> None:
    """Policy, tokens and certificates anew, as a whole; whatever is wrong leaves what is in force."""
    disk = controller.on_disk
    try:
        disk.policy = _reload(files, controller, api, doors)
        disk.refused = ""
    except ConfigError as fault:
        disk.refused, *others = str(fault).splitlines()
        for line in others:
            LOG.error("not reloaded: %s", line)
        more = f" (and {len(others)} more, in the log)" if others else ""
        controller.events.tell(Kind.POLICY_REFUSED, f"not reloaded: {disk.refused}{more}")
    controller.metrics.reloaded(not disk.refused)


def _reload(files: Files, controller: Controller, api: Api, doors: Doors) -> Path:
    """Where the policy was read that is in force now. Raises ConfigError."""
    new = read_files(files.config.path)
    if new.site != files.site:
        raise ConfigError("site.yaml has changed, and that needs a restart of lark-controller")
    if not doors.same_kind(new):
        raise ConfigError("`tls` came or went in controller.yaml, and that needs a restart of lark-controller")
    api.tokens = new.tokens
    doors.replace(new)
    try:
        if new.policy.digest != controller.world.policy.digest:
            controller.reload(new.policy)
    except (StoreError, Refused) as problem:
        raise ConfigError(f"the policy: {problem}") from problem
    policy = new.policy
    text = f"reloaded: policy {policy.digest[:12]} (mode {policy.mode.value}), {len(new.tokens)} tokens"
    controller.events.tell(Kind.POLICY_LOADED, text)
    return new.config.policy
