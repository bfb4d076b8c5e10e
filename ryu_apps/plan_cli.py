"""`lark-controller plan`: what a policy would change for the attempts that run, before it is put in force.

Invariants: it reads the store and files, and writes nothing; exit codes as of `lark-controller` itself (a plan is 0,
whatever it says).
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ryu_apps.stop import Stop, faults_in_files

if TYPE_CHECKING:
    from ryu_apps.store.opening import StoreSettings
    from ryu_apps.store.store import Snapshot

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--config", "path", required=True, type=_FILE, help="controller.yaml")
@click.option(
    "--policy",
    "new_policy",
    required=True,
    type=click.Path(path_type=Path),
    help="The policy to be compared with the one that controller.yaml names: a file or a directory.",
)
@click.option("--site", "new_site", type=_FILE, help="A new site.yaml with it (default: the one there is).")
@click.option("--json", "as_json", is_flag=True, help="For programs; with every attempt's id.")
def plan(path: Path, new_policy: Path, new_site: Path | None, as_json: bool) -> None:
    """Tell what another policy would change for the attempts that run; change nothing.

    Each is decided anew by both policies: who gains or loses which service, class, rate, share or slice, and who would
    be held. Attempts are read from the store, so it is to run where the controller does, as root or its user.
    """
    from policies.language import check_together, load_policy, load_site
    from ryu_apps.config import load_config
    from ryu_apps.planning import planned

    with faults_in_files(), _faults_in_policies():
        config = load_config(path)
        site = load_site(new_site or config.site)
        old, new = load_policy(config.policy), load_policy(new_policy)
        check_together(new, site)
    found = planned(_stored(config.store), old, new, site)
    if found.decided_otherwise:
        click.echo(
            f"lark-controller: {found.decided_otherwise} attempts were decided by another policy than {config.policy} "
            "is now: what it would change for them is told as if that were in force (was it edited, and not reloaded?)",
            err=True,
        )
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        for line in found.lines():
            click.echo(line)


def _stored(settings: StoreSettings) -> Snapshot:
    """What is stored now. Raises Stop."""
    from ryu_apps.store.ovsdb import OvsdbStore
    from ryu_apps.store.store import StoreError

    remotes = list(settings.servers)
    if settings.embedded:
        place = settings.state_dir.resolve() / "lark.sock"
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(place))
        except OSError as problem:
            text = f"{place}: {problem.strerror}: a plan is about attempts that run; does lark-controller run here?"
            raise Stop(text, 1) from problem
        remotes = [f"unix:{place}"]
    try:
        reader = OvsdbStore(remotes, name=None, tls=settings.tls)
        try:
            return reader.load()
        finally:
            reader.close()
    except StoreError as problem:
        raise Stop(str(problem), 1) from problem


@contextlib.contextmanager
def _faults_in_policies() -> Iterator[None]:
    from policies.language import PolicyError

    try:
        yield
    except PolicyError as problem:
        raise Stop(str(problem), 2) from problem
