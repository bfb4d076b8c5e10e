"""`lark-controller store …`: back-up, restore and upgrade of the store, and the members of a cluster.

Invariants: a file that is there is replaced only with --force; exit codes as of `lark-controller` itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from ryu_apps.stop import Stop, faults_in_files

_FILE = click.Path(dir_okay=False, path_type=Path)
_config = click.option("--config", "config", required=True, type=_FILE, help="controller.yaml")
_force = click.option("--force", is_flag=True, help="Replace what is there.")
_directory = click.option(
    "--dir", "directory", required=True, type=click.Path(file_okay=False, path_type=Path), help="the member's directory"
)
_raft = click.option("--raft", required=True, help="where the other members reach this one, as ssl:ADDRESS:PORT")


@click.group()
def store() -> None:
    """The database that the controller keeps: back-up, restore, and a cluster of servers."""


@store.command()
@_config
@_force
@click.argument("file", type=_FILE)
def backup(config: Path, force: bool, file: Path) -> None:
    """Write everything stored to FILE; the controller may run or not."""
    from ryu_apps.config import load_config
    from ryu_apps.store import backup as doing

    with faults_in_files(), _faults():
        click.echo(doing.backup(load_config(config).store, file, force=force))


@store.command()
@_config
@_force
@click.argument("file", type=_FILE)
def restore(config: Path, force: bool, file: Path) -> None:
    """Put the back-up FILE in place of what is stored; no controller may run."""
    from ryu_apps.config import load_config
    from ryu_apps.store import backup as doing

    with faults_in_files(), _faults():
        click.echo(doing.restore(load_config(config).store, file, force=force))


@store.command()
@_config
def upgrade(config: Path) -> None:
    """Convert a cluster to this program's schema. Controllers that run go on; make a back-up first."""
    from ryu_apps.config import load_config
    from ryu_apps.store import backup as doing

    with faults_in_files(), _faults():
        click.echo(doing.upgrade(load_config(config).store))


@store.command()
@_config
@click.argument("version")
def downgrade(config: Path, version: str) -> None:
    """Convert what is stored to the schema VERSION of an earlier lark-controller, which is to be installed again.

    No controller may run. An embedded database as it was is kept beside it; make a back-up of a cluster first."""
    from ryu_apps.config import load_config
    from ryu_apps.store import downgrade as doing

    with faults_in_files(), _faults():
        click.echo(doing.downgrade(load_config(config).store, version))


@store.command()
@_directory
@_raft
def create(directory: Path, raft: str) -> None:
    """Make the first member of a new cluster."""
    from ryu_apps.store import member

    with _faults():
        click.echo(f"{member.create(directory, raft)}: first member of a new cluster; run it with `store serve`")


@store.command()
@_directory
@_raft
@click.option("--member", "members", required=True, multiple=True, help="the --raft of a member there is; repeat it")
def join(directory: Path, raft: str, members: tuple[str, ...]) -> None:
    """Make a further member of a cluster; it joins when it is first served."""
    from ryu_apps.store import member

    with _faults():
        click.echo(f"{member.join(directory, raft, members)}: joins when it is run with `store serve`")


@store.command()
@_directory
@click.option("--listen", required=True, multiple=True, help="where controllers connect, as ssl:ADDRESS:PORT")
@click.option("--private-key", type=_FILE)
@click.option("--certificate", type=_FILE)
@click.option("--ca", type=_FILE)
def serve(
    directory: Path,
    listen: tuple[str, ...],
    private_key: Path | None,
    certificate: Path | None,
    ca: Path | None,
) -> None:
    """Run a member until SIGTERM."""
    from ryu_apps.store import member
    from ryu_apps.store.jsonrpc import Tls

    tls = None
    if private_key and certificate and ca:
        tls = Tls(private_key, certificate, ca)
    elif private_key or certificate or ca:
        raise click.UsageError("--private-key, --certificate and --ca go together")
    with _faults():
        member.serve(directory, listen, tls)


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    from ryu_apps.store.store import StoreError

    try:
        yield
    except StoreError as problem:
        raise Stop(str(problem), 1) from problem
