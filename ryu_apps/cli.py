"""`lark-controller`: run the controller, check its files, make tokens and certificates.

Invariants: nothing is started before every file is known to be right; only the port for switches is open before, and
nothing said on it. The engine is imported before anything else of
the daemon: it makes the process green, and can do so cleanly only while little is loaded; hence imports in functions.
Exit codes: 0 a clean end, 1 something failed while running, 2 a file or an option is wrong.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Sized
from pathlib import Path

import click

from ryu_apps.plan_cli import plan
from ryu_apps.stop import Stop, faults_in_files
from ryu_apps.store_cli import store
from ryu_apps.switch_port import open_early
from ryu_apps.version import version_option

ENGINES = ["os-ken", "ryu"]
LEVELS = ["debug", "info", "warning", "error"]
ROLES = ["agent", "border", "viewer", "admin"]


class _Commands(click.Group):
    """The commands below, and `pki`, whose modules are loaded only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "pki"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "pki":
            return super().get_command(ctx, cmd_name)
        from ryu_apps.pki_cli import pki

        return pki


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@version_option("lark-controller")
def cli() -> None:
    """Lark's OpenFlow controller: the network as a managed resource of HTCondor."""


cli.add_command(store)
cli.add_command(plan)

config_option = click.option(
    "--config", "path", required=True, type=click.Path(dir_okay=False, path_type=Path), help="controller.yaml"
)


@cli.command()
@config_option
@click.option("--engine", type=click.Choice(ENGINES), help="OpenFlow framework (default: as configured).")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
def run(path: Path, engine: str | None, log_level: str) -> None:
    """Run the controller until SIGTERM or SIGINT. SIGHUP reads policy, tokens and certificates again."""
    # Hundreds of thousands of objects come and none goes: looking for garbage would take a quarter of the start.
    gc.disable()
    start_log(log_level)
    data = _unchecked(path)
    listener = open_early(data)
    os.environ["LARK_ENGINE"] = name = engine or configured_engine(data)
    with engine_faults(name):
        from ryu_apps.engine import EngineError  # isort: skip
    from ryu_apps.files import read_files

    with faults_in_files():
        files = read_files(path)
    from ryu_apps.daemon import serve
    from ryu_apps.store.store import StoreError

    try:
        serve(files, listener)
    except (EngineError, StoreError) as problem:
        raise Stop(str(problem), 1) from problem


_input_file = click.Path(dir_okay=False, path_type=Path)


@cli.command()
@config_option
@click.option("--strict", is_flag=True, help="A warning is a failure too (exit code 1).")
@click.option("--ads", type=_input_file, help="Output of condor_q -long or -json: what never holds, who would be held.")
@click.option(
    "--condor-config",
    type=_input_file,
    multiple=True,
    help="Output of condor_config_val -dump; given twice: of an access point and of an execution point.",
)
@click.option("--startd-job-attrs", metavar="LIST", help="STARTD_JOB_ATTRS of the execution points.")
@click.option("--immutable-job-attrs", metavar="LIST", help="IMMUTABLE_JOB_ATTRS of the access points.")
def check(
    path: Path,
    strict: bool,
    ads: Path | None,
    condor_config: tuple[Path, ...],
    startd_job_attrs: str | None,
    immutable_job_attrs: str | None,
) -> None:
    """Check controller.yaml, site, policy and tokens; start nothing.

    What is allowed and probably not meant is a warning, on standard error, with file and line. With the options the
    policy is also compared with the pool that it is for.
    """
    from ryu_apps.files import Pool, read_files

    start_log("warning")
    with faults_in_files():
        files = read_files(path, Pool(ads, condor_config, startd_job_attrs, immutable_job_attrs))
    site, policy = files.site, files.policy
    click.echo(
        f"{path.name}: good. Site {site.name}: {_count(site.nodes, 'node')}, {_count(site.bridges, 'bridge')}. "
        f"Policy {policy.digest[:12]} ({policy.mode.value}): {_count(policy.services, 'service')}, "
        f"{_count(policy.groups, 'group')}, {_count(policy.grants, 'grant')}. {_count(files.tokens, 'token')}."
    )
    if strict and files.warnings:
        raise Stop(f"{_count(files.warnings, 'warning')}, and --strict takes none", 1)


@cli.command()
@click.option("--tokens", "path", required=True, type=click.Path(dir_okay=False, path_type=Path), help="tokens.yaml")
@click.option("--role", required=True, type=click.Choice(ROLES))
@click.option("--node", help="the node that an agent's token is for, as in site.yaml")
@click.option("--bridge", help="the border that a border's token is for, as in site.yaml")
def token(path: Path, role: str, node: str | None, bridge: str | None) -> None:
    """Make a bearer token: print it, this once, and keep only its hash in the tokens file.

    A running controller learns of it on SIGHUP.
    """
    from policies.wire import NAME_PATTERN
    from ryu_apps.rest.auth import TokenRole, new_token

    if (role == "agent") != (node is not None):
        raise click.UsageError("--node goes with --role agent, and only with it")
    if (role == "border") != (bridge is not None):
        raise click.UsageError("--bridge goes with --role border, and only with it")
    if bridge is not None and not re.fullmatch(NAME_PATTERN, bridge):
        raise click.UsageError(f"{bridge!r} cannot be a bridge's name")
    if node is not None and not re.fullmatch(NAME_PATTERN, node):
        raise click.UsageError(f"{node!r} cannot be a node's name")
    if not path.parent.is_dir():
        # Making it would hide a mistyped path, and a token that no controller reads looks like a good one.
        raise Stop(f"{path.parent} is not a directory; make it, or mend --tokens", 2)
    try:
        with faults_in_files():
            click.echo(new_token(path, TokenRole(role), node, bridge))
    except OSError as problem:
        raise Stop(f"{path}: {problem.strerror}", 1) from problem


def _unchecked(path: Path) -> object:
    """What controller.yaml holds, read alone: engine and port come before the modules that check it as a whole."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError, RecursionError):
        return None  # what is wrong is said with its line when the file is read as a whole


def configured_engine(data: object) -> str:
    """`engine` of controller.yaml."""
    found = data.get("engine") if isinstance(data, dict) else None
    return found if found in ENGINES else ENGINES[0]


@contextlib.contextmanager
def engine_faults(name: str) -> Iterator[None]:
    """One sentence in place of a traceback when the framework cannot be imported."""
    try:
        yield
    except Exception as problem:
        # The engine's own error type lives in the module that could not be imported, so it is known by name only.
        if isinstance(problem, ImportError):
            raise Stop(
                f"engine {name} cannot be imported: {problem}; docs/engines.md says how to install it", 2
            ) from problem
        if type(problem).__name__ == "EngineError":
            raise Stop(str(problem), 2) from problem
        raise


def _count(things: Sized, word: str) -> str:
    number = len(things)
    return f"{number} {word}{'' if number == 1 else 's'}"


class _Lines(logging.Formatter):
    """Works out the date and the second once for all lines of a second."""

    _second = -1
    _text = ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        second = int(record.created)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%d %H:%M:%S", self.converter(second))
        return f"{self._text}.{int(record.msecs):03d}"


def start_log(level: str) -> None:
    """One line for each event, to standard error."""
    # What no line has need not be found out for each: the logging how-to's own list of what can be left away.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level != "debug":
        # The framework's own chatter about every connection says nothing that ours does not.
        for name in ("os_ken", "ryu"):
            logging.getLogger(name).setLevel(logging.WARNING)


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    try:
        yield
    except Stop as fault:
        for line in str(fault).splitlines():
            click.echo(f"lark-controller: {line}", err=True)
        sys.exit(fault.code)


def main() -> None:
    with _exit_codes():
        cli(prog_name="lark-controller")


if __name__ == "__main__":
    main()
