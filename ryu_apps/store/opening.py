"""The store as `controller.yaml` asks for it: a server of our own, or a cluster of servers that others run.

Invariants: both modes are the same store from here on; one state directory serves one controller at a time; a
controller does not begin while another that lives uses the same cluster under the same name.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ryu_apps.store.jsonrpc import Tls
from ryu_apps.store.ovsdb import OvsdbStore
from ryu_apps.store.server import EmbeddedServer, lock_state_dir
from ryu_apps.store.store import StoreError

LOG = logging.getLogger("lark.store")
LIFE_SECONDS = 5.0
"""A controller whose beat has not grown in so long does not live. It beats once a second."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """`servers`: of the cluster; none: a server of our own. `name`: this controller's. `api`: where it is reached."""

    state_dir: Path
    servers: tuple[str, ...]
    name: str
    api: str
    tls: Tls | None

    @property
    def embedded(self) -> bool:
        return not self.servers


class OpenStore:
    """`begin()` and `open()` once, `look_after()` about once a second, `close()` at the end."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._server: EmbeddedServer | None = None
        self._lock: int | None = None
        self._store: OvsdbStore | None = None

    def begin(self) -> None:
        """Take the state directory, and let a server of our own begin to start. Raises StoreError."""
        settings = self._settings
        if settings.embedded:
            self._server = EmbeddedServer(settings.state_dir)
            self._server.begin()
        else:
            self._lock = lock_state_dir(settings.state_dir)

    def open(self) -> OvsdbStore:
        """Raises StoreError."""
        settings = self._settings
        if self._server is None and self._lock is None:
            self.begin()
        if self._server is not None:
            self._server.wait()
            remotes: Sequence[str] = [self._server.remote]
        else:
            remotes = settings.servers
            living = living_controllers(settings, settings.name)
            if living:
                raise StoreError(
                    f"{' and '.join(living)} uses the same store under this controller's name, and lives: give each "
                    "controller a name of its own (store.name in controller.yaml)"
                )
        alone = settings.embedded
        self._store = OvsdbStore(remotes, name=settings.name, alone=alone, api=settings.api, tls=settings.tls)
        return self._store

    def look_after(self) -> None:
        if self._server is not None:
            self._server.ensure()

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def living_controllers(settings: StoreSettings, name: str | None = None) -> list[str]:
    """Names and places of the other controllers on a cluster (of this name) whose beat grows. Raises StoreError."""
    reader = OvsdbStore(settings.servers, name=None, tls=settings.tls)
    try:
        # Our own name's row too: another machine may have been given the same name by mistake. It does not count as
        # living when it is our own earlier self, which held the lock of our state directory and can only be dead.
        before = {row.place: row.beat for row in reader.controllers}
        own_host = f"{os.uname().nodename} pid "
        strangers = {
            row.place
            for row in reader.controllers
            if (row.name != settings.name or not row.place.startswith(own_host)) and name in (None, row.name)
        }
        until = time.monotonic() + LIFE_SECONDS
        while strangers and time.monotonic() < until:
            found = [
                f"{row.name} ({row.place})"
                for row in reader.controllers
                if row.place in strangers and row.beat > before[row.place]
            ]
            if found:
                return found
            time.sleep(0.2)
        return []
    finally:
        reader.close()
